"""Videos and pictures of a run, in its folder and on TensorBoard's page of images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tensorboard.compat.proto.summary_pb2 import Summary

from neoteny.envs.stream import Stream
from neoteny.runners.disk.attempts import Attempt
from neoteny.runners.disk.events import EventWriter, image_value
from neoteny.runners.disk.files import replace_file
from neoteny.runners.disk.messages import tell, warn
from neoteny.runners.evaluation import Act
from neoteny.runners.pictures import draw_pictures
from neoteny.runners.video import record_video


class Illustrations:
    """Videos and pictures of a run. Nothing else in it depends on them: a failure only prints a message.

    Args:
        attempt: this process's ownership of the run.
        writer: of its event files.
        every: steps from one video to the next; 0 for none.
        step: of the run so far.
    """

    def __init__(self, attempt: Attempt, writer: EventWriter, every: int, step: int) -> None:
        self._attempt, self._writer, self._every, self._step = attempt, writer, every, step
        self._is_lost = False

    def record_video(self, stream: Stream, act: Act | None) -> bool:
        """Record a video of the policy if one is due; returns whether it was.

        Raises:
            SystemExit: code 73 if another process has taken the run over.
        """
        step, before = stream.steps, self._step
        self._step = step
        if act is None or self._every == 0 or step // self._every == before // self._every:
            return False
        self._attempt.check()
        try:
            gif, summary = record_video(stream, act)
        except (Exception, SystemExit) as error:  # a renderer may call sys.exit
            tell(f"there will be no videos: {type(error).__name__}: {error}")
            self._every = 0
            return False
        path = self._attempt.folder / "videos" / f"step_{step:09d}.gif"
        try:
            self._write(path, gif)
        except OSError as error:
            if not self._is_lost:
                warn(f"warning: {path} could not be written ({error.strerror})")
            self._is_lost = True
        else:
            self._writer.add(summary, step)
        return True

    def draw(self, switches: Sequence[int], step: int) -> None:
        """Draw the pictures of the whole run.

        Args:
            switches: steps of the run at which its tasks switched.
            step: its last step.

        Raises:
            SystemExit: code 73 if another process has taken the run over.
        """
        folder = self._attempt.folder
        self._writer.flush()
        try:
            for name, png in draw_pictures(folder, switches).items():
                self._write(folder / "pictures" / f"{name}.png", png)
                self._writer.add(Summary(value=[image_value(f"pictures/{name}", png)]), step)
        except ModuleNotFoundError:
            tell('pictures of the run need matplotlib: pip install -e ".[analysis]"')
        except Exception as error:
            tell(f"there are no pictures of the run: {type(error).__name__}: {error}")

    def _write(self, path: Path, data: bytes) -> None:
        with self._attempt.section():
            path.parent.mkdir(exist_ok=True)
            replace_file(path, data)
