"""What a checkpoint holds is compared with what the run needs, whatever its hashes say."""

import copy
import json

import numpy as np
import pytest
import torch

from neoteny.agents import dqn, ppo, supervised
from neoteny.configs.cli import cli
from neoteny.optim import METHODS
from neoteny.runners.disk.checkpoint import read_checkpoint
from neoteny.runners.disk.forms import NEEDED, check_form, check_state
from neoteny.runners.run import Run
from tests.tiny_runs import FLAGS, GOLDEN

PARTS = {
    "methods": {"steps": 3, "last": None, "means": torch.zeros(2)},
    "running": [{"seed": 1, "actions": np.zeros((0, 2))}, {"seed": 2, "actions": np.zeros((4, 2))}],
    "exact": True,
    "name": "x",
}
ALIKE = {
    "other numbers": {"methods": {"steps": 4.5, "last": 7, "means": torch.ones(9)}, "exact": False},
    "names that are missing or more": {"methods": {"other": "x"}, "more": [1, "x"]},
    "more items": {"running": [{"seed": n, "actions": torch.zeros(n, n)} for n in range(5)]},
    "a tuple for a list": {"running": ({"seed": 1},)},
}
UNLIKE = {
    "steps of methods of the state is a text, not a number": {"methods": {"steps": "3"}},
    "steps of methods of the state is a flag, not a number": {"methods": {"steps": True}},
    "means of methods of the state is an array of 0 axes, not an array of 1 axes": {
        "methods": {"means": torch.tensor(1.0)}
    },
    "methods of the state is a list, not a table": {"methods": []},
    "actions of item 3 of running of the state is missing, not an array of 2 axes": {
        "running": [{}, {}, {}, {"actions": None}]
    },
    "item 0 of running of the state is a number, not a table": {"running": [5]},
    "exact of the state is a number, not a flag": {"exact": 1},
}


@pytest.mark.parametrize("change", ALIKE)
def test_a_state_of_the_same_form_is_accepted(change):
    check_form(PARTS | ALIKE[change], PARTS)


@pytest.mark.parametrize("sentence", UNLIKE)
def test_a_state_of_another_form_is_refused_where_it_differs(sentence):
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        check_form(PARTS | UNLIKE[sentence], PARTS)


def golden():
    return read_checkpoint(next((GOLDEN / "0.2.0").glob("step_*")))


def test_the_state_of_a_run_is_known():
    check_state(golden())


@pytest.mark.parametrize("name", NEEDED)
def test_a_state_that_lacks_something_is_no_state_of_a_run(name):
    state = golden()
    del state[name]
    with pytest.raises(ValueError, match=f"^the state lacks {name}$"):
        check_state(state)


@pytest.mark.parametrize(
    "change", [[], None, {"seconds": {"env": [1]}}, {"config": {"methods": torch.zeros(1)}}]
)
def test_a_state_of_other_contents_is_no_state_of_a_run(change):
    with pytest.raises((ValueError, TypeError)):
        check_state(golden() | change if isinstance(change, dict) else change)


SMALL = {
    dqn: "cartpole-rotations --num-envs 2 --log-every 32 --train-every 8 --learning-starts 32 --batch-size 8 "
    "--buffer-size 200 --stream.normalizer keep",
    ppo: FLAGS.replace("--total-steps 256", "--total-steps 128").replace(" optim:adam", ""),
    supervised: "--num-tasks 3 --stream.samples 64 --stream.epochs 1",
}
NETWORKS = {"nap": "--network.norm layer", "reorthogonalize": "--network.linear orthogonal"}
CHANGES = [(ppo, f"--methods.{name} {NETWORKS.get(name, '')} optim:adam") for name in sorted(METHODS)]
CHANGES += [(dqn, f"optim:{name}") for name in ("adamo", "adamw", "muon", "muono", "upgd", "trac")]
CHANGES += [(supervised, "optim:adamo")]


@pytest.mark.slow
@pytest.mark.parametrize(("agent", "words"), CHANGES, ids=lambda value: getattr(value, "__name__", value))
def test_a_state_keeps_its_form_while_it_is_trained(agent, words, tmp_path, monkeypatch):
    small = SMALL[agent].replace("--network.hidden 16 16", "--network.hidden 16 16 16")
    if agent is dqn:
        small += " --total-steps 256 --stream.period 100 --probes.every 0"
    line = [*f"{small} {words}".replace("_", "-").split(), "--runs-dir", str(tmp_path)]
    args = cli(agent.Args, agent.PRESETS, line)
    fresh, seen = {}, []
    begin, end = Run.__init__, Run.finish

    def begin_run(self, *arguments, **options):
        fresh.update(
            {name: copy.deepcopy(part.state_dict()) for name, part in options.items() if name in KEPT}
        )
        fresh["stream"] = copy.deepcopy(arguments[2].state_dict())
        begin(self, *arguments, **options)

    def finish(self, network):
        for name, form in fresh.items():
            check_form(self.parts[name].state_dict(), form)
            seen.append(name)
        check_state(json.loads(json.dumps(self._state(), default=lambda value: None)))
        return end(self, network)

    monkeypatch.setattr(Run, "__init__", begin_run)
    monkeypatch.setattr(Run, "finish", finish)
    agent.main(args)
    assert {"agent", "optimizer", "methods", "stream"} <= set(seen)


KEPT = ("agent", "target", "optimizer", "methods", "rewards")
