"""The README and the pages of docs/: their blocks of code, and how to run and edit what they show."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

from tests.forked import python

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


class Block(NamedTuple):
    """A block of code, the page that it is on, and the last heading before it."""

    page: str
    heading: str
    kind: str
    text: str


def blocks(path):
    """The blocks of a page, in order."""
    found, heading = [], ""
    for level, title, kind, text in re.findall(
        r"^(#+) ([^\n]*)$|^```(\w*)\n(.*?)^```$", path.read_text(), flags=re.S | re.M
    ):
        if level:
            heading = title
        else:
            found.append(Block(path.relative_to(ROOT).as_posix(), heading, kind, text))
    return found


def commands(path):
    """The lines of a page's bash blocks, without comments."""
    bash = [block.text for block in blocks(path) if block.kind == "bash"]
    return [line.split("#")[0].strip() for text in bash for line in text.splitlines() if line.strip()]


def run(command, folder):
    """Run a command of a page in a folder; the script is that of the checkout, if it is not in the folder."""
    words = shlex.split(command)
    script = words[1] if (folder / words[1]).exists() else ROOT / words[1]
    done = python(script, *words[2:], cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def patched(source, diff):
    """A text after an edit: lines with "-" go, lines with "+" come, the others say where."""
    lines = diff.splitlines()
    before = "\n".join(line[1:] for line in lines if not line.startswith("+"))
    after = "\n".join(line[1:] for line in lines if not line.startswith("-"))
    assert source.count(f"\n{before}\n") == 1, f"the edit does not fit: {before}"
    return source.replace(f"\n{before}\n", f"\n{after}\n")
