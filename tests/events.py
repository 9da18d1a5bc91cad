"""Reading event files back."""

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def scalars(folder):
    """Every scalar of a run: tag -> [(step, value), ...]."""
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    accumulator.Reload()
    return {
        tag: [(event.step, event.value) for event in accumulator.Scalars(tag)]
        for tag in accumulator.Tags()["scalars"]
    }


def texts(folder, tag):
    """A text of the only run in a folder: [(step, text), ...]."""
    (events,) = Path(folder).rglob("events.out.tfevents.*")
    accumulator = EventAccumulator(str(events)).Reload()
    return [
        (event.step, event.tensor_proto.string_val[0].decode())
        for event in accumulator.Tensors(f"{tag}/text_summary")
    ]
