"""Reading event files back."""

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def scalars(folder):
    """Every scalar of a run: tag -> [(step, value), ...]."""
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    accumulator.Reload()
    return {
        tag: [(event.step, event.value) for event in accumulator.Scalars(tag)]
        for tag in accumulator.Tags()["scalars"]
    }
