"""A stand-in for a run, in milliseconds: it saves each step, goes on where it was killed, and ends.

python stub_run.py FOLDER STEPS [SECONDS_PER_STEP]
"""

import contextlib
import fcntl
import hashlib
import json
import os
import sys
import time
from pathlib import Path

folder, steps = Path(sys.argv[1]), int(sys.argv[2])
pause = float(sys.argv[3]) if len(sys.argv) > 3 else 0.01
(folder / "attempts").mkdir(parents=True, exist_ok=True)
number = len(list((folder / "attempts").iterdir())) + 1
(folder / "attempts" / f"{number:06d}.json").write_text(json.dumps({"pid": os.getpid()}))
lock = open(folder / "lock", "w")  # noqa: SIM115
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    (folder / "two processes at once").touch()
if (folder / "summary.json").exists():
    (folder / "made twice").touch()
state = folder / "state"
saved = state.read_text() if state.exists() else "0 "
step, value = int(saved.split()[0]), saved.split(" ")[1]
while step < steps:
    with contextlib.suppress(OSError):  # as a run's messages: the sweep that reads them may be gone
        os.write(2, f"\rrun: {100 * step // steps:3d}%|  | {step}/{steps}".encode())
    time.sleep(pause)
    step, value = step + 1, hashlib.sha256(f"{value}{step}".encode()).hexdigest()
    (folder / "new").write_text(f"{step} {value}")
    (folder / "new").rename(state)
(folder / "new").write_text(json.dumps({"value": value}))
(folder / "new").rename(folder / "summary.json")
