"""Plasticity methods that add a term to the loss, or take a step along its gradient after the optimizer's."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neoteny.optim.isometry import gram_penalty, matrix_view
from neoteny.optim.layers import Layer, Network
from neoteny.optim.methods import Learner, Method, MethodConfig, Seen, check_fields
from neoteny.optim.orthogonal import is_orthogonal, raw_weight


def trained(learner: Learner, part: str) -> dict[str, nn.Parameter]:
    """The parameters of a part that are trained, by their names in the network.

    Raw weights of orthogonal layers are left out, since their size has no effect.
    """
    network = learner.network
    module = network if part == "all" else cast(Network, network).parts()[part]
    raw = {raw_weight(layer) for layer in network.modules() if is_orthogonal(layer)}
    chosen = set(module.parameters()) - raw
    return {name: p for name, p in network.named_parameters() if p in chosen and p.requires_grad}


def hidden_layers(learner: Learner, part: str) -> list[Layer]:
    """The hidden layers of a part whose weights are trained as they are."""
    return [layer for layer in learner.layers(part) if layer.weight is not None and not layer.is_head]


class Penalty(Method):
    """Base class of penalties on weights, which depend on nothing else."""

    def __init__(self, learner: Learner, coef: float, part: str) -> None:
        self.learner, self.coef, self.part = learner, coef, part

    @torch.no_grad()
    def metrics(self) -> dict[str, Tensor]:
        """The penalty at the current weights."""
        return {"penalty": cast(Tensor, self.penalty(None))}


class SpectrumPenalty(Penalty):
    """Base class of penalties on the singular values of hidden weights.

    Raises:
        ValueError: there is no such weight, or the optimizer already pulls weights towards isometry.
    """

    name: ClassVar[str]

    def __init__(self, learner: Learner, coef: float, part: str) -> None:
        super().__init__(learner, coef, part)
        if any(group.get("iso") for group in learner.optimizer.param_groups):
            raise ValueError(
                f"{self.name} and the optimizer's pull both set singular values: use optim:adam, or "
                "--optim.iso 0"
            )
        if not hidden_layers(learner, part):
            raise ValueError(f"{self.name} finds no hidden weight to act on, on {part}")


class L2(Penalty):
    r"""L2 regularization, coupled: :math:`\lambda \|\theta\|^2` in the loss.

    The optimizer rescales its gradient together with the loss's. For the decoupled form, use AdamW.
    """

    def penalty(self, batch: Any) -> Tensor:
        """The penalty, ()."""
        parameters = trained(self.learner, self.part).values()
        return self.coef * torch.stack([parameter.square().sum() for parameter in parameters]).sum()


@dataclass(frozen=True)
class L2Config(MethodConfig):
    """L2 regularization of all parameters as a term of the loss, biases and heads included."""

    name: ClassVar[str] = "l2"

    coef: float = 1e-4
    """Coefficient of the sum of squares; Adam's weight_decay in torch is twice this."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_fields(self, ("coef",), above=0)

    def build(self, learner: Learner) -> L2:
        """The method for a network."""
        return L2(learner, self.coef, self.on)


class L2Init(Penalty):
    r"""Regenerative regularization: :math:`\lambda \|\theta - \theta_0\|^2`, squared and summed, in the loss.

    S. Kumar, H. Marklund, B. Van Roy, "Maintaining Plasticity in Continual Learning via Regenerative
    Regularization", CoLLAs 2024. :math:`\theta_0` are the parameters before the first gradient step; those
    of a module that is added later, when it is added.

    The decoupled form bypasses the optimizer, as weight decay does in AdamW: after each gradient step,
    :math:`\theta \leftarrow \theta - 2 \gamma \lambda (\theta - \theta_0)` with the learning rate
    :math:`\gamma`.
    """

    def __init__(self, learner: Learner, coef: float, decoupled: bool, part: str) -> None:
        super().__init__(learner, coef, part)
        self.decoupled = decoupled
        self.initial: dict[str, Tensor] = {}
        list(self._pairs())

    def penalty(self, batch: Any) -> Tensor | float:
        """The penalty, ()."""
        return 0.0 if self.decoupled else self.coef * self._squared_distance()

    @torch.no_grad()
    def after_step(self, seen: Seen) -> None:
        """Take the decoupled step."""
        if self.decoupled:
            groups = self.learner.optimizer.param_groups
            rates = {parameter: group["lr"] for group in groups for parameter in group["params"]}
            for parameter, initial in self._pairs():
                parameter.lerp_(initial, 2 * self.coef * rates[parameter])

    @torch.no_grad()
    def metrics(self) -> dict[str, Tensor]:
        """The distance from the initial parameters."""
        return {"distance": self._squared_distance().sqrt()}

    def state_dict(self) -> dict[str, Any]:
        """The initial parameters."""
        return {"initial": self.initial}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the initial parameters."""
        device = next(self.learner.network.parameters()).device
        self.initial = {name: initial.to(device) for name, initial in state["initial"].items()}

    def _squared_distance(self) -> Tensor:
        return torch.stack([(now - initial).square().sum() for now, initial in self._pairs()]).sum()

    def _pairs(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Each parameter with its initial value."""
        for name, parameter in trained(self.learner, self.part).items():
            if name not in self.initial:
                self.initial[name] = parameter.detach().clone()
            yield parameter, self.initial[name]


@dataclass(frozen=True)
class L2InitConfig(MethodConfig):
    """Regularization of all parameters towards their initial values."""

    name: ClassVar[str] = "l2_init"
    conflicts: ClassVar[tuple[str, ...]] = ("l2",)

    coef: float = 1e-3
    """Coefficient of the squared distance; the paper tries 1e-2 to 1e-5."""
    decoupled: bool = False
    """Bypass the optimizer: after its step, shrink the distance by 2 * coef * learning rate."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_fields(self, ("coef",), above=0)

    def build(self, learner: Learner) -> L2Init:
        """The method for a network."""
        return L2Init(learner, self.coef, self.decoupled, self.on)


class IsometryPenalty(SpectrumPenalty):
    r"""The coupled form of the pull towards isometry: :math:`\lambda \sum_l \|G_l - s I\|_F^2` in the loss.

    A. Rosseau, R. Müller, A. Nowé, "Preserving Plasticity in Continual Learning via Dynamical Isometry", ICML
    2026, eqs. 16 to 18. The optimizer rescales its gradient, 4 (W W^T W - s W), together with the loss's, so
    coefficients are not comparable with AdamO's. The paper does not say whether it is clipped together with
    the gradient of the loss; here it is not, since its norm often exceeds the norm to which PPO clips.

    It applies to the weights of hidden layers, but not to parametrized (orthogonal) ones.
    """

    name = "isometry"

    def __init__(self, learner: Learner, coef: float, scale: float, part: str = "all") -> None:
        super().__init__(learner, coef, part)
        self.scale = scale

    def penalty(self, batch: Any) -> Tensor:
        """The penalty, ()."""
        weights = [layer.module.weight for layer in hidden_layers(self.learner, self.part)]
        return self.coef * gram_penalty(weights, self.scale)


@dataclass(frozen=True)
class IsometryConfig(MethodConfig):
    """Isometry penalty on Gram matrices as a term of the loss, for optimizers other than AdamO."""

    name: ClassVar[str] = IsometryPenalty.name
    conflicts: ClassVar[tuple[str, ...]] = ("parseval", "spectral")

    coef: float = 1e-3
    """Coefficient of the penalty; not comparable with AdamO's iso, which bypasses the moments."""
    scale: float = 2.0
    """Target of the squared singular values: 2 for ReLU layers initialized with gain sqrt(2), else 1."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_fields(self, ("coef", "scale"), above=0)

    def build(self, learner: Learner) -> IsometryPenalty:
        """The method for a network."""
        return IsometryPenalty(learner, self.coef, self.scale, self.on)


class Parseval(SpectrumPenalty):
    r"""Parseval regularization: :math:`\lambda \sum_l (64 / n_l)^2 \|W_l W_l^\top - s I\|_F^2` in the loss.

    W. Chung, L. Cherif, D. Precup, D. Meger, "Parseval Regularization for Continual Reinforcement Learning",
    NeurIPS 2024, eq. 1. It applies to the weights of hidden layers and is clipped with the loss, as in the
    authors' code. That has one width :math:`n` for all layers; here it is the number of a layer's units. It
    has no convolutions; here their kernels are matrices `(out, in * k * k)`. The optional diagonal layers and
    input scales of the paper are left out.

    The Gram matrix is that of the smaller side. This changes the penalty of a weight with more rows than
    columns by a constant and no gradient.
    """

    name = "parseval"
    clipped = True

    def __init__(self, learner: Learner, coef: float, scale: float, part: str) -> None:
        super().__init__(learner, coef, part)
        self.scale = scale

    def penalty(self, batch: Any) -> Tensor:
        """The penalty, ()."""
        layers = hidden_layers(self.learner, self.part)
        penalties = [
            (64 / layer.units) ** 2 * gram_penalty([layer.module.weight], self.scale) for layer in layers
        ]
        return self.coef * torch.stack(penalties).sum()


@dataclass(frozen=True)
class ParsevalConfig(MethodConfig):
    """Parseval regularization: rows of hidden weights are kept orthogonal, by a term of the loss."""

    name: ClassVar[str] = Parseval.name
    conflicts: ClassVar[tuple[str, ...]] = ("isometry", "spectral")

    coef: float = 1e-3
    """Coefficient for 64 units; the paper has 1e-3 on gridworlds and MetaWorld, else 1e-4."""
    scale: float = 2.0
    """Target of the squared singular values: the square of the initial gain."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_fields(self, ("coef", "scale"), above=0)

    def build(self, learner: Learner) -> Parseval:
        """The method for a network."""
        return Parseval(learner, self.coef, self.scale, self.on)


class Spectral(SpectrumPenalty):
    r"""Spectral regularization: :math:`\lambda \sum_l (\sigma_1(W_l)^k - 1)^2 + \|b_l\|^{2k}` in the loss.

    A. Lewandowski et al., "Learning Continually by Spectral Regularization", ICLR 2025. It applies to all
    layers, heads included. :math:`\sigma_1` comes from a power iteration, whose vector is kept from one
    gradient step to the next: a single iteration from a fixed vector, as in some code, would give a value
    that is up to 29 % too low. A kernel of a convolution is a matrix `(out, in * k * k)`.
    """

    name = "spectral"

    def __init__(self, learner: Learner, coef: float, power: int, heads: bool, part: str) -> None:
        super().__init__(learner, coef, part)
        self.power, self.heads = power, heads
        self.vectors: dict[str, Tensor] = {}
        for _ in range(WARM_UP):
            self._advance()

    def penalty(self, batch: Any) -> Tensor:
        """The penalty, (), after one more power iteration."""
        self._advance()
        return self._penalty()

    @torch.no_grad()
    def metrics(self) -> dict[str, Tensor]:
        """The penalty and the largest of the singular values that it acts on."""
        sigmas = torch.stack([self._sigma(layer) for layer in self._layers()])
        return {"penalty": self._penalty(), "sigma_max": sigmas.amax()}

    def state_dict(self) -> dict[str, Any]:
        """The vectors of the power iterations."""
        return {"vectors": self.vectors}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the vectors."""
        device = next(self.learner.network.parameters()).device
        self.vectors = {name: vector.to(device) for name, vector in state["vectors"].items()}

    def _layers(self) -> list[Layer]:
        layers = self.learner.layers(self.part)
        return [
            layer
            for layer in layers
            if layer.weight is not None and layer.weight.requires_grad and (self.heads or not layer.is_head)
        ]

    def _advance(self) -> None:
        for layer in self._layers():
            left, _ = self._iterate(layer)
            self.vectors[layer.name].copy_(left)

    def _penalty(self) -> Tensor:
        layers = self._layers()
        terms = [(self._sigma(layer) ** self.power - 1).square() for layer in layers]
        terms += [
            layer.module.bias.square().sum() ** self.power
            for layer in layers
            if layer.module.bias is not None
        ]
        return self.coef * torch.stack(terms).sum()

    def _sigma(self, layer: Layer) -> Tensor:
        """The largest singular value, (), with the gradient u v^T."""
        left, right = self._iterate(layer)
        return left @ (matrix_view(layer.module.weight) @ right)

    @torch.no_grad()
    def _iterate(self, layer: Layer) -> tuple[Tensor, Tensor]:
        """Singular vectors after one power iteration from the kept vector: u (out,) and v (columns,)."""
        matrix = matrix_view(layer.module.weight)
        if layer.name not in self.vectors:
            start = torch.randn(len(matrix), generator=torch.Generator().manual_seed(0))
            self.vectors[layer.name] = F.normalize(start, dim=0).to(matrix)
        kept = self.vectors[layer.name]
        right = F.normalize(matrix.T @ kept, dim=0)
        left = F.normalize(matrix @ right, dim=0)
        # A weight of zeros has no singular vectors, and may become another.
        return torch.where(left.any(), left, kept), right


WARM_UP = 20
"""Power iterations before the first gradient step."""


@dataclass(frozen=True)
class SpectralConfig(MethodConfig):
    """Spectral regularization: the largest singular value of each weight is kept near 1."""

    name: ClassVar[str] = Spectral.name
    conflicts: ClassVar[tuple[str, ...]] = ("isometry", "parseval")

    coef: float = 1e-3
    """Coefficient of the penalty."""
    power: int = 2
    """The exponent k."""
    heads: bool = True
    """Regularize heads too, as in the paper."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_fields(self, ("coef", "power"), above=0)

    def build(self, learner: Learner) -> Spectral:
        """The method for a network."""
        return Spectral(learner, self.coef, self.power, self.heads, self.on)


class CChain(Method):
    r"""C-CHAIN: reduces churn, the change of outputs for observations that a gradient step is not about.

    .. math::
        L + c \; D\big(f_{\theta_{t-1}}(B), f_{\theta_t}(B)\big), \qquad
        c = \alpha \; \overline{|L|} \; / \; \overline{D}

    H. Tang, J. Obando-Ceron, P. S. Castro, A. Courville, G. Berseth, "Mitigating Plasticity Loss in Continual
    Reinforcement Learning by Reducing Churn", ICML 2025. D is the KL divergence of a policy, and the mean
    squared change of values. As in the paper, PPO's policy alone is regularized unless `on` is critic. B is
    the minibatch of two gradient steps ago, which neither the last step nor this one was made on.

    Differences to the authors' code: it draws another minibatch for B; uses the cross-entropy for discrete
    policies, whose gradient is the same but whose mean contains the policy's entropy, so that its
    :math:`\alpha` is 10,000; takes the mean loss of PPO's policy, here that of the whole loss; and starts
    with a fixed c, here the running means have effect from the first step.

    Raises:
        ValueError: the network does not have one output for each of its parts.
    """

    clipped = True

    def __init__(self, learner: Learner, scale: float, part: str) -> None:
        self.learner, self.scale = learner, scale
        network = cast(Network, learner.network)
        self.parts = list(network.parts())
        self.part = next(iter(self.parts)) if part == "all" else part
        with torch.no_grad():
            outputs = len(_outputs(learner.network, network.example))
        if outputs != len(self.parts):
            raise ValueError(f"c_chain needs an output for each of {', '.join(self.parts)}, not {outputs}")
        # The networks of the last two gradient steps, the older one first.
        self.networks = [copy.deepcopy(learner.network).requires_grad_(False) for _ in range(2)]
        self.batches: list[Tensor] = []  # of the last two gradient steps, the older one first
        device = network.example.device
        self.steps = torch.zeros((), device=device)
        self.means = torch.zeros(2, device=device)  # running means of |L| and D

    def penalty(self, batch: Any) -> Tensor | float:
        """The penalty on the minibatch of two gradient steps ago, ()."""
        observations = batch.observations
        if not self.batches or self.batches[0].shape != observations.shape:
            self.batches = [observations.clone() for _ in range(2)]
        churn = self._churn(self.batches[0].clone())  # which the backward pass needs unchanged
        self.batches[0].copy_(self.batches[1])
        self.batches[1].copy_(observations)
        if (loss := self.learner.loss) is None:
            return 0.0
        values = torch.stack((loss.abs(), churn.detach()))
        # The mean of all values so far, later an exponential moving average.
        self.steps += 1
        self.means.lerp_(values, (1 / self.steps).clamp(min=1 / HORIZON))
        return self.scale * self.means[0] / (self.means[1] + 1e-8) * churn

    @torch.no_grad()
    def after_step(self, seen: Seen) -> None:
        """Keep the network."""
        older, newer, now = (
            list[Tensor](network.parameters()) for network in (*self.networks, self.learner.network)
        )
        torch._foreach_copy_(older, newer)
        torch._foreach_copy_(newer, now)

    def metrics(self) -> dict[str, Tensor]:
        """The running mean of the churn."""
        return {"churn": self.means[1]}

    def state_dict(self) -> dict[str, Any]:
        """The earlier networks and minibatches, and the running means."""
        networks = [network.state_dict() for network in self.networks]
        return {"networks": networks, "batches": self.batches, "steps": self.steps, "means": self.means}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state."""
        for network, saved in zip(self.networks, state["networks"]):
            network.load_state_dict(saved)
        self.batches = [batch.to(self.means.device) for batch in state["batches"]]
        self.steps.copy_(state["steps"])
        self.means.copy_(state["means"])

    def _churn(self, observations: Tensor) -> Tensor:
        """The change of the part's outputs by the last gradient step, ()."""
        index = self.parts.index(self.part)
        now = _outputs(self.learner.network, observations)[index]
        with torch.no_grad():
            before = _outputs(self.networks[0], observations)[index]
        if self.part == "actor":
            now, before = F.log_softmax(now, dim=1), F.log_softmax(before, dim=1)
            return F.kl_div(now, before, reduction="batchmean", log_target=True)
        return F.mse_loss(now, before)


HORIZON = 10_000
"""Gradient steps that C-CHAIN's running means remember."""


def _outputs(network: nn.Module, observations: Tensor) -> tuple[Tensor, ...]:
    outputs = network(observations)
    return outputs if isinstance(outputs, tuple) else (outputs,)


@dataclass(frozen=True)
class CChainConfig(MethodConfig):
    """C-CHAIN: reduce how much a gradient step changes the outputs for other observations."""

    name: ClassVar[str] = "c_chain"
    conflicts: ClassVar[tuple[str, ...]] = ("injection", "injection_at_switch")

    scale: float = 0.01
    """Mean size of the penalty as a share of the loss's; the paper has 0.01 for DQN, 0.05 for PPO."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_fields(self, ("scale",), above=0)

    def build(self, learner: Learner) -> CChain:
        """The method for a network."""
        return CChain(learner, self.scale, self.on)
