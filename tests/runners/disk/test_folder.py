"""Folders in which no run can be written are refused before anything is."""

import re

import pytest

from neoteny.runners.disk.folder import check_folder, check_path


def test_a_folder_that_can_be_made_is_accepted(tmp_path):
    check_path(tmp_path)
    check_path(tmp_path / "a" / ("x" * 255))
    check_path(tmp_path / ("ü" * 127))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("x" * 256, "x{40}... is longer than the 255 bytes of a folder's name"),
        ("ü" * 128, "ü{40}... is longer than the 255 bytes of a folder's name"),
        ("a/" * 2_000, ".*... is longer than the 3,840 bytes of a run's path"),
        ("file", ".*/file is not a folder, so no run can be written there"),
        ("file/runs/s1", ".*/file is not a folder, so no run can be written there"),
        ("lost/runs/s1", ".*/lost is not a folder, so no run can be written there"),
    ],
)
def test_a_folder_that_cannot_be_made_is_refused(name, sentence, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "lost").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        check_path(tmp_path / name)


@pytest.mark.parametrize("name", ["checkpoint", "attempts"])
def test_a_finished_run_whose_folders_are_links_is_not_replaced(name, tmp_path, capsys):
    run, other = tmp_path / "run", tmp_path / "other"
    run.mkdir()
    other.mkdir()
    (run / "args.json").write_text("{}")
    (run / "summary.json").write_text("{}")
    (run / name).symlink_to(other)
    with pytest.raises(SystemExit) as exit:
        check_folder(run, overwrite=True)
    assert exit.value.code == 2
    assert re.fullmatch(
        rf"error: .*/{name} is a link: remove it to replace the run\n", capsys.readouterr().err
    )
    (run / name).unlink()
    check_folder(run, overwrite=True)
