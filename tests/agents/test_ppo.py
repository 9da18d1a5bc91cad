import dataclasses
import shutil

import gymnasium as gym
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from neoteny.agents import ppo
from neoteny.agents.networks import NetworkConfig
from neoteny.agents.ppo import ActorCritic, Args, Batch, gae, ppo_loss
from neoteny.agents.rewards import RewardConfig
from neoteny.configs.cli import override
from neoteny.configs.ppo import PRESETS
from neoteny.envs import Stream, StreamConfig, stream
from neoteny.optim import AdamConfig, AdamOConfig, AdamWConfig, Learner, Methods, MuonConfig
from neoteny.runners.disk.checkpoint import load_checkpoint
from neoteny.runners.disk.folder import run_folder
from neoteny.runners.probes import ProbeConfig
from tests.events import scalars
from tests.killed import die
from tests.kinds import available, one_of_each_kind, stream_of
from tests.simple_envs import PayOrToil
from tests.simple_methods import SquaresConfig, stepped


def small(tmp_path, id, **changes):
    defaults = {
        "total_steps": 2048,
        "num_envs": 4,
        "num_steps": 32,
        "probes": ProbeConfig(every=0),
        "optim": AdamConfig(),
    }
    return Args(stream=StreamConfig(id), runs_dir=tmp_path, **{**defaults, **changes})


def test_gae_by_hand():
    # One environment, three steps; the second truncates its episode, whose last observation is worth 10.
    rewards = torch.tensor([[1.0], [2.0], [3.0]])
    values = torch.tensor([[0.5], [1.0], [1.5]])
    done = torch.tensor([[False], [True], [False]])
    final_values = torch.tensor([[0.0], [10.0], [0.0]])
    advantages = gae(rewards, values, done, final_values, torch.tensor([4.0]), gamma=0.5, lam=0.5)
    third = 3 + 0.5 * 4 - 1.5
    second = 2 + 0.5 * 10 - 1.0  # the truncated episode ends here: nothing of the third step enters
    first = 1 + 0.5 * 1.0 - 0.5 + 0.25 * second
    assert advantages.flatten().tolist() == [first, second, third]


def test_gae_of_a_terminated_episode_bootstraps_from_nothing():
    done = torch.tensor([[True]])
    advantages = gae(
        torch.ones(1, 1), torch.zeros(1, 1), done, torch.zeros(1, 1), torch.tensor([7.0]), 0.9, 0.9
    )
    assert advantages.item() == 1.0


def test_gae_with_lambda_1_is_the_discounted_return():
    rewards = torch.arange(1.0, 6.0)[:, None].repeat(1, 2)
    values = torch.randn(5, 2)
    no = torch.zeros(5, 2)
    advantages = gae(rewards, values, no.bool(), no, torch.zeros(2), gamma=0.9, lam=1.0)
    returns = [sum(0.9**j * (i + j + 1) for j in range(5 - i)) for i in range(5)]
    torch.testing.assert_close(advantages + values, torch.tensor(returns)[:, None].repeat(1, 2))


def test_ppo_loss_by_hand():
    # Even odds; ratios 0.5 / 0.25 = 2 and 0.5 / 0.5 = 1; advantages +-0.7071 once normalized.
    batch = Batch(
        observations=torch.zeros(2, 1),
        actions=torch.tensor([0, 1]),
        log_probs=torch.tensor([0.25, 0.5]).log(),
        advantages=torch.tensor([3.0, 1.0]),
        returns=torch.tensor([0.0, 4.0]),
    )
    loss, stats = ppo_loss(
        log_probs=torch.tensor([0.5, 0.5]).log(),
        entropy=torch.full((2,), np.log(2)),
        values=torch.tensor([1.0, 2.0]),
        batch=batch,
        clip=0.2,
        ent_coef=0.1,
        vf_coef=0.5,
    )
    a = 1 / 2**0.5
    policy, value, entropy = -(1.2 * a - a) / 2, 0.5 * (1 + 4) / 2, np.log(2)
    kl, clipfrac = ((2 - 1 - np.log(2)) + 0) / 2, 0.5
    assert stats.tolist() == pytest.approx([policy, value, entropy, kl, clipfrac])
    assert loss.item() == pytest.approx(policy - 0.1 * entropy + 0.5 * value)


def test_entropies_are_averaged_in_the_loss():
    batch = Batch(torch.zeros(2, 1), torch.zeros(2), torch.zeros(2), torch.tensor([1.0, 2.0]), torch.zeros(2))
    entropy = torch.tensor([0.1, 0.5], requires_grad=True)
    loss, stats = ppo_loss(torch.zeros(2), entropy, torch.zeros(2), batch, 0.2, 2.0, 0.5)
    assert stats[2].item() == pytest.approx(0.3)
    loss.backward()
    assert entropy.grad.tolist() == pytest.approx([-1.0, -1.0])
    assert not stats.requires_grad


def test_averages_of_an_update_by_hand():
    stats = torch.tensor([[1.0, 2, 3, 4, 5, 6], [3.0, 2, 5, 4, 7, 8]])
    values, returns = torch.tensor([1.0, 2, 3]), torch.tensor([2.0, 4, 6])
    averages = ppo.average(stats, values, returns)
    assert averages.pop("losses/explained_variance") == 0.75  # 1 - 1 / 4
    assert averages == dict(zip(ppo.STATS, [2.0, 2, 4, 4, 6, 7]))


def test_evaluation_by_hand():
    agent = ActorCritic(StreamConfig("Identity-v0").make(1), NetworkConfig(hidden=(4,)))
    agent.actor, agent.critic = nn.Linear(4, 4), nn.Linear(4, 1, bias=False)
    odds = torch.tensor(
        [[1.0, 1.0, 1.0, 1.0], [1.0, 2.0, 3.0, 4.0], [1e-6, 1.0, 1.0, 8.0], [5.0, 1.0, 1.0, 1.0]]
    )
    agent.actor.weight.data, agent.actor.bias.data = odds.log().T, torch.full((4,), 7.0)
    agent.critic.weight.data = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    actions = torch.tensor([2, 3, 0, 0])
    log_probs, entropy, values = agent.evaluate(torch.eye(4), actions)
    probabilities = odds / odds.sum(1, keepdim=True)  # whatever is added to all logits
    taken = [probabilities[row, action].item() for row, action in enumerate(actions.tolist())]
    assert log_probs.tolist() == pytest.approx(np.log(taken).tolist(), rel=1e-5)
    by_hand = [-sum(p * np.log(p) for p in row) for row in probabilities.tolist()]
    assert entropy.tolist() == pytest.approx(by_hand, rel=1e-5)
    assert entropy[0].item() == pytest.approx(np.log(4))
    assert values.tolist() == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("amp", ["none", "bf16"])
def test_what_was_acted_on_is_evaluated_the_same(shared, amp):
    torch.manual_seed(0)
    agent = ActorCritic(StreamConfig("grid-layouts").make(8), NetworkConfig(), shared, amp)
    observations = torch.randint(0, 3, (50, *agent.example.shape[1:]), dtype=torch.uint8)
    actions, log_probs, values = agent.act(observations)
    for found, expected in zip(agent.evaluate(observations, actions), (log_probs, None, values)):
        if expected is not None:
            assert torch.equal(found, expected)
    assert torch.equal(agent.value(observations), values)
    policy = torch.distributions.Categorical(logits=agent(observations)[0])
    torch.testing.assert_close(policy.log_prob(actions), log_probs)
    torch.testing.assert_close(agent.evaluate(observations, actions)[1], policy.entropy())


METHODS = {"none": None, "apart": SquaresConfig(coef=0.1), "clipped": SquaresConfig(coef=0.1, clipped=True)}


@pytest.mark.parametrize("max_grad_norm", [1e-3, 1e3])
@pytest.mark.parametrize("step", ["sgd", "adam"])
@pytest.mark.parametrize("method", METHODS)
def test_an_update_by_hand(method, step, max_grad_norm):
    torch.manual_seed(0)
    args = Args(clip=0.1, ent_coef=0.03, vf_coef=0.7, max_grad_norm=max_grad_norm)
    agent, lr = ActorCritic(StreamConfig("Identity-v0").make(1), NetworkConfig(hidden=(8,))), 0.05
    optimizer = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[step](agent.parameters(), lr=lr)
    config = METHODS[method]
    methods = Methods([config] if config else [], Learner(agent, optimizer, lambda: agent))
    observations, actions = torch.randn(16, 4), torch.randint(4, (16,))
    batch = Batch(observations, actions, torch.randn(16) - 1.4, torch.randn(16), torch.randn(16))
    for parameter in agent.parameters():
        parameter.grad = torch.full_like(parameter, torch.nan)  # left over, and not to be added to

    hidden = [torch.relu(net.linear1(observations)) for net in (agent.actor, agent.critic)]
    policy = torch.distributions.Categorical(logits=agent.actor.head(hidden[0]))
    values = agent.critic.head(hidden[1])[:, 0]
    log_ratio = policy.log_prob(actions) - batch.log_probs
    ratio = log_ratio.exp()
    advantages = (batch.advantages - batch.advantages.mean()) / batch.advantages.std()
    surrogate = torch.minimum(ratio * advantages, ratio.clip(0.9, 1.1) * advantages).mean()
    value_loss = ((values - batch.returns) ** 2).mean() / 2
    entropy = policy.entropy().mean()
    loss = -surrogate - 0.03 * entropy + 0.7 * value_loss
    weights = list(agent.parameters())
    before = torch.cat([weight.detach().flatten() for weight in weights])
    gradients = list(torch.autograd.grad(loss, weights))
    penalties = [config.coef * weight.detach() for weight in weights] if config else []
    expected, norm = stepped(
        [weight.detach().clone() for weight in weights], gradients, penalties, config, max_grad_norm, step, lr
    )
    outside = ((ratio - 1).abs() > 0.1).float().mean()
    losses = torch.stack((-surrogate, value_loss, entropy, (ratio - 1 - log_ratio).mean(), outside))
    by_hand = [*losses.tolist(), norm]

    stats = ppo.update(agent, optimizer, methods, batch, args)
    assert stats.shape == (len(ppo.STATS),)
    assert not stats.requires_grad
    assert stats.tolist() == pytest.approx(by_hand, rel=1e-4, abs=1e-6)
    assert 0 < outside < 1
    for parameter, hand in zip(agent.parameters(), expected):
        torch.testing.assert_close(parameter.detach(), hand, rtol=0, atol=1e-6 if step == "sgd" else 1e-4)
    assert methods.steps == 0  # it is the loop that counts them
    if config:
        squares = methods.methods["squares"]
        assert squares.calls == ["penalty", "after_step"]
        assert squares.batches[0] is batch
        after = torch.cat([weight.detach().flatten() for weight in agent.parameters()])
        assert torch.equal(squares.weights[0], before)
        assert torch.equal(squares.weights[1], after)


FIVE_STEPS = 2.63  # on average (1 - 0.9^j) / 0.1 over the j = 1..5 steps that are left


def trained_values(monkeypatch, tmp_path, id, observations):
    """The values of observations, gamma = 0.9, after training."""
    critics = []
    monkeypatch.setattr(ppo.Run, "finish", lambda self, agent: critics.append(agent))
    # rollouts of 40 steps hold each of the five, of each of two tasks, equally often
    raw = RewardConfig("none")
    ppo.main(small(tmp_path, id, total_steps=3200, num_steps=40, gamma=0.9, lr=5e-3, rewards=raw))
    return critics[0].value(observations).tolist()


def trained_value(monkeypatch, tmp_path, id):
    """The value of the only observation."""
    return trained_values(monkeypatch, tmp_path, id, torch.ones(1, 2))[0]


def no_bootstrap(rewards, values, done, final_values, *rest):
    """Take every truncation for a termination."""
    return gae(rewards, values, done, torch.zeros_like(final_values), *rest)


def test_value_of_an_endless_task_is_reached_through_time_limits(monkeypatch, tmp_path):
    assert trained_value(monkeypatch, tmp_path, "Constant-v0") == pytest.approx(10.0, abs=0.3)


def test_value_of_an_ending_task_counts_nothing_after_its_end(monkeypatch, tmp_path):
    assert trained_value(monkeypatch, tmp_path, "Ending-v0") == pytest.approx(FIVE_STEPS, abs=0.4)


def test_value_is_missed_if_truncation_is_taken_for_termination(monkeypatch, tmp_path):
    monkeypatch.setattr(ppo, "gae", no_bootstrap)
    assert trained_value(monkeypatch, tmp_path, "Constant-v0") == pytest.approx(FIVE_STEPS, abs=0.4)


@pytest.fixture
def pay_and_toil():
    """A stream that changes between two endless tasks after every fifth step of four sub-environments."""
    stream("PayAndToil-v0", period=4 * 5, tasks=2)(PayOrToil)
    yield "PayAndToil-v0"
    del gym.registry["PayAndToil-v0"]


@pytest.mark.slow
def test_values_of_two_tasks_do_not_leak_through_their_boundary(monkeypatch, tmp_path, pay_and_toil):
    values = trained_values(monkeypatch, tmp_path, pay_and_toil, torch.eye(2))
    assert values == pytest.approx([10.0, 0.0], abs=0.4)


@pytest.mark.slow
def test_values_at_a_boundary_are_missed_if_the_switch_is_taken_for_termination(
    monkeypatch, tmp_path, pay_and_toil
):
    monkeypatch.setattr(ppo, "gae", no_bootstrap)
    values = trained_values(monkeypatch, tmp_path, pay_and_toil, torch.eye(2))
    assert values == pytest.approx([FIVE_STEPS, 0.0], abs=0.4)


@pytest.mark.slow
def test_a_value_that_leaks_through_a_switch_is_found(monkeypatch, tmp_path, pay_and_toil):
    def step_tensors(self, actions, step_tensors=Stream.step_tensors):
        step = step_tensors(self, actions)
        if step.final_observations is None:
            return step
        return step._replace(final_observations=step.observations)

    monkeypatch.setattr(Stream, "step_tensors", step_tensors)
    pay, toil = trained_values(monkeypatch, tmp_path, pay_and_toil, torch.eye(2))
    # What is left of a task counts FIVE_STEPS * reward, what follows it the share 1 - 0.1 * FIVE_STEPS of
    # the other task's value: pay = FIVE_STEPS + share * toil, toil = share * pay.
    share = 1 - 0.1 * FIVE_STEPS
    wrong = FIVE_STEPS / (1 - share**2)
    assert (pay, toil) == pytest.approx((wrong, share * wrong), abs=0.4)  # 5.75 and 4.24


def test_identity_is_learnt(tmp_path):
    summary = ppo.main(small(tmp_path, "Identity-v0", total_steps=4096, gamma=0.0, lr=3e-3))
    assert summary["visits"][-1]["return_at_end"] > 9.5


OPTIMIZERS = [AdamConfig(), AdamWConfig(), AdamOConfig(), MuonConfig()]


@pytest.mark.slow
@pytest.mark.parametrize("optim", OPTIMIZERS, ids=lambda optim: optim.name)
def test_every_optimizer_runs_and_anneals_every_group(tmp_path, optim):
    changes = {"optim": optim, "probes": ProbeConfig(every=2), "anneal_lr": True, "total_steps": 512}
    ppo.main(small(tmp_path, "cartpole-rotations", **changes))
    events = scalars(tmp_path / "cartpole-rotations" / "ppo" / optim.name / "s1")
    rates = [value for _, value in events["charts/learning_rate"]]
    assert rates == pytest.approx([0.001, 0.00075, 0.0005, 0.00025])
    assert "plasticity/dormant_0.025/max" in events


def test_annealing_goes_on_where_a_killed_run_was(tmp_path, monkeypatch):
    rates, weights = {}, []
    for name in ("calm", "killed"):
        changes = {"anneal_lr": True, "checkpoint_every": 128, "optim": AdamOConfig(iso=1.0)}
        args = small(tmp_path / name, "cartpole-rotations", total_steps=1024, **changes)
        folder = run_folder("ppo", args)
        if name == "killed":
            die(ppo, args, 128 * 5 + 64, monkeypatch)
            saved = load_checkpoint(folder / "checkpoint")["parts"]
            assert [group["lr"] for group in saved["optimizer"]["param_groups"]] == [1e-3 * (1 - 4 / 8)] * 2
            assert "annealing" not in saved
        ppo.main(args)
        rates[name] = scalars(folder)["charts/learning_rate"]
        weights.append((folder / "checkpoint" / "weights.safetensors").read_bytes())
    expected = [(128 * update, 1e-3 * (1 - (update - 1) / 8)) for update in range(1, 9)]
    assert [step for step, _ in rates["calm"]] == [step for step, _ in expected]
    assert [rate for _, rate in rates["calm"]] == pytest.approx([rate for _, rate in expected])
    assert rates["killed"] == rates["calm"]
    assert weights[0] == weights[1]


def test_the_learning_rate_in_each_update(tmp_path, monkeypatch):
    used, update = [], ppo.update

    def noting(agent, optimizer, *rest):
        used.append({group["lr"] for group in optimizer.param_groups})
        return update(agent, optimizer, *rest)

    monkeypatch.setattr(ppo, "update", noting)
    for anneal in (False, True):
        args = small(tmp_path / str(anneal), "cartpole-rotations", total_steps=512, epochs=1, minibatches=2)
        ppo.main(dataclasses.replace(args, anneal_lr=anneal, optim=AdamOConfig(), lr=1e-2))
    constant, annealed = used[:8], used[8:]
    assert constant == [{1e-2}] * 8
    assert annealed == [{1e-2 * (1 - done / 4)} for done in (0, 0, 1, 1, 2, 2, 3, 3)]


@pytest.mark.slow
@pytest.mark.parametrize("shared", [False, True])
def test_torsos_are_separate_or_shared(tmp_path, shared):
    ppo.main(
        small(tmp_path, "grid-layouts", total_steps=256, probes=ProbeConfig(every=1), shared_torso=shared)
    )
    (weights,) = tmp_path.glob("**/weights.safetensors")
    names = load_file(weights).keys()
    assert ("shared.conv1.weight" in names) == shared
    assert ("critic.conv1.weight" in names) != shared
    events = scalars(weights.parent.parent)
    assert "isometry/jacobian_distance/actor.input_output/median" in events
    assert "isometry/jacobian_distance/critic.input_output/median" in events
    assert ("isometry/sigma_max/critic.conv1" in events) != shared


def test_bfloat16_is_for_the_networks_alone(tmp_path):
    ppo.main(small(tmp_path, "grid-layouts", total_steps=256, probes=ProbeConfig(every=1), amp="bf16"))
    (weights,) = tmp_path.glob("**/weights.safetensors")
    assert {weight.dtype for weight in load_file(weights).values()} == {torch.float32}
    stream = StreamConfig("grid-layouts").make(8, device="cpu")
    agents = []
    for amp in ("none", "bf16"):
        torch.manual_seed(0)
        agents.append(ppo.ActorCritic(stream, NetworkConfig(), amp=amp))
    (logits, values), (rough_logits, rough_values) = (agent(stream.reset()[0]) for agent in agents)
    assert rough_logits.dtype == rough_values.dtype == torch.float32
    assert not torch.equal(values, rough_values)
    torch.testing.assert_close(logits, rough_logits, atol=1e-2, rtol=0.1)
    torch.testing.assert_close(values, rough_values, atol=0.05, rtol=0.1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # its own
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_networks_learn_the_same(tmp_path):
    weights = []
    for compiled in (False, True):
        args = small(tmp_path / str(compiled), "cartpole-gravity", total_steps=512, compile=compiled)
        ppo.main(args)
        (path,) = (tmp_path / str(compiled)).glob("**/weights.safetensors")
        weights.append(load_file(path))
    assert weights[0].keys() == weights[1].keys()
    for name, weight in weights[0].items():
        torch.testing.assert_close(weight, weights[1][name], atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize("preset", available(PRESETS))
def test_every_preset_fits_its_stream(preset):
    args = override(Args(), PRESETS[preset])
    args.stream.check(args.num_envs)
    stream = stream_of(args.stream)
    agent = ActorCritic(stream, args.network, args.shared_torso, args.amp)
    actions, _, values = agent.act(agent.example)
    assert stream.single_action_space.contains(actions[0].item())
    assert values.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("preset", one_of_each_kind(PRESETS))
def test_every_kind_of_preset_runs(tmp_path, preset):
    args = override(Args(), PRESETS[preset])
    stream = dataclasses.replace(args.stream, audit="off")  # audits have their own tests
    short = {"total_steps": 32, "num_envs": 4, "num_steps": 8, "epochs": 1, "minibatches": 4}
    short |= {"probes": ProbeConfig(every=0)}
    args = dataclasses.replace(args, **short, stream=stream, runs_dir=tmp_path)
    assert ppo.main(args)["visits"]


@pytest.mark.slow
@pytest.mark.parametrize("id", ["cartpole-rotations", "grid-layouts"])
def test_two_equal_runs_give_equal_events_and_weights(tmp_path, id):
    probes = ProbeConfig(every=3, pictures=id == "cartpole-rotations")
    changes = {"stream": StreamConfig(id, period=256), "optim": AdamOConfig(), "probes": probes}
    changes |= {"total_steps": 768}
    runs = []
    for name in ("a", "b"):
        args = dataclasses.replace(small(tmp_path / name, id), **changes)
        ppo.main(args)
        runs.append(next((tmp_path / name).glob("**/args.json")).parent)
    one, two = (
        {tag: points for tag, points in scalars(run).items() if not tag.startswith(("time/", "charts/SPS"))}
        for run in runs
    )
    assert len(one) > 30
    assert one == two
    weights = [(run / "checkpoint" / "weights.safetensors").read_bytes() for run in runs]
    assert weights[0] == weights[1]


@pytest.mark.slow
@pytest.mark.parametrize("id", ["cartpole-rotations", "grid-layouts"])
def test_probes_do_not_disturb_training(tmp_path, id):
    weights = []
    often = ProbeConfig(every=1, full_every=1, ntk_samples=8, plasticity_every=1, plasticity_steps=10)
    for probes in (ProbeConfig(every=0), often):
        folder = tmp_path / str(probes.every)
        changes = {"stream": StreamConfig(id, period=256), "optim": AdamOConfig(), "total_steps": 512}
        ppo.main(dataclasses.replace(small(folder, id), probes=probes, **changes))
        weights.append(next(folder.glob("**/weights.safetensors")).read_bytes())
    assert weights[0] == weights[1]
    events = scalars(next(folder.glob("**/args.json")).parent)
    for tag in ("isometry/ntk_log10_cond/actor", "plasticity/lost", "plasticity/fraction_eliminated/critic"):
        assert len(events[tag]) == 4
    assert ("isometry/operator_sigma_max/critic.conv2" in events) == (id == "grid-layouts")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("id", ["cartpole-rotations", "grid-layouts"])
def test_ppo_runs_on_the_gpu(tmp_path, id):
    assert ppo.main(
        small(tmp_path, id, device="cuda", probes=ProbeConfig(every=1), total_steps=512, optim=AdamOConfig())
    )


@pytest.mark.parametrize(
    "bad",
    [
        {"total_steps": 0},
        {"lr": -1.0},
        {"lr": float("nan")},
        {"num_envs": 0},
        {"minibatches": 7},
        {"device": "tpu"},
        {"stream": StreamConfig("grid-layouts", period=8), "num_envs": 16},
    ],
)
def test_bad_arguments_are_refused(bad):
    with pytest.raises(ValueError, match="--"):
        Args(**bad)


def test_continuous_actions_are_refused(tmp_path, capsys):
    with pytest.raises(ValueError, match="discrete"):
        ActorCritic(StreamConfig("Pendulum-v1").make(1), NetworkConfig())
    with pytest.raises(SystemExit) as exit:
        ppo.main(small(tmp_path, "Pendulum-v1"))
    assert exit.value.code == 2
    assert capsys.readouterr().err.startswith("error: the agent needs a discrete action space, not Box(")
    assert not list(tmp_path.iterdir())
