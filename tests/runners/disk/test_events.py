"""The writer of TensorBoard events: each point is read back once, whatever the disk and the clock do."""

import collections
import errno
import io
import itertools
import math
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.context import RequestContext
from tensorboard.plugins.histogram.metadata import PLUGIN_NAME
from torch.utils.tensorboard.summary import text

from neoteny.runners.disk import appended, events
from neoteny.runners.disk.appended import changed_file
from neoteny.runners.disk.events import LONGEST, EventWriter, cut_event_files, event_files, read_points
from tests.events import scalars

FOLDERS = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
VALUES = st.floats(width=32, allow_nan=False)
SCALARS = st.tuples(st.dictionaries(st.sampled_from("abc"), VALUES, min_size=1), st.integers(0, 2**40))


def read(path):
    """The events in a file, all of them whole."""
    loaded = [Event.FromString(record) for record in RawEventFileLoader(str(path)).Load()]
    sizes = [event.ByteSize() + 16 for event in loaded]  # length, its checksum, data, its checksum
    assert sum(sizes) == path.stat().st_size
    return loaded


def points(*paths):
    """How often each point is in event files: (tag, step, value)."""
    return collections.Counter(
        (value.tag, event.step, value.simple_value)
        for path in paths
        for event in read(path)
        for value in event.summary.value
    )


def expected(written):
    return collections.Counter(
        (tag, step, value) for values, step in written for tag, value in values.items()
    )


class Disk(io.FileIO):
    """A file on a disk that takes so many bytes more, a few at a time."""

    room, most = 2**62, 2**62

    def write(self, data):
        if self.room <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = super().write(data[: min(self.room, self.most)])
        self.room -= taken
        return taken


@pytest.fixture
def disks(monkeypatch):
    """The disks of all writers that are made."""
    made = []

    def opened(path, mode, buffering):
        assert (mode, buffering) == ("xb", 0)
        made.append(Disk(path, "x"))
        return made[-1]

    monkeypatch.setattr(appended, "open", opened, raising=False)
    return made


def test_scalars_are_read_back(tmp_path):
    writer = EventWriter(tmp_path, 1)
    writer.metrics({"a": 1.5, "b/c": float("inf")}, 3)
    writer.metrics({"a": -2}, 2**40)
    writer.add(text("setup", "hello"), 7)
    writer.close()
    assert scalars(tmp_path) == {"a": [(3, 1.5), (2**40, -2.0)], "b/c": [(3, float("inf"))]}
    (setup,) = EventAccumulator(str(tmp_path)).Reload().Tensors("setup/text_summary")
    assert (setup.step, setup.tensor_proto.string_val[0]) == (7, b"hello")


def test_all_scalars_of_a_step_are_one_event(tmp_path):
    writer = EventWriter(tmp_path, 1)
    writer.metrics({"a": 1, "b": 2}, 3)
    writer.close()
    assert [len(event.summary.value) for event in read(writer.path)] == [0, 2]


@FOLDERS
@given(st.lists(st.floats(-1e100, 1e100), min_size=1, max_size=20))
def test_every_number_of_a_vector_is_read_back(tmp_path_factory, vector):
    folder = tmp_path_factory.mktemp("run")
    writer = EventWriter(folder, 1)
    writer.metrics({"v": vector, "a": 2.0}, 3)
    writer.close()
    points = read_points(folder)
    ((step, value),) = points["v"]
    assert (step, value.tolist()) == (3, sorted(vector))
    assert points["a"] == [(3, 2.0)]
    ((histogram,),) = (EventAccumulator(str(folder)).Reload().Histograms("v"),)
    assert histogram.histogram_value.bucket_limit == sorted(vector)
    assert histogram.histogram_value.num == sum(histogram.histogram_value.bucket) == len(vector)


def test_of_a_long_vector_order_statistics_are_kept(tmp_path):
    writer = EventWriter(tmp_path, 1)
    writer.metrics({"v": [float(i) for i in reversed(range(2 * LONGEST - 1))]}, 3)
    writer.close()
    ((_, value),) = read_points(tmp_path)["v"]
    assert value.tolist() == [2.0 * i for i in range(LONGEST)]


@pytest.mark.parametrize("vector", [[], [1.0, math.nan], [math.inf, 1.0]])
def test_a_vector_that_cannot_be_drawn_is_left_out(tmp_path, vector):
    writer = EventWriter(tmp_path, 1)
    writer.metrics({"v": vector, "a": math.inf}, 3)
    writer.close()
    assert read_points(tmp_path) == {"a": [(3, math.inf)]}


@pytest.mark.parametrize("vector", [[3.0, 1.0, 2.0], [1.4] * 64, [0.0, 0.0], [5.0]])
def test_tensorboard_shows_a_vector_as_a_histogram(tmp_path, vector):
    writer = EventWriter(tmp_path, 1)
    writer.metrics({"spectra/actor.linear1": vector}, 3)
    writer.close()
    multiplexer = EventMultiplexer().AddRun(str(tmp_path), "run").Reload()
    page = MultiplexerDataProvider(multiplexer, str(tmp_path)).read_tensors(
        RequestContext(), experiment_id="", plugin_name=PLUGIN_NAME, downsample=500
    )
    (shown,) = page["run"]["spectra/actor.linear1"]
    lefts, rights, counts = shown.numpy.T.tolist()
    values = np.float32(sorted(vector)).tolist()
    assert (shown.step, rights, counts) == (3, values, [1.0] * len(vector))
    assert lefts == [values[0], *values[:-1]]


def test_points_of_all_attempts_are_read_as_tensorboard_reads_them(tmp_path):
    for number in (1, 2):
        writer = EventWriter(tmp_path, number)
        for step in range(3):
            writer.metrics({"a": step / 3, "b/c": -number}, 3 * number + step)
        writer.add(text("setup", "hello"), 7)
        writer.close()
    assert read_points(tmp_path) == scalars(tmp_path)
    assert read_points(tmp_path, lambda tag: tag != "a").keys() == {"b/c"}


def test_a_record_that_is_still_being_written_is_left_out(tmp_path):
    writer = EventWriter(tmp_path, 1)
    writer.metrics({"a": 1}, 1)
    whole = writer.flush()
    writer.metrics({"a": 2}, 2)
    size = writer.flush()
    writer.close()
    data = writer.path.read_bytes()
    for end in range(whole, size):
        writer.path.write_bytes(data[:end])
        assert read_points(tmp_path) == {"a": [(1, 1.0)]}


def test_files_sort_by_their_number_whatever_the_clock_says(tmp_path, monkeypatch):
    clock = itertools.count(2e9, -1e8)
    monkeypatch.setattr(time, "time", lambda: next(clock))
    numbers = (1, 2, 9, 10, 11, 100, 99_999, 1_000_000)
    for number in numbers:
        EventWriter(tmp_path, number).close()
    names = [path.name for path in event_files(tmp_path)]
    assert names == [f"events.out.tfevents.{number:010d}" for number in numbers]


def test_no_file_is_written_over(tmp_path):
    EventWriter(tmp_path, 1).close()
    with pytest.raises(FileExistsError):
        EventWriter(tmp_path, 1)


def test_file_header_and_purge_step(tmp_path):
    EventWriter(tmp_path, 1).close()
    EventWriter(tmp_path, 2, purge_step=30).close()
    first, second = map(read, event_files(tmp_path))
    assert [event.file_version for event in first] == ["brain.Event:2"]
    assert [event.file_version for event in second] == ["brain.Event:2", ""]
    assert (second[1].session_log.status, second[1].step) == (SessionLog.START, 30)


def test_a_reader_forgets_points_from_the_purge_step_on(tmp_path):
    old = EventWriter(tmp_path, 1)
    for step in (1, 2, 3):
        old.metrics({"a": 0.0}, step)
    old.close()
    new = EventWriter(tmp_path, 2, purge_step=2)
    new.metrics({"a": 1.0}, 3)
    new.close()
    assert scalars(tmp_path) == {"a": [(1, 0.0), (3, 1.0)]}


def test_points_are_on_disk_after_some_seconds(tmp_path, monkeypatch):
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    writer = EventWriter(tmp_path, 1)
    writer.metrics({"a": 1}, 1)
    assert not points(writer.path)
    now = appended.FLUSH_SECONDS + 1
    writer.metrics({"a": 2}, 2)
    assert points(writer.path) == expected([({"a": 1}, 1), ({"a": 2}, 2)])
    writer.metrics({"a": 3}, 3)
    assert len(points(writer.path)) == 2
    writer.close()
    assert len(points(writer.path)) == 3


def test_flush_tells_the_size_of_the_file(tmp_path):
    writer = EventWriter(tmp_path, 1)
    sizes = [writer.flush()]
    for step in range(3):
        writer.metrics({"a": step}, step)
        sizes.append(writer.flush())
        assert sizes[-1] == writer.path.stat().st_size == writer.flush()
    assert sizes == sorted(set(sizes))
    writer.close()
    writer.close()
    assert writer.path.stat().st_size == sizes[-1]


@FOLDERS
@given(
    before=st.lists(SCALARS, max_size=6),
    lost=st.lists(SCALARS, max_size=6),
    after=st.lists(SCALARS, max_size=6),
    flushes=st.lists(st.integers(0, 6), max_size=3),
    more=st.booleans(),
)
def test_what_a_checkpoint_knows_of_is_kept_and_nothing_else(
    tmp_path_factory, before, lost, after, flushes, more
):
    folder = tmp_path_factory.mktemp("run")
    writer = EventWriter(folder, 1, purge_step=0)
    for i, (values, step) in enumerate(before):
        writer.metrics(values, step)
        if i in flushes:
            writer.flush()
    sizes = {writer.path.name: writer.flush()}
    for values, step in lost:
        writer.metrics(values, step)
    writer.close()
    if more:  # an attempt that came to no checkpoint
        other = EventWriter(folder, 2, purge_step=0)
        for values, step in lost:
            other.metrics(values, step)
        other.close()
    cut_event_files(folder, sizes)
    assert points(*event_files(folder)) == expected(before)
    new = EventWriter(folder, 3, purge_step=0)
    for values, step in after:
        new.metrics(values, step)
    new.close()
    assert event_files(folder) == [writer.path, new.path]
    assert points(*event_files(folder)) == expected(before) + expected(after)


def test_a_process_that_still_writes_to_a_cut_file_does_no_harm(tmp_path):
    old = EventWriter(tmp_path, 1)
    old.metrics({"a": 1}, 1)
    size = old.flush()
    old.metrics({"a": 2}, 2)
    old.flush()
    cut_event_files(tmp_path, {old.path.name: size})
    new = EventWriter(tmp_path, 2)
    new.metrics({"a": 3}, 2)
    for step in range(2, 9):
        old.metrics({"a": -step}, step)
        old.flush()
    old.close()
    new.close()
    assert points(*event_files(tmp_path)) == expected([({"a": 1}, 1), ({"a": 3}, 2)])
    assert old.path.stat().st_size == size


def test_a_cut_leaves_other_files_alone(tmp_path):
    (tmp_path / "args.json").write_text("{}")
    EventWriter(tmp_path, 1).close()
    cut_event_files(tmp_path, {"events.out.tfevents.0000000009": 50})
    assert [path.name for path in tmp_path.iterdir()] == ["args.json"]


@FOLDERS
@given(
    st.lists(SCALARS | st.none() | st.integers(0, 200), max_size=15),
    st.integers(1, 60),
)
def test_a_full_disk_loses_no_point_and_leaves_no_half_record(tmp_path_factory, disks, acts, most):
    """Scalars are written; ``None`` flushes; a number is the room that is left from here on."""
    writer = EventWriter(tmp_path_factory.mktemp("run"), 1)
    disk, written = disks[-1], []
    disk.most = most
    for act in acts:
        if act is None:
            size = writer.flush()
            assert size == writer.path.stat().st_size
        elif isinstance(act, int):
            disk.room = act
        else:
            written.append(act)
            writer.metrics(*act)
        assert points(writer.path) <= expected(written)
    disk.room = 2**62
    writer.close()
    assert points(writer.path) == expected(written)


def test_a_full_disk_is_reported_once_until_it_has_room_again(tmp_path, disks, capsys):
    writer = EventWriter(tmp_path, 1)
    for _ in range(2):
        disks[0].room = 10
        for step in range(5):
            writer.metrics({"a": 1}, step)
            writer.flush()
        output = capsys.readouterr().err
        assert output.count("warning") == 1
        assert "No space left on device; what follows is kept in memory" in output
        disks[0].room = 2**62
        writer.flush()
    writer.close()
    assert len(points(writer.path)) == 5
    assert not capsys.readouterr().err


def test_a_file_that_cannot_be_cut_is_written_over(tmp_path, disks, monkeypatch):
    """A file system may fail in more than writing; what comes next must not follow half a record."""

    def truncate(self, size=None):
        raise OSError(errno.EIO, "Input/output error")

    writer = EventWriter(tmp_path, 1)
    monkeypatch.setattr(Disk, "truncate", truncate)
    disks[0].room = 10
    writer.metrics({"a": 1}, 1)
    writer.flush()
    disks[0].room = 2**62
    writer.close()
    assert points(writer.path) == expected([({"a": 1}, 1)])


def test_a_disk_that_is_full_from_the_start_gets_everything_later(tmp_path, disks, monkeypatch):
    monkeypatch.setattr(Disk, "room", 0)
    writer = EventWriter(tmp_path, 1, purge_step=5)
    writer.metrics({"a": 1}, 5)
    assert writer.flush() == 0
    disks[0].room = 2**62
    writer.close()
    assert [event.file_version for event in read(writer.path)] == ["brain.Event:2", "", ""]
    assert scalars(tmp_path) == {"a": [(5, 1.0)]}


def kept(count, limit):
    """Whether a point is kept, from the rule as it is said: all, then every second, every fourth, ..."""
    stride, end = 1, limit
    while count > end:
        stride, end = 2 * stride, 2 * end
    return count % stride == 0


@given(st.integers(1, 10_000), st.integers(1, 50))
def test_long_series_are_thinned_by_the_rule(count, limit):
    assert events.is_kept(count, limit) == kept(count, limit)


def test_no_point_is_missing_below_the_limit_and_the_rule_goes_on_after_a_resume(tmp_path, monkeypatch):
    monkeypatch.setattr(events, "SCALARS", 8)
    monkeypatch.setattr(events, "VECTORS", 4)
    monkeypatch.setattr(events, "LARGEST", 300)
    monkeypatch.setattr(appended, "FLUSH_SECONDS", 0.0)
    expected = {"a": [], "v": []}
    counts = None
    for attempt in (1, 2):
        writer = EventWriter(tmp_path, attempt, counts=counts)
        for step in range(20 * attempt - 19, 20 * attempt + 1):
            writer.metrics({"a": float(step), "v": [float(step)]}, step)
            for tag, limit in (("a", 8), ("v", 4)):
                expected[tag] += [step] * kept(step, limit)
        counts, sizes = writer.counts, writer.sizes()
        writer.close()
        assert len(sizes) > 1
        assert changed_file(tmp_path, sizes) is None
    assert {tag: [step for step, _ in row] for tag, row in read_points(tmp_path).items()} == expected
    assert expected["a"][:9] == [1, 2, 3, 4, 5, 6, 7, 8, 10]
    names = [path.name for path in event_files(tmp_path)]
    assert names == sorted(names)
    cut_event_files(tmp_path, {names[0]: 50, names[1]: 60})
    assert [path.stat().st_size for path in event_files(tmp_path)] == [50, 60]
