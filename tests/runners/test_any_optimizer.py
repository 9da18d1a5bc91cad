"""Any optimizer of torch, or of a user, resumes exactly: states of any shape and type."""

import inspect

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from neoteny.configs.flags import OPTIMIZERS
from neoteny.runners.disk.checkpoint import load_checkpoint, save_checkpoint
from neoteny.runners.optimizers import check_optimizer, load_optimizer
from tests.killed import die
from tests.pages import ROOT
from tests.runners.test_exactness import load, meta, modules, small  # noqa: F401

ALL = {
    name: kind
    for name, kind in vars(torch.optim).items()
    if inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
}
NEEDS_CLOSURE = {"LBFGS"}
SPARSE = {"SparseAdam"}  # its gradients cannot come from an agent's networks
OPTIONS = {
    "SGD": [{}, {"momentum": 0.9, "nesterov": True}],
    "Adam": [{}, {"amsgrad": True}, {"fused": True}],
    "RMSprop": [{}, {"momentum": 0.9, "centered": True}],
}
CASES = [
    (name, options)
    for name in sorted(ALL.keys() - NEEDS_CLOSURE - SPARSE)
    for options in OPTIONS.get(name, [{}])
]


class Peculiar(torch.optim.Optimizer):
    """States of every type: text, numbers, None, lists, other shapes and dtypes."""

    def __init__(self, params, lr=1e-3):
        super().__init__(params, {"lr": lr, "names": ["a", "b"], "pair": (None, 1e-3)})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for param in group["params"]:
                state = self.state[param]
                if not state:
                    state |= {"mode": "slow", "n": 0, "none": None, "old": [], "scale": 1.0, "fast": False}
                    state["sum"] = torch.zeros(param.shape, dtype=torch.float64)
                    state["row"] = torch.zeros(param.shape[0], dtype=torch.int64)
                    state["nested"] = {"mean": torch.zeros(3, dtype=torch.float64), "text": "x"}
                state["n"] += 1
                state["mode"] += "er"
                state["old"] = [*state["old"], param.grad.double().mean()][-3:]
                state["sum"] += param.grad.double() * 1e-9 + 1
                state["row"] += 2**40 + 1
                state["nested"]["mean"] += sum(state["old"]) / 3
                rate = 1e-6 * group["lr"] * len(state["mode"]) * state["n"]
                param.sub_((rate * state["sum"] * state["nested"]["mean"][0]).to(param.dtype))


def network():
    """Matrices only, since torch's Muon takes nothing else; one of them in another memory layout."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 4, bias=False), nn.Tanh(), nn.Linear(4, 3, bias=False))
    net[0].weight = nn.Parameter(net[0].weight.detach().t().contiguous().t())
    return net


def train(net, optimizer, steps):
    for seed in steps:
        x = torch.randn(8, 5, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        net(x).square().sum().backward()
        optimizer.step()


def leaves(value):
    if isinstance(value, dict):
        return {key: leaves(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [leaves(item) for item in value]
    return (value.dtype, value.tolist()) if isinstance(value, torch.Tensor) else (type(value), value)


def optimizer_of(net, name, options):
    if name in OPTIMIZERS:  # our own
        return OPTIMIZERS[name](**options).build(net, 1e-2)
    return ALL.get(name, Peculiar)(net.parameters(), lr=1e-2, **options)


OURS = [(name, {"sigma": 0.0} if name == "upgd" else {}) for name in OPTIMIZERS]  # without its noise


@pytest.mark.parametrize(("name", "options"), [*CASES, ("Peculiar", {}), *OURS], ids=str)
def test_every_optimizer_goes_on_from_a_checkpoint_bit_for_bit(name, options, tmp_path):
    nets, optimizers = zip(*((net, optimizer_of(net, name, options)) for net in (network(), network())))
    train(nets[0], optimizers[0], range(5))
    check_optimizer(optimizers[0])
    state = {"net": nets[0].state_dict(), "optimizer": optimizers[0].state_dict()}
    save_checkpoint(tmp_path, 5, state)
    loaded = load_checkpoint(tmp_path)
    nets[1].load_state_dict(loaded["net"])
    load_optimizer(optimizers[1], loaded["optimizer"])
    assert leaves(optimizers[1].state_dict()) == leaves(optimizers[0].state_dict())
    for net, optimizer in zip(nets, optimizers):
        train(net, optimizer, range(5, 12))
    assert leaves(dict(nets[0].state_dict())) == leaves(dict(nets[1].state_dict()))
    assert leaves(optimizers[1].state_dict()) == leaves(optimizers[0].state_dict())


def test_moments_have_their_parameters_memory_layout(tmp_path):
    net = network()
    optimizer = torch.optim.Adam(net.parameters())
    train(net, optimizer, range(2))
    save_checkpoint(tmp_path, 0, {"optimizer": optimizer.state_dict()})
    again = torch.optim.Adam(net.parameters())
    load_optimizer(again, load_checkpoint(tmp_path)["optimizer"])
    assert again.state[net[0].weight]["exp_avg"].stride() == net[0].weight.stride() == (1, 4)


def test_a_fused_kernel_gets_no_state_of_another_shape():
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), fused=True)
    train(net, optimizer, range(2))
    state = optimizer.state_dict()
    state["state"][0]["exp_avg"] = torch.zeros(2)
    with pytest.raises(ValueError, match=r"exp_avg has shape \(2,\) instead of \(4, 5\)"):
        load_optimizer(torch.optim.Adam(net.parameters(), fused=True), state)


def copied(folder, optimizer):
    """A copy of PPO that has another optimizer."""
    source = (ROOT / "agents" / "ppo.py").read_text()
    built = "args.optim.build(agent, args.lr, exclude=heads(agent))"
    assert source.count(built) == 1
    path = folder / "my_ppo.py"
    path.write_text(source.replace(built, f"torch.optim.{optimizer}(agent.parameters(), lr=args.lr)"))
    return load(path)


@pytest.mark.parametrize("name", ["NAdam", "ASGD", "Adafactor", "RMSprop"])
def test_a_copied_agent_with_another_optimizer_resumes_exactly(name, tmp_path, monkeypatch, capsys, modules):  # noqa: F811
    agent = copied(tmp_path, name)
    outcomes = []
    for case in ("calm", "killed"):
        args = small(tmp_path / case, "CartPole-v1", agent, total_steps=192)
        if case == "killed":
            die(agent, args, 112, monkeypatch)
        agent.main(args)
        (path,) = (tmp_path / case).glob("runs/*/*/*/s1/checkpoint/weights.safetensors")
        assert path.parts[-5:-2] == ("my_ppo", name.lower(), "s1")
        outcomes.append({key: tensor.tolist() for key, tensor in load_file(path).items()})
    assert outcomes[0] == outcomes[1]
    assert "exactly" in capsys.readouterr().out
    assert meta(tmp_path / "killed")["resume_exact"] is True


def test_an_optimizer_that_needs_a_closure_is_refused(tmp_path, capsys, modules):  # noqa: F811
    agent = copied(tmp_path, "LBFGS")
    with pytest.raises(SystemExit) as exit:
        agent.main(small(tmp_path, "CartPole-v1", agent))
    assert exit.value.code == 2
    assert "LBFGS cannot be used: each of its steps needs a closure" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
