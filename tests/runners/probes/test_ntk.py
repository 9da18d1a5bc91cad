import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from neoteny.agents.activations import MaxMin
from neoteny.runners.probes.ntk import empirical_ntk, ntk_statistics
from tests.simple_networks import CReLU, conv_net, mlp, sequential


def frozen() -> nn.Sequential:
    net = mlp()
    net.linear1.requires_grad_(False)
    net.head.bias.requires_grad_(False)
    return net


def shared() -> nn.Sequential:
    layer = nn.Linear(5, 5)
    return sequential(linear1=layer, act1=nn.Tanh(), linear2=layer, act2=nn.Tanh(), head=nn.Linear(5, 2))


class OfPixels(nn.Module):
    """A linear layer that is called at every position."""

    def __init__(self) -> None:
        super().__init__()
        self.linear1, self.head = nn.Linear(2, 3), nn.Linear(3 * 25, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.linear1(images.flatten(2).mT).relu().flatten(1))


def convolutions() -> nn.Sequential:
    """Stride, padding and dilation; groups, circular and named padding, for which there is no closed form."""
    return sequential(
        conv1=nn.Conv2d(2, 4, 3, stride=2, padding=1),
        act1=nn.ReLU(inplace=True),
        conv2=nn.Conv2d(4, 4, 2, dilation=2, bias=False),
        act2=nn.Tanh(),
        conv3=nn.Conv2d(4, 4, 1, groups=2),
        conv4=nn.Conv2d(4, 3, 3, padding="same"),
        act4=nn.Tanh(),
        conv5=nn.Conv2d(3, 2, 1, padding=1, padding_mode="circular"),
        flatten=nn.Flatten(),
        head=nn.Linear(18, 3),
    )


NETWORKS = {
    "mlp": (mlp, (5,)),
    "in place": (lambda: mlp(lambda: nn.ReLU(inplace=True)), (5,)),
    "maxmin": (lambda: mlp(MaxMin), (5,)),
    "crelu": (lambda: mlp(CReLU, 16), (5,)),
    "norms": (lambda: mlp(lambda: nn.Sequential(nn.LayerNorm(8), nn.Tanh())), (5,)),
    "batch norm": (lambda: mlp(lambda: nn.Sequential(nn.BatchNorm1d(8), nn.Tanh())), (5,)),
    "frozen": (frozen, (5,)),
    "shared": (shared, (5,)),
    "parametrized": (lambda: sequential(linear1=parametrizations.orthogonal(nn.Linear(5, 5)), act1=nn.Tanh(),
                                        head=nn.Linear(5, 2)), (5,)),
    "a small convolution": (conv_net, (2, 5, 5)),
    "convolutions": (convolutions, (2, 5, 5)),
    "positions": (OfPixels, (2, 5, 5)),
}  # fmt: skip


def reference(net: nn.Module, inputs: Tensor) -> Tensor:
    """The kernel from one backward pass an output and sample."""
    net = net.double().eval()
    parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
    rows = []
    for sample in inputs.double():
        outputs = net(sample[None]).flatten()
        for output in outputs:
            gradients = torch.autograd.grad(output, parameters, retain_graph=True)
            rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
    return torch.stack(rows) @ torch.stack(rows).T


@pytest.mark.parametrize("name", NETWORKS)
def test_equals_autograd(name):
    make, shape = NETWORKS[name]
    net, inputs = make(), torch.randn(6, *shape)
    kernel = empirical_ntk(net, inputs)
    expected = reference(net, inputs)
    assert kernel.dtype == torch.float64
    assert (kernel - expected).abs().max() <= 1e-12 * expected.abs().max()


@pytest.mark.parametrize("name", ["mlp", "convolutions"])
def test_equals_torch_func(name):
    make, shape = NETWORKS[name]
    net, inputs = make().double().eval(), torch.randn(6, *shape).double()
    kernel = empirical_ntk(net, inputs)

    def outputs(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        return torch.func.functional_call(net, parameters, (sample[None],)).flatten()

    parameters = {name: parameter.detach() for name, parameter in net.named_parameters()}
    rows = torch.func.vmap(torch.func.jacrev(outputs), in_dims=(None, 0))(parameters, inputs)
    jacobian = torch.cat([row.flatten(2) for row in rows.values()], 2).flatten(0, 1)
    assert (kernel - jacobian @ jacobian.T).abs().max() <= 1e-6 * kernel.abs().max()


def test_of_an_orthogonal_deep_linear_network_is_that_of_the_inputs():
    # Paper, equation 9: K is proportional to X X^T (x) I, here by the number of layers.
    net = nn.Sequential(*(nn.Linear(6, 6, bias=False) for _ in range(4))).double()
    for layer in net:
        nn.init.orthogonal_(layer.weight)
    inputs = torch.randn(5, 6, dtype=torch.float64)
    expected = 4 * torch.kron(inputs @ inputs.T, torch.eye(6, dtype=torch.float64))
    assert (empirical_ntk(net, inputs) - expected).abs().max() < 1e-10


def test_of_one_layer_by_hand():
    net = nn.Linear(2, 2)
    inputs = torch.tensor([[1.0, 2.0], [3.0, 4.0]])  # products 5, 11 and 25, and 1 for the bias
    expected = torch.kron(torch.tensor([[6.0, 12.0], [12.0, 26.0]]), torch.eye(2)).double()
    torch.testing.assert_close(empirical_ntk(net, inputs), expected)


def test_statistics_by_hand():
    basis = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))[0]
    kernel = basis @ torch.diag(torch.tensor([40.0, 20.0, 10.0, 10.0]).double()) @ basis.T
    statistics = {name: value.item() for name, value in ntk_statistics(kernel).items()}
    entropy = 0.5 * math.log(2) + 0.25 * math.log(4) + 2 * 0.125 * math.log(8)
    assert statistics == {
        "ntk_log10_cond": pytest.approx(math.log10(4)),
        "ntk_rank": 4.0,
        "ntk_eigenvalue_std": pytest.approx(math.sqrt(150)),
        "ntk_participation_rank": pytest.approx(80**2 / 2200),
        "ntk_effective_rank": pytest.approx(math.exp(entropy)),
        "ntk_isotropy_gap": pytest.approx(math.sqrt(1.5)),  # of (2, 1, 1/2, 1/2) from 1
    }


def test_an_isotropic_kernel():
    statistics = ntk_statistics(3.0 * torch.eye(5, dtype=torch.float64))
    assert statistics["ntk_log10_cond"] == 0.0
    assert statistics["ntk_isotropy_gap"] == 0.0
    assert statistics["ntk_participation_rank"] == pytest.approx(5.0)
    assert statistics["ntk_effective_rank"].item() == pytest.approx(5.0)


def test_a_singular_kernel_is_not_well_conditioned():
    rows = torch.randn(6, 3, dtype=torch.float64)
    statistics = ntk_statistics(rows @ rows.T)
    assert statistics["ntk_log10_cond"] == math.inf
    assert statistics["ntk_participation_rank"] <= 3.0
    assert statistics["ntk_rank"] == 3.0


def test_a_dead_network():
    net = sequential(linear1=nn.Linear(5, 4), act1=nn.ReLU(), head=nn.Linear(4, 2, bias=False))
    nn.init.constant_(net.linear1.bias, -1e3)
    statistics = ntk_statistics(empirical_ntk(net, torch.randn(6, 5)))
    assert statistics["ntk_log10_cond"] == math.inf
    assert statistics["ntk_isotropy_gap"] == math.inf
    assert statistics["ntk_participation_rank"] == 0.0
    assert statistics["ntk_rank"] == 0.0
    assert statistics["ntk_effective_rank"] == 0.0


def test_of_a_dead_network_with_a_bias_only_the_means_can_be_learned():
    net = sequential(linear1=nn.Linear(5, 4), act1=nn.ReLU(), head=nn.Linear(4, 2))
    nn.init.constant_(net.linear1.bias, -1e3)
    statistics = ntk_statistics(empirical_ntk(net, torch.randn(6, 5)))
    assert statistics["ntk_log10_cond"] == math.inf
    assert statistics["ntk_participation_rank"].item() == pytest.approx(2.0)


def test_a_diverged_network_gives_nan():
    net = mlp()
    nn.init.constant_(net.linear2.weight, math.nan)
    assert all(value.isnan() for value in ntk_statistics(empirical_ntk(net, torch.randn(6, 5))).values())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_nothing_is_disturbed(mode):
    net, inputs = mlp(lambda: nn.Sequential(nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU(inplace=True))), None
    inputs = torch.randn(6, 5)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.get_rng_state()
    with mode():
        empirical_ntk(net, inputs)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert net.training
    assert all(parameter.grad is None for parameter in net.parameters())
    assert not any(module._forward_hooks for module in net.modules())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", NETWORKS)
def test_devices_agree(name):
    make, shape = NETWORKS[name]
    net, inputs = make(), torch.randn(6, *shape)
    expected = empirical_ntk(net, inputs)
    torch.testing.assert_close(empirical_ntk(net.cuda(), inputs.cuda()).cpu(), expected)
