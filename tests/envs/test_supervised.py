"""Supervised streams: tasks and the order of samples are functions of the seed and the step alone."""

import dataclasses
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neoteny.envs.datasets import Dataset, bits
from neoteny.envs.schedule import Schedule
from neoteny.envs.supervised import TASKS, SupervisedStream, SupervisedStreamConfig

N, V, CLASSES = 60, 12, 40
DATA = Dataset(
    torch.arange(N * 12, dtype=torch.int32).remainder(251).to(torch.uint8).view(N, 3, 2, 2),
    torch.arange(N) % CLASSES,
    torch.arange(V * 12, dtype=torch.int32).remainder(241).to(torch.uint8).view(V, 3, 2, 2),
    torch.arange(V) % CLASSES,
    CLASSES,
)


def make(change="random-labels", **changes):
    options = {"epochs": 2, "batch_size": 8, "seed": 3} | changes
    schedule = options.pop("schedule", Schedule(period=1))
    return SupervisedStream(DATA, TASKS.get(change, change), schedule, **options)


def played(stream, epochs):
    """The task and the samples of each minibatch."""
    made = []
    for _ in range(epochs):
        about = stream.begin_epoch()
        for chosen in stream.epoch():
            made.append((about["task"], stream.data.observations[chosen], stream.data.targets[chosen]))
    return made


def equal(one, two):
    return len(one) == len(two) and all(
        a[0] == b[0] and torch.equal(a[1], b[1]) and torch.equal(a[2], b[2]) for a, b in zip(one, two)
    )


def test_pixels_are_permuted_alike_in_all_samples():
    task = TASKS["permuted-pixels"](DATA, 5, 0)
    order = [DATA.inputs[0].flatten().tolist().index(pixel) for pixel in task.inputs[0].flatten().tolist()]
    assert sorted(order) == list(range(12))
    assert order != list(range(12))
    assert torch.equal(task.inputs.flatten(1), DATA.inputs.flatten(1)[:, order])
    assert torch.equal(task.validation_inputs.flatten(1), DATA.validation_inputs.flatten(1)[:, order])
    assert torch.equal(task.targets, DATA.targets)


def test_shuffled_labels_are_a_permutation_of_classes():
    task = TASKS["shuffled-labels"](DATA, 5, 0)
    numbers = dict(zip(DATA.targets.tolist(), task.targets.tolist()))
    assert sorted(numbers.values()) == list(range(CLASSES))
    assert task.targets.tolist() == [numbers[old] for old in DATA.targets.tolist()]
    assert task.validation_targets.tolist() == [numbers[old] for old in DATA.validation_targets.tolist()]


def test_random_labels_say_nothing_about_inputs_and_leave_nothing_to_validate():
    task = TASKS["random-labels"](DATA, 5, 0)
    assert torch.equal(task.inputs, DATA.inputs)
    assert 0 <= (task.targets == DATA.targets).sum() < 10
    assert len(task.validation_targets) == len(task.validation_inputs) == 0


def test_half_of_the_labels_are_noise():
    same = TASKS["noisy-labels"](DATA, 5, 0).targets == DATA.targets
    assert 15 <= same.sum() <= 45
    assert (same != (TASKS["noisy-labels"](DATA, 6, 0).targets == DATA.targets)).any()


def test_classes_are_added():
    before = set()
    for k in range(3):
        task = TASKS["new-classes"](DATA, k, 0)
        classes = set(task.targets.tolist())
        assert len(classes) == 2 * (k + 1)
        assert before < classes
        assert set(task.validation_targets.tolist()) <= classes
        assert all((DATA.inputs == image).flatten(1).all(1).any() for image in task.inputs)
        before = classes


def test_one_of_the_fixed_bits_flips_from_task_to_task():
    data, fixed, targets = bits(None), [], []
    for k in range(30):
        task = TASKS["flipping-bits"](data, k, 5)
        assert task.inputs.unique().tolist() == [0, 1]
        assert (task.inputs[:, :15] == task.validation_inputs[0, :15]).all()
        share = task.inputs[:, 15:].mean(0)
        assert ((share > 0.45) & (share < 0.55)).all()
        fixed.append(task.inputs[0, :15])
        targets.append(task.targets)
    differences = [(one != other).sum().item() for one, other in itertools.pairwise(fixed)]
    assert differences == [1] * 29
    assert len({int((one != other).nonzero()) for one, other in itertools.pairwise(fixed)}) > 5
    assert not torch.equal(targets[0], targets[1])


def test_the_target_network_is_one_for_all_tasks():
    """A function of the bits alone: the same bits have the same target in each task."""
    seen = {}
    for k in range(40):
        task = TASKS["flipping-bits"](bits(None), k, 5)
        for row, target in zip(task.inputs[:64].int().tolist(), task.targets[:64].flatten().tolist()):
            assert seen.setdefault(tuple(row), target) == target
    assert len(seen) < 40 * 64  # some were seen again


@pytest.mark.parametrize("change", [name for name in TASKS if name != "flipping-bits"])
@given(k=st.integers(0, 10**6), seed=st.integers(0, 2**63 - 1))
@settings(max_examples=20, deadline=None)
def test_a_task_is_a_function_of_its_number_and_the_seed(change, k, seed):
    one, two, other = (TASKS[change](DATA, number, seed) for number in (k, k, k + 1))
    assert all(torch.equal(a, b) for a, b in zip(one[:4], two[:4]))
    if change != "new-classes":  # of which there are only so many
        assert not all(torch.equal(a, b) for a, b in zip(one[:2], other[:2]))


def test_every_epoch_goes_through_the_samples_once_in_another_order():
    epochs = []
    stream = make()
    for _ in range(3):
        stream.begin_epoch()
        epochs.append(torch.cat(list(stream.epoch())).tolist())
    assert [len(set(epoch)) for epoch in epochs] == [56, 56, 56]  # 60 in whole minibatches of 8
    assert len(set(map(tuple, epochs))) == 3
    assert stream.steps == 168


def test_the_next_data_are_those_of_the_next_visit():
    stream = make(schedule=Schedule(period=1, tasks=(4, 1)), samples=40)
    for task in (1, 4, 1):
        following = stream.next_data()
        played(stream, 2)
        stream.begin_epoch()
        assert stream.task == task
        assert all(torch.equal(a, b) for a, b in zip(stream.data, following, strict=True))


def test_tasks_change_after_their_epochs():
    stream = make()
    assert [task for task, *_ in played(stream, 5)] == [0] * 14 + [1] * 14 + [2] * 7
    recurring = make(schedule=Schedule(period=1, tasks=(4, 2)), epochs=1)
    made = played(recurring, 3)
    assert [task for task, *_ in made] == [4] * 7 + [2] * 7 + [4] * 7


def test_a_visit_ends_with_its_last_epoch():
    stream = make(epochs=3)
    ends = []
    for _ in range(6):
        stream.begin_epoch()
        ends.append(stream.visit_ends)
        list(stream.epoch())
    assert ends == [False, False, True] * 2


@pytest.mark.parametrize("epochs", range(1, 6))
def test_a_restored_stream_goes_on(epochs):
    whole, stopped, restored = make(samples=24), make(samples=24), make(samples=24)
    all_samples = played(whole, 6)
    played(stopped, epochs)
    restored.load_state_dict(stopped.state_dict())
    assert equal(played(restored, 6 - epochs), all_samples[3 * epochs :])


def test_samples_that_have_changed_since_are_noticed():
    state = make().state_dict()
    other = SupervisedStream(
        DATA._replace(inputs=255 - DATA.inputs), TASKS["random-labels"], Schedule(1), 2, 8
    )
    with pytest.raises(ValueError, match="samples of task 0 have changed"):
        other.load_state_dict(state)


def test_a_task_has_samples_of_its_own():
    stream = make("permuted-pixels", samples=10, batch_size=5, epochs=1)
    targets = [torch.cat([row[2] for row in played(stream, 1)]).sort().values for _ in range(2)]
    assert [len(row) for row in targets] == [10, 10]
    assert not torch.equal(*targets)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="60 samples, fewer than a minibatch of 64"):
        make(batch_size=64)
    with pytest.raises(ValueError, match=r"task 0 has 60 samples, fewer than --stream\.samples 61"):
        make(samples=61)
    with pytest.raises(
        ValueError, match=r"the switch changed nothing: task 1 is task 0; --stream.audit warn"
    ):
        make(lambda data, k, seed: data)
    stream = make("new-classes", batch_size=2)
    with pytest.raises(ValueError, match=r"task 1 has \d samples, not as many as the first"):
        played(stream, 3)


def test_a_switch_that_changes_nothing_is_a_warning_later():
    stream = make(lambda data, k, seed: data._replace(targets=data.targets + (k == 1)), epochs=1)
    abouts = []
    for _ in range(4):
        abouts.append(stream.begin_epoch())
        list(stream.epoch())
    assert ["audit" in about for about in abouts] == [False, False, False, True]
    assert abouts[0]["fingerprint"].same_as(abouts[2]["fingerprint"])


def test_names_are_checked_before_data_are_read():
    config = SupervisedStreamConfig()
    for changes, match in [
        ({"data": "digit"}, "--stream.data must be digits, "),
        ({"change": "labels"}, "--stream.change must be permuted-pixels, "),
        ({"epochs": 0}, "must be at least 1"),
        ({"samples": 0}, "must be at least 1"),
        ({"tasks": ()}, "at least 1 task"),
        ({"tasks": (0, -1)}, "numbered from 0"),
    ]:
        with pytest.raises(ValueError, match=match):
            dataclasses.replace(config, **changes).check()
