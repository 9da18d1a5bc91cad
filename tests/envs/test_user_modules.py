"""Modules of a user's that would end the process when they are imported."""

import os
import sys

import pytest

from neoteny.envs.registry import explained_end, import_typed
from neoteny.scripts.agent_files import load_agent

ENDS = {
    "import sys\nsys.exit(3)": "called sys.exit(3) when imported",
    "import os\nos._exit(0)": "called os._exit when imported",
    "import os\ntry:\n    os.abort()\nexcept Exception:\n    pass": "called os.abort when imported",
    "raise KeyboardInterrupt": "raised KeyboardInterrupt() when imported",
    "class End(BaseException): pass\nraise End('x')": "raised End('x') when imported",
}


@pytest.mark.parametrize("code", ENDS)
def test_how_a_module_would_have_ended_the_process_is_said(code, tmp_path, monkeypatch):
    (tmp_path / "ending.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "ending", raising=False)
    before = os._exit, os.abort
    with pytest.raises(ValueError, match="the module ending") as caught:
        import_typed("ending:X-v0")
    assert str(caught.value) == f"the module ending {ENDS[code]}"
    with pytest.raises(ValueError, match="when imported") as caught:
        load_agent(str(tmp_path / "ending.py"))
    assert str(caught.value) == f"ending.py {ENDS[code]}"
    assert (os._exit, os.abort) == before


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork on Windows")
def test_a_child_of_a_module_ends_as_it_wants_to():
    with explained_end("a module"):
        if (child := os.fork()) == 0:
            os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_other_errors_pass():
    with pytest.raises(KeyError), explained_end("a module"):
        raise KeyError
