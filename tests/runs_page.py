"""The sentences and table rows of docs/runs.md, each with the tests that show it.

``SHOWN`` has the beginning of each, in the order of the page, and the name of its test, or several, without
"test_". A name that several files have stands behind its file's: "envs/test_stream.py::...".
"""

import ast
import re
from pathlib import Path

from neoteny.scripts.fault_outcomes import HEADER

TESTS = Path(__file__).resolve().parent
MEASURED = " | ".join(HEADER)
"""The header of a table of counts, which is one entry."""


def sentences(page):
    """The sentences of a page and of its tables' rows, but for headings, headers of tables and code."""
    for block in re.sub(r"^```.*?^```$", "", page, flags=re.S | re.M).split("\n\n"):
        lines = [line.strip("| ") for line in block.strip().splitlines()]
        if not lines or block.lstrip().startswith("#"):
            continue
        is_table = block.lstrip().startswith("|")
        texts = [" ".join(lines)] if not is_table else lines[:1] if lines[0] == MEASURED else lines[2:]
        for text in texts:
            yield from re.split(r"(?<=\.) (?=[A-Z\d`\"])|(?<=:) (?=[A-Z\d])", text.replace("**", ""))


def names_of_tests():
    """All tests, functions and methods: name -> the files that have it, from tests/ on."""
    found = {}
    for path in TESTS.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                found.setdefault(node.name, []).append(path.relative_to(TESTS).as_posix())
    return found


SHOWN = {
    # The folder
    "A run writes to": "the_folder_names_stream_agent_optimizer_and_seed",
    "The agent is the name of its file": "a_copied_agent_with_another_optimizer_resumes_exactly",
    "A finished run is never replaced": "a_finished_run_is_refused_and_an_unfinished_one_starts_again",
    "`args.json`": "a_run_leaves_what_it_measured",
    "`meta.json` | machine": "meta_json_has_the_machine_versions_and_hashes_of_the_code",
    "`visits.jsonl` | a line": "a_run_leaves_what_it_measured",
    "event files | everything": (
        "a_run_leaves_what_it_measured",
        "hparams_and_charts_are_in_the_run_s_own_event_file",
    ),
    "`checkpoint/` |": ("the_newest_of_two_is_loaded", "noninterference_of_probes_and_checkpoints"),
    "`checkpoint/weights.safetensors`": "a_run_leaves_what_it_measured",
    "`summary.json`": ("a_run_leaves_what_it_measured", "no_bit_of_training_depends_on_evaluations"),
    "`videos/`": "the_folder_has_the_files_of_the_table",
    "`references.json`": "each_run_names_its_references",
    "`crash/`": "nan_ends_the_run_in_the_same_update",
    "`attempts/`": "two_processes_the_newest_owns_the_run",
    "The first lines of a run": "the_first_lines_of_a_run_say_what_runs",
    "The last say where it is": "the_first_and_the_last_lines_of_a_run",
    "TensorBoard's text page": "the_text_page_names_the_weights_that_adamo_pulls",
    # Continuing a run
    "Kill it anywhere": "killed_runs_are_the_same_as_undisturbed_ones",
    "Run the same command again": "with_nothing_changed_it_is_exactly",
    "On a CPU you get the same bits": "killed_runs_are_the_same_as_undisturbed_ones",
    "A checkpoint holds everything": "killed_runs_are_the_same_as_undisturbed_ones",
    "It is written every `--checkpoint-every`": (
        "a_checkpoint_is_written_every_so_many_steps",
        "a_full_disk_leaves_the_old_checkpoint_as_it_was",
        "a_malicious_checkpoint_is_refused",
    ),
    '"Exactly" is said only': "runs_of_what_users_bring_are_the_same_or_say_that_they_are_not",
    "`meta.json` says": (
        "with_nothing_changed_it_is_exactly",
        "machine_or_kernels_that_differ_are_listed_in_meta_json",
    ),
    "machine: device, threads": "machine_or_kernels_that_differ_are_listed_in_meta_json",
    "its kernels:": (
        "machine_or_kernels_that_differ_are_listed_in_meta_json",
        "kernels_of_another_set_compute_otherwise",
    ),
    "code: neoteny": (
        "code_of_neoteny_that_was_edited_is_listed",
        "code_of_an_environment_that_was_edited_is_listed",
        "code_that_an_environment_imports_late_is_compared_then",
    ),
    "code: the agent's file": "code_of_an_edited_agent_is_refused_and_a_copy_has_its_own_folder",
    "the replay of the running episodes": (
        "replay_of_running_episodes_compares_rewards_and_ends",
        "replay_of_running_episodes_notices_ends_that_move",
        "what_replay_cannot_restore_goes_on_with_new_episodes",
    ),
    "episodes that are played twice": "episodes_played_twice_show_memory_at_the_start_and_the_run_goes_on",
    "`--total-steps`, if": "total_steps_that_change_are_followed_by_an_annealed_rate_at_once",
    "An environment must depend": (
        "environments_that_depend_on_more_than_seeds_and_actions_are_found",
        "what_episodes_share_is_restored",
    ),
    "Played twice at the start": "environments_that_depend_on_more_than_seeds_and_actions_are_found",
    "They train as well as any": "episodes_played_twice_show_memory_at_the_start_and_the_run_goes_on",
    "What shows only after thousands": "what_shows_only_after_thousands_of_steps_is_found_by_the_replay",
    "Files that your code reads": "files_that_code_reads_are_not_compared",
    MEASURED: "faults_are_in_the_table_as_they_are_printed",
    "306 faults in 63 runs": "sentences_on_faults_are_those_that_are_printed",
    "Not counted as different": "sentences_on_faults_are_those_that_are_printed",
    "A run has 2,048 steps": "sentences_on_faults_are_those_that_are_printed",
    "The command is": "flags_of_the_page_s_scripts_are_theirs",
    "It also killed two sweeps": "sentences_on_faults_are_those_that_are_printed",
    "`--methods` gives each run": "methods_gives_each_run_a_method",
    "`--only` names the faults": ("only_names_the_faults", "faults_that_there_are_not_are_refused"),
    "SIGTERM, SIGUSR1, SIGUSR2, Ctrl-C": (
        "sigterm_and_the_other_signals_save_and_the_run_goes_on",
        "sigterm_twice_ends_at_once",
        "each_signal_is_caught_during_imports",
        "a_run_under_nohup_survives_its_terminal",
    ),
    "a running episode at a restart": (
        "a_resume_replays_the_steps_of_running_episodes",
        "replay_of_running_episodes_compares_rewards_and_ends",
        "envs/test_stream.py::a_restored_stream_goes_on_as_if_never_stopped",
        "a_run_without_replay_goes_on_with_other_episodes",
        "without_replay_new_episodes_begin",
        "what_replay_cannot_restore_goes_on_with_new_episodes",
    ),
    "a worker (`--stream.single.workers`)": (
        "worker_that_dies_or_does_not_answer_is_replaced",
        "a_worker_that_is_always_lost_is_given_up",
        "workers_may_be_lost_at_any_moment_and_nothing_changes",
    ),
    "a damaged checkpoint, or one": (
        "damaged_checkpoint_the_older_one_serves",
        "a_checkpoint_that_holds_what_no_run_has_written_is_set_aside",
        "damaged_checkpoints_all_of_them_are_no_reason_to_start_over",
    ),
    # What grows
    "a checkpoint whose networks": "a_checkpoint_that_does_not_fit_the_run_is_refused",
    "NaN or infinity in": ("nan_ends_the_run_in_the_same_update", "a_crash_is_reproduced"),
    "two processes on one run": (
        "two_processes_the_older_one_wakes_up_anywhere",
        "two_processes_the_older_one_does_no_harm",
        "two_processes_the_newest_of_several_that_start_at_once_owns_the_run",
    ),
    "messages cannot be printed": (
        "a_run_goes_on_without_its_output_and_saves_at_a_signal",
        "a_pipe_that_nobody_reads_changes_no_exit_code",
        "ctrl_c_through_a_pipe_whose_reader_it_ended_saves_the_run",
        "a_full_disk_under_the_log_changes_no_exit_code",
    ),
    "SIGTERM, SIGUSR1, SIGUSR2 or SIGHUP": "a_signal_to_a_sweep_is_passed_on_and_waits_for_the_runs_to_save",
    "the event files or `visits.jsonl` are": "event_files_or_visits_that_are_not_as_they_were_written",
    "two sweeps on one folder": (
        "two_sweeps_in_the_same_moment_share_the_work",
        "a_run_that_another_sweep_makes_is_waited_for",
        "killed_runs_and_sweeps_leave_what_undisturbed_ones_do",
    ),
    "a GPU": "a_deterministic_run_that_is_killed_goes_on_as_if_it_had_not_been",
    # Two processes
    "A process that was stopped": "two_processes_the_older_one_ends",
    "Each takes a number": "two_processes_the_newest_owns_the_run",
    "Before and after it replaces": (
        "two_processes_the_newest_owns_the_run",
        "two_processes_the_older_one_asks_after_each_step_too",
        "two_processes_child_processes_do_not_inherit_the_lock",
    ),
    "If a process is stopped for ten seconds": "two_processes_one_that_is_stopped_under_the_lock_is_killed",
    "A process on another machine": "two_processes_the_lock_of_one_on_another_machine_is_not_waited_for",
    "Events, visits and the replay memory": (
        "a_process_that_still_writes_to_a_cut_file_does_no_harm",
        "two_processes_the_visits_are_the_newer_one_s_own",
        "two_processes_the_replay_memory_is_the_newer_one_s_own",
    ),
    "The memory is copied for that": (
        "two_processes_the_replay_memory_is_the_newer_one_s_own",
        "two_processes_the_older_one_may_be_alive_where_there_are_no_locks",
    ),
    "a checkpoint | not with": (
        "a_checkpoint_does_not_grow_with_steps_switches_or_episodes",
        "a_checkpoint_has_the_actions_of_running_episodes_but_without_replay",
    ),
    "`--stream.single.no-replay` leaves": (
        "a_checkpoint_has_the_actions_of_running_episodes_but_without_replay",
        "what_replay_cannot_restore_goes_on_with_new_episodes",
    ),
    "`visits.jsonl` | by": "visits_grow_by_250_to_900_bytes_at_each_switch",
    "100,000 switches cost": "faults_py_measures_what_the_page_says_of_switches",
    "event files | by": "all_scalars_of_a_step_are_one_event",
    "All of the first 5,000": (
        "long_series_are_thinned_by_the_rule",
        "no_point_is_missing_below_the_limit_and_the_rule_goes_on_after_a_resume",
        "amounts_are_those_of_the_code",
    ),
    "1.2 billion steps of PPO": "events_of_1_2_billion_steps_are_as_large_as_the_page_says",
    "A new file begins": ("event_files_that_rotate_are_resumed", "amounts_are_those_of_the_code"),
    "the process | not": (
        "the_process_has_no_more_open_files_after_more_steps",
        "the_process_has_no_more_memory_after_more_steps",
    ),
    "A run does not continue with other flags": (
        "other_flags_are_refused_but_for_those_that_may_change",
        "what_may_change_are_the_flags_of_the_table",
    ),
    "its length |": "other_flags_are_refused_but_for_those_that_may_change",
    "how it is watched": "other_flags_are_refused_but_for_those_that_may_change",
    "what computes it |": (
        "allow_device_change_lets_a_run_go_on_elsewhere",
        "allow_code_change_lets_a_run_go_on_with_an_edited_agent",
    ),
    "`meta.json` records": (
        "machine_or_kernels_that_differ_are_listed_in_meta_json",
        "device_that_differs_needs_a_flag",
    ),
    "`--stream.single.workers`, ": "resumable_arguments_are_those_that_change_nothing_that_is_learned",
    "An unfinished run of version 0.1": "an_unfinished_run_of_0_1_is_refused_and_left_alone",
    # Exit codes
    "0 | done": ("the_folder_has_the_files_of_the_table", "exit_codes_are_all_in_the_table"),
    "2 | bad input": "setting_up_is_refused_in_one_sentence",
    "65 | a later task": (
        "a_run_ends_with_its_own_code_and_a_checkpoint_before_a_task_of_other_spaces",
        "a_new_task_that_tensors_cannot_step_ends_the_run_with_the_remedy",
    ),
    "70 | a value was not finite": (
        "nan_ends_the_run_in_the_same_update",
        "a_wrong_step_in_the_middle_of_a_run_is_one_sentence",
        "worker_lost_again_and_again_ends_the_run",
    ),
    "73 | another process": "two_processes_the_older_one_ends",
    "74 | the disk": (
        "disk_full_three_times_in_a_row_ends_the_run",
        "disk_full_at_the_beginning_or_the_end",
        "disk_full_for_events_at_the_end_leaves_the_run_unfinished",
    ),
    "75 | stopped by a signal": (
        "sigterm_and_the_other_signals_save_and_the_run_goes_on",
        "sigterm_at_any_moment_ends_with_code_75",
        "a_signal_ends_a_script_with_a_sentence",
    ),
    # What is refused
    "What is wrong and can be known": (
        "setting_up_is_refused_in_one_sentence",
        "what_cannot_be_is_refused_before_it_is_allocated",
    ),
    "words |": ("what_cannot_be_is_refused_before_it_is_allocated", "only_over_may_be_given_twice"),
    "whole numbers |": ("what_cannot_be_is_refused_before_it_is_allocated", "amounts_are_those_of_the_code"),
    "real numbers |": ("what_cannot_be_is_refused_before_it_is_allocated", "amounts_are_those_of_the_code"),
    "amounts |": ("what_cannot_be_is_refused_before_it_is_allocated", "amounts_are_those_of_the_code"),
    "memory | rollout": (
        "what_cannot_be_is_refused_before_it_is_allocated",
        "a_size_is_refused_above_what_is_free",
    ),
    "`--device` | must": "what_cannot_be_is_refused_before_it_is_allocated",
    "folders and files |": (
        "a_folder_that_cannot_be_made_is_refused",
        "a_finished_run_whose_folders_are_links_is_not_replaced",
        "amounts_are_those_of_the_code",
    ),
    "your modules |": "how_a_module_would_have_ended_the_process_is_said",
    "environments | any": "a_registered_environment_trains_or_is_refused_in_a_sentence",
    "`scripts/malformed.py` types": ("every_flag_is_malformed_in_turn", "faults_are_seen"),
    "Of 3,000 lines": "malformed_py_prints_the_figures_of_the_page",
    "60 of them": "malformed_py_prints_the_figures_of_the_page",
    # Videos and pictures
    "`--video-every 100000` records": ("a_video_shows_an_episode", "a_killed_run_goes_on_to_the_same_videos"),
    "It is played as in an": ("the_policy_sees_what_the_stream_would_show", "videos_do_not_disturb_training"),
    "An environment that cannot render": "observations_that_are_pictures_are_shown",
    "If they are not, one printed line": "what_cannot_be_shown_is_reported_once",
    "At the end of a run two pictures": (
        "tensorboard_has_both_pictures_and_the_spectra_as_histograms",
        "without_matplotlib_one_sentence_says_so",
    ),
    "`pictures/spectra.png`": ("spectrum_picture", "heads_have_no_picture_and_parts_stand_side_by_side"),
    "`pictures/dormant.png`": "rows_and_colours_are_the_layers_and_their_dormant_units",
    "Thin lines are switches": "a_switch_is_a_line_at_its_step",
    "TensorBoard has both pictures": "tensorboard_has_both_pictures_and_the_spectra_as_histograms",
    "`--probes.no-pictures` leaves": "no_pictures_leaves_the_drawing_out",
}
