import dataclasses
import json
import re

import gymnasium as gym
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from neoteny.agents import dqn
from neoteny.agents.dqn import Args, QNetwork, dqn_loss, epsilon_at, gradient_steps, td_targets, update_target
from neoteny.agents.networks import NetworkConfig
from neoteny.agents.rewards import RewardConfig
from neoteny.configs.cli import launch, override
from neoteny.configs.dqn import PRESETS
from neoteny.envs import StreamConfig, stream
from neoteny.envs.single.engine import SingleConfig
from neoteny.optim import AdamConfig, AdamOConfig, AdamWConfig, Learner, Methods, MuonConfig
from neoteny.runners.disk.folder import run_folder
from neoteny.runners.probes import ProbeConfig
from neoteny.runners.replay import Batch
from tests.events import scalars
from tests.killed import die
from tests.kinds import available, one_of_each_kind, stream_of
from tests.simple_envs import PayOrToil
from tests.simple_methods import SquaresConfig, stepped


def small(tmp_path, id, **changes):
    defaults = {
        "total_steps": 2048, "num_envs": 4, "train_every": 8, "log_every": 256, "learning_starts": 256,
        "batch_size": 32, "buffer_size": 1000, "probes": ProbeConfig(every=0), "eps_steps": 1000,
        "optim": AdamConfig(),
    }  # fmt: skip
    return Args(stream=StreamConfig(id), runs_dir=tmp_path, **{**defaults, **changes})


def batch_of(returns, discounts):
    """Transitions from anywhere to the three corners of a triangle."""
    count = len(returns)
    nothing = torch.zeros(count)
    return Batch(
        nothing, nothing.long(), torch.tensor(returns), torch.tensor(discounts), torch.eye(3), nothing + 1
    )


def linear(weight):
    """A network whose values of corner ``i`` are row ``i``."""
    layer = nn.Linear(3, 2, bias=False)
    layer.weight.data = torch.tensor(weight).T
    return layer


def test_targets_by_hand():
    agent = linear([[1.0, 2.0], [4.0, 3.0], [0.0, 5.0]])  # prefers 1, 0, 1
    target = linear([[10.0, 20.0], [30.0, 40.0], [50.0, 60.0]])
    batch = batch_of([1.0, 2.0, 3.0], [0.9, 0.81, 0.0])  # one step, two steps, terminated
    assert td_targets(agent, target, batch, double=True).tolist() == pytest.approx(
        [1 + 0.9 * 20, 2 + 0.81 * 30, 3]
    )
    assert td_targets(agent, target, batch, double=False).tolist() == pytest.approx(
        [1 + 0.9 * 20, 2 + 0.81 * 40, 3]
    )


def test_loss_by_hand():
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], requires_grad=True)
    actions, targets = torch.tensor([1, 0, 0]), torch.tensor([2.5, 0.0, 100.0])
    loss, stats = dqn_loss(values, actions, targets, weights=torch.tensor([1.0, 1.0, 0.0]))
    # Quadratic within 1, linear beyond; the third is no transition.
    assert loss.item() == pytest.approx((0.5 * 0.5**2 + (3 - 0.5)) / 3)
    assert stats.tolist() == pytest.approx([loss.item(), (2 + 3 + 5) / 3])
    loss.backward()
    assert values.grad.flatten().tolist() == pytest.approx([0, -0.5 / 3, 1 / 3, 0, 0, 0])


METHODS = {"none": None, "apart": SquaresConfig(coef=0.1), "clipped": SquaresConfig(coef=0.1, clipped=True)}


@pytest.mark.parametrize("max_grad_norm", [1e-2, 1e3])
@pytest.mark.parametrize("step", ["sgd", "adam"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("double", [False, True])
def test_an_update_by_hand(double, method, step, max_grad_norm):
    torch.manual_seed(0)
    args = Args(double=double, max_grad_norm=max_grad_norm)
    agent, target = (QNetwork(StreamConfig("Identity-v0").make(1), NetworkConfig(hidden=(8,))) for _ in "ab")
    target.requires_grad_(False)
    lr, config = 0.05, METHODS[method]
    optimizer = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[step](agent.parameters(), lr=lr)
    methods = Methods([config] if config else [], Learner(agent, optimizer, lambda: agent, target))
    batch = Batch(
        observations=torch.randn(16, 4),
        actions=torch.randint(4, (16,)),
        returns=3 * torch.randn(16),
        discounts=torch.tensor([0.9, 0.0]).repeat(8),
        next_observations=torch.randn(16, 4),
        weights=torch.tensor([1.0, 1.0, 1.0, 0.0]).repeat(4),
    )
    for parameter in agent.parameters():
        parameter.grad = torch.full_like(parameter, torch.nan)  # left over, and not to be added to

    taken = agent(batch.observations)[range(16), batch.actions]
    after = target(batch.next_observations)
    best = (agent(batch.next_observations) if double else after).argmax(1)
    errors = taken - (batch.returns + batch.discounts * after[range(16), best])
    assert (errors.abs() > 1).float().mean() not in (0, 1)
    huber = torch.where(errors.abs() < 1, errors.square() / 2, errors.abs() - 0.5)
    loss = (batch.weights * huber).sum() / 16
    weights = list(agent.parameters())
    before = torch.cat([weight.detach().flatten() for weight in weights])
    gradients = list(torch.autograd.grad(loss, weights))
    penalties = [config.coef * weight.detach() for weight in weights] if config else []
    expected, norm = stepped(
        [weight.detach().clone() for weight in weights], gradients, penalties, config, max_grad_norm, step, lr
    )
    of_target = [weight.clone() for weight in target.parameters()]
    by_hand = [loss.item(), taken.mean().item(), norm]

    stats = dqn.update(agent, target, optimizer, methods, batch, args)
    assert stats.shape == (len(dqn.STATS),)
    assert not stats.requires_grad
    assert stats.tolist() == pytest.approx(by_hand, rel=1e-4, abs=1e-6)
    for parameter, hand in zip(agent.parameters(), expected):
        torch.testing.assert_close(parameter.detach(), hand, rtol=0, atol=1e-6 if step == "sgd" else 1e-4)
    assert all(torch.equal(weight, was) for weight, was in zip(target.parameters(), of_target))
    assert methods.steps == 0  # it is the loop that counts them
    if config:
        squares = methods.methods["squares"]
        assert squares.calls == ["penalty", "after_step"]
        assert squares.batches[0] is batch
        after_it = torch.cat([weight.detach().flatten() for weight in agent.parameters()])
        assert torch.equal(squares.weights[0], before)
        assert torch.equal(squares.weights[1], after_it)


def test_gradient_steps_are_numbered_from_the_first_on():
    args = Args(learning_starts=1024, train_every=8, gradient_steps=3)
    numbers = [list(gradient_steps(steps, args)) for steps in (8, 1016, 1024, 1032, 1040)]
    assert numbers == [[], [], [0, 1, 2], [3, 4, 5], [6, 7, 8]]


def test_a_dueling_network_by_hand(tmp_path):
    network = QNetwork(StreamConfig("Identity-v0").make(1), NetworkConfig(hidden=(2,)), dueling=True)
    network.torso = nn.Flatten()
    network.head.value = linear([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])
    network.head.value.weight.data = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    network.head.advantage.weight.data = 2 * torch.eye(4)
    network.head.advantage.bias.data = torch.tensor([0.0, 0.0, 4.0, 0.0])
    values = network(torch.eye(4))
    # 2 where the action is the hot unit, 4 for the third, less their mean of 1.5.
    expected = 2 * torch.eye(4) + torch.tensor([0, 0, 4, 0]) - 1.5 + torch.arange(1.0, 5.0)[:, None]
    torch.testing.assert_close(values, expected)


def test_epsilon_falls_and_stays():
    shares = [epsilon_at(step, 1.0, 0.1, 100) for step in (0, 50, 100, 10_000)]
    assert shares == pytest.approx([1.0, 0.55, 0.1, 0.1])


def test_actions_are_the_best_or_any():
    network = QNetwork(StreamConfig("Identity-v0").make(1), NetworkConfig())
    observations = torch.eye(4).repeat(1000, 1)
    best = network(observations).argmax(1)
    assert torch.equal(network.act(observations, 0.0), best)
    torch.manual_seed(0)
    other = (network.act(observations, 0.4) != best).float().mean().item()
    assert other == pytest.approx(0.4 * 3 / 4, abs=0.03)


def test_the_target_network_follows():
    target, agent = linear([[0.0, 0.0]] * 3), linear([[1.0, 2.0]] * 3)
    update_target(target, agent, 0.25)
    assert target.weight.T.tolist() == [[0.25, 0.5]] * 3
    update_target(target, agent, 1.0)
    assert torch.equal(target.weight, agent.weight)
    agent.weight.data += 1
    assert not torch.equal(target.weight, agent.weight)


def trained_values(monkeypatch, tmp_path, id, observations, **changes):
    """The mean value of observations, gamma = 0.9, after training."""
    networks = []
    monkeypatch.setattr(dqn.Run, "finish", lambda self, agent: networks.append(agent))
    changes = {"total_steps": 2048, "gamma": 0.9, "lr": 3e-3, "target_every": 10, "train_every": 4} | changes
    changes = {"rewards": RewardConfig("none")} | changes
    dqn.main(small(tmp_path, id, **changes))
    return networks[0](observations).mean(1).tolist()


# The observation does not say how many of five steps are left, so value v is the mean of what they lead to:
# with one step (4 (1 + 0.9 v) + 1) / 5; with three (2 (2.71 + 0.729 v) + 2.71 + 1.9 + 1) / 5.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("id", "n_step", "value"),
    [("Constant-v0", 1, 10.0), ("Constant-v0", 3, 10.0), ("Ending-v0", 1, 3.571), ("Ending-v0", 3, 3.114)],
)
def test_the_value_of_an_endless_and_of_an_ending_task(id, n_step, value, monkeypatch, tmp_path):
    # Small rewards, for errors on which the loss is quadratic and so its minimum the mean.
    changes = {"n_step": n_step, "rewards": RewardConfig("none", scale=0.1)}
    (found,) = trained_values(monkeypatch, tmp_path, id, torch.ones(1, 2), **changes)
    assert found == pytest.approx(0.1 * value, abs=0.05)


@pytest.fixture
def pay_and_toil():
    """A stream that changes between two endless tasks after every fifth step of four sub-environments."""
    stream("PayAndToil-v0", period=4 * 5, tasks=2)(PayOrToil)
    yield "PayAndToil-v0"
    del gym.registry["PayAndToil-v0"]


@pytest.mark.slow
@pytest.mark.parametrize("n_step", [1, 3])
def test_no_value_leaks_through_a_switch(monkeypatch, tmp_path, pay_and_toil, n_step):
    values = trained_values(monkeypatch, tmp_path, pay_and_toil, torch.eye(2), n_step=n_step)
    assert values == pytest.approx([10.0, 0.0], abs=0.6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{}, {"dueling": True, "double": False}, {"tau": 0.05, "target_every": 1}]
)
def test_identity_is_learnt(tmp_path, changes):
    args = small(tmp_path, "Identity-v0", gamma=0.0, lr=3e-3, eps_end=0.0, **changes)
    assert dqn.main(args)["visits"][-1]["return_at_end"] > 9.5


OPTIMIZERS = [AdamConfig(), AdamWConfig(), AdamOConfig(), MuonConfig()]


@pytest.mark.slow
@pytest.mark.parametrize("optim", OPTIMIZERS, ids=lambda optim: optim.name)
def test_every_optimizer_runs_and_is_measured(tmp_path, optim):
    dqn.main(
        small(tmp_path, "cartpole-rotations", optim=optim, probes=ProbeConfig(every=2), total_steps=1024)
    )
    events = scalars(tmp_path / "cartpole-rotations" / "dqn" / optim.name / "s1")
    assert [step for step, _ in events["charts/epsilon"]] == [256, 512, 768, 1024]
    assert [step for step, _ in events["losses/td_loss"]] == [256, 512, 768, 1024]
    tags = ("losses/q_values", "plasticity/dormant_0.025/max", "update/grad_norm", "replay/task_0")
    assert events.keys() >= set(tags)
    assert "isometry/sigma_max/q.linear1" in events


def test_learning_starts(tmp_path):
    dqn.main(small(tmp_path, "cartpole-rotations", learning_starts=600, total_steps=1024))
    events = scalars(tmp_path / "cartpole-rotations" / "dqn" / "adam" / "s1")
    assert [step for step, _ in events["losses/td_loss"]] == [768, 1024]


def test_transitions_are_stored_with_the_task_in_which_they_were_made(tmp_path, monkeypatch):
    """Those of the last step of a visit too, after which the stream is at the next task."""
    shares = []
    monkeypatch.setattr(dqn.ReplayMemory, "discard", lambda self: shares.append(self.tasks()))
    args = small(tmp_path, "cartpole-rotations", total_steps=256)
    dqn.main(dataclasses.replace(args, stream=dataclasses.replace(args.stream, period=64)))
    assert shares == [dict.fromkeys(range(4), 0.25)]


def test_the_target_network_is_updated_at_intervals(tmp_path, monkeypatch):
    made, at = [], []
    update = dqn.update
    monkeypatch.setattr(dqn, "update", lambda *args: (made.append(1), update(*args))[1])
    monkeypatch.setattr(dqn, "update_target", lambda *_: at.append(len(made)))
    dqn.main(small(tmp_path, "CartPole-v1", target_every=50, total_steps=1024))
    assert len(made) == 194  # 2 gradient steps after every 8 steps from step 256 on
    assert at == [1, 51, 101, 151]


@pytest.mark.slow
def test_epsilon_restarts_only_with_its_flag(tmp_path):
    for restart in (False, True):
        args = small(tmp_path / str(restart), "cartpole-rotations", eps_restart=restart, eps_steps=256)
        dqn.main(dataclasses.replace(args, stream=StreamConfig(args.stream.id, period=512)))
    folders = (run_folder("dqn", small(tmp_path / name, args.stream.id)) for name in ("False", "True"))
    one, two = ([value for _, value in scalars(folder)["charts/epsilon"]] for folder in folders)
    assert one[1:] == pytest.approx([0.05] * 7)
    assert two[1::2] == pytest.approx([0.05] * 4)
    assert min(two[::2]) > 0.05


@pytest.mark.slow
def test_rewards_are_clipped_for_learning_only(tmp_path, monkeypatch):
    kept = []
    add = dqn.ReplayMemory.add
    monkeypatch.setattr(
        dqn.ReplayMemory, "add", lambda self, *step: (kept.append(step[2]), add(self, *step))[1]
    )
    summary = dqn.main(
        small(
            tmp_path,
            "Acrobot-v1",
            rewards=RewardConfig("none", clip=True, scale=3.0),
            total_steps=2048,
        )
    )
    assert set(torch.cat(kept).tolist()) <= {-3.0, 0.0}
    assert summary["visits"][0]["return_at_end"] >= -500


@pytest.mark.slow
@pytest.mark.parametrize(
    ("id", "memory"),
    [
        ("cartpole-rotations", "device"),
        ("grid-goals", "disk"),
        ("atari", "disk"),
    ],
)
def test_a_killed_run_goes_on_as_if_nothing_had_happened(id, memory, tmp_path, monkeypatch):
    changes = {
        "memory": memory,
        "total_steps": 1024,
        "log_every": 128,
        "checkpoint_every": 250,
        "n_step": 2,
        "probes": ProbeConfig(every=3, pictures=id == "cartpole-rotations"),
        "buffer_size": 400,
    }
    stream = StreamConfig(id, period=350)
    if id == "atari":
        pytest.importorskip("ale_py")
        stream = dataclasses.replace(GAMES, period=200)
        changes |= {"total_steps": 384, "log_every": 64, "learning_starts": 128, "checkpoint_every": 128}
        changes |= {"probes": ProbeConfig(every=3, full_every=0, samples=8, pictures=False), "batch_size": 8}
        changes |= {"buffer_size": 180, "network": NetworkConfig(hidden=(16,)), "train_every": 32}
    outcomes = []
    for name, steps in (("calm", ()), ("killed", (300,) if id == "atari" else (152, 652, 656, 952))):
        args = dataclasses.replace(small(tmp_path / name, id, **changes), stream=stream)
        for step in steps:
            die(dqn, args, step, monkeypatch)
        dqn.main(args)
        folder = run_folder("dqn", args)
        points = {
            tag: values
            for tag, values in scalars(folder).items()
            if not tag.startswith(("time/", "charts/SPS"))
        }
        outcomes.append((points, (folder / "checkpoint" / "weights.safetensors").read_bytes()))
        assert not (folder / "replay").exists()
    assert outcomes[0] == outcomes[1]
    assert len(outcomes[0][0]) > 30


def test_probes_do_not_disturb_training(tmp_path):
    weights = []
    often = ProbeConfig(every=2, full_every=1, ntk_samples=8, plasticity_every=1, plasticity_steps=10)
    for probes in (ProbeConfig(every=0), often):
        folder = tmp_path / str(probes.every)
        dqn.main(small(folder, "cartpole-rotations", total_steps=1024, dueling=True, probes=probes))
        weights.append(next(folder.glob("**/weights.safetensors")).read_bytes())
    assert weights[0] == weights[1]
    events = scalars(next(folder.glob("**/args.json")).parent)
    assert [step for step, _ in events["plasticity/lost/q"]] == [256, 512, 1024]


def test_a_run_without_replay_goes_on_with_other_episodes(tmp_path, monkeypatch, capsys):
    cuts, cut = [], dqn.ReplayMemory.cut
    monkeypatch.setattr(dqn.ReplayMemory, "cut", lambda self: (cuts.append(self.age.tolist()), cut(self)))
    args = small(tmp_path, "cartpole-rotations", checkpoint_every=500)
    die(dqn, args, 1300, monkeypatch)
    dqn.main(
        dataclasses.replace(args, stream=dataclasses.replace(args.stream, single=SingleConfig(replay=False)))
    )
    assert "but not bit for bit" in capsys.readouterr().out
    assert len(cuts) == 1
    assert any(cuts[0])
    (meta,) = tmp_path.rglob("meta.json")
    assert "--stream.single.no-replay" in str(json.loads(meta.read_text())["resume_exact"])


GAMES = StreamConfig("atari", games=("Breakout", "Pong"), period=96, audit="off")


@pytest.mark.slow
@pytest.mark.parametrize("memory", ["disk", "device"])
def test_sampled_stacks_are_the_streams_own(memory, tmp_path):
    pytest.importorskip("ale_py")
    envs = 4
    stream = GAMES.make(envs, device="cpu")
    spaces = stream.single_observation_space, stream.single_action_space
    folder = tmp_path / "replay" if memory == "disk" else None
    kept = dqn.ReplayMemory(160, envs, *spaces, stream.frame_stack, folder=folder)
    kept.open()
    observation, _ = stream.reset()
    lived, torch_rng = [], torch.Generator().manual_seed(0)
    for _ in range(100):  # four switches, and each place filled twice
        actions = torch.randint(18, (envs,), generator=torch_rng)
        following, reward, terminated, truncated, info = stream.step(actions)
        final = info.get("final_obs", following)
        kept.add(observation, actions, reward, terminated, truncated, final, info["task"])
        lived.append((observation, truncated & ~terminated, final))
        observation = following
    stream.close()
    oldest, end = kept.bounds()
    checked = 0
    for env in range(envs):
        place = 0
        for seen, cut, after in lived:
            if oldest[env] <= place < end[env]:
                batch = kept.gather(torch.tensor([env]), torch.tensor([place]))
                assert torch.equal(batch.observations[0], seen[env])
                assert batch.discounts == 0 or torch.equal(batch.next_observations[0], after[env])
                assert batch.weights == 1
                checked += 1
            place += 1 + int(cut[env])
    assert checked >= 150
    assert set(kept.tasks()) == {0, 1}


@pytest.mark.parametrize("memory", ["disk", "device"])
def test_what_the_memory_needs_is_reported_before_anything_is_written(memory, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["dqn.py", "--memory", memory, "--buffer-size", str(10**12)])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit:
        launch(dqn.main, Args, {})
    assert exit.value.code == 2
    output = r"error: the replay memory needs [\d,]{17,} bytes and [\d,]+ are free (on|in)"
    assert re.match(output, capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_damaged_files_of_a_memory_end_a_run(tmp_path, monkeypatch, capsys):
    args = small(tmp_path, "cartpole-rotations", memory="disk", checkpoint_every=500)
    die(dqn, args, 1300, monkeypatch)
    path = run_folder("dqn", args) / "replay" / "rewards.npy"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(SystemExit) as exit:
        dqn.main(args)
    assert exit.value.code == 2
    assert "cannot be resumed: memory" in capsys.readouterr().err


@pytest.mark.parametrize("preset", available(PRESETS))
def test_every_preset_fits_its_stream(preset):
    args = override(Args(), PRESETS[preset])
    args.stream.check(args.num_envs)
    stream = stream_of(args.stream)
    agent = QNetwork(stream, args.network, args.dueling, args.amp)
    assert agent(agent.example).shape == (1, stream.single_action_space.n)


@pytest.mark.slow
@pytest.mark.parametrize("preset", one_of_each_kind(PRESETS))
def test_every_kind_of_preset_runs(tmp_path, preset):
    args = override(Args(), PRESETS[preset])
    args = dataclasses.replace(args, num_envs=min(2, args.train_every))
    few = max(args.batch_size, args.n_step * args.num_envs)
    few_steps = dict.fromkeys(("total_steps", "log_every"), args.train_every)
    short = {**few_steps, "learning_starts": few, "buffer_size": few}
    stream = dataclasses.replace(args.stream, audit="off")  # audits have their own tests
    args = dataclasses.replace(args, **short, stream=stream, runs_dir=tmp_path, probes=ProbeConfig(every=0))
    assert dqn.main(args)["visits"]


def test_bfloat16_is_for_the_networks_alone(tmp_path):
    dqn.main(small(tmp_path, "grid-layouts", total_steps=512, probes=ProbeConfig(every=1), amp="bf16"))
    (weights,) = tmp_path.glob("**/weights.safetensors")
    assert {weight.dtype for weight in load_file(weights).values()} == {torch.float32}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("memory", ["disk", "device"])
@pytest.mark.parametrize("id", ["cartpole-rotations", "grid-layouts"])
def test_dqn_runs_on_the_gpu(tmp_path, id, memory):
    assert dqn.main(
        small(tmp_path, id, device="cuda", probes=ProbeConfig(every=1), total_steps=512, memory=memory)
    )


@pytest.mark.parametrize(
    "bad",
    [
        {"total_steps": 0},
        {"lr": -1.0},
        {"tau": 0.0},
        {"tau": 1.5},
        {"eps_end": 2.0},
        {"train_every": 6},
        {"log_every": 100},
        {"learning_starts": 10},
        {"learning_starts": 5000},
        {"n_step": 100},
        {"device": "tpu"},
    ],
)
def test_bad_arguments_are_refused(bad, tmp_path):
    with pytest.raises(ValueError, match="--"):
        small(tmp_path, "cartpole-rotations", **bad)


def test_continuous_actions_are_refused(tmp_path, capsys):
    with pytest.raises(ValueError, match="discrete"):
        QNetwork(StreamConfig("Pendulum-v1").make(1), NetworkConfig())
    with pytest.raises(SystemExit) as exit:
        dqn.main(small(tmp_path, "Pendulum-v1"))
    assert exit.value.code == 2
    assert capsys.readouterr().err.startswith("error: the agent needs a discrete action space, not Box(")
    assert not list(tmp_path.iterdir())
