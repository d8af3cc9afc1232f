"""Small networks with every operation, and regions around samples."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.core.sets import LpBall
from holdfast.core.threat import Norm


class Residual(nn.Module):
    """Convolutions, batch norm before and after, a shortcut with strides and padding, and a global mean."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, 1, 1)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 8, 3, 2, 1, bias=False)
        self.last_norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first((x - 0.5) / 0.3)
        y = self.last_norm(self.second(F.relu(self.norm(x))))
        x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        return self.head(F.leaky_relu(x - y, 0.1).mean((2, 3)))


class Branches(nn.Module):
    """A branch that is concatenated and permuted."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        x = torch.cat([torch.sigmoid(self.a(x)), F.relu6(self.b(x)) * 0.5], 1)
        return self.head(x.view(-1, 2, 4).permute(0, 2, 1).flatten(1))


def _nets() -> dict[str, Callable[[], tuple[nn.Module, tuple[int, ...]]]]:
    return {
        "dense": lambda: (nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)), (5,)),
        "smooth": lambda: (
            nn.Sequential(nn.Linear(5, 8), nn.Sigmoid(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)),
            (5,),
        ),
        "conv": lambda: (
            nn.Sequential(
                nn.Conv2d(2, 4, 3, 2, 1, groups=2),
                nn.LeakyReLU(0.2),
                nn.Conv2d(4, 3, 2, dilation=2),
                nn.ReLU(),
                nn.Flatten(),
                nn.Linear(12, 3),
            ),
            (2, 8, 8),
        ),
        "max_pool": lambda: (
            nn.Sequential(
                nn.Conv2d(1, 3, 3),
                nn.ReLU(),
                nn.MaxPool2d(3, 2, 1),
                nn.Conv2d(3, 3, 2),
                nn.MaxPool2d(2, ceil_mode=True),
                nn.Flatten(),
                nn.Linear(3, 3),
            ),
            (1, 7, 7),
        ),
        "average_pool": lambda: (
            nn.Sequential(
                nn.Conv2d(1, 3, 3),
                nn.Tanh(),
                nn.AvgPool2d(3, 2, 1, count_include_pad=False),
                nn.AvgPool2d(2, 1, 1),
                nn.AdaptiveAvgPool2d(2),
                nn.Flatten(),
                nn.Linear(12, 3),
            ),
            (1, 7, 7),
        ),
        "residual": lambda: (Residual(), (1, 6, 6)),
        "branches": lambda: (Branches(), (6,)),
        "conv1d": lambda: (
            nn.Sequential(nn.Conv1d(2, 3, 3, padding=1), nn.ReLU(), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(9, 3)),
            (2, 6),
        ),
    }


NETS = _nets()


def make(name: str, seed: int, scale: float = 1.5) -> tuple[nn.Module, tuple[int, ...]]:
    """A network with random weights in eval mode, its batch norms with statistics of their own, and its input shape."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net, shape = NETS[name]()
        with torch.no_grad():
            for module in net.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.running_mean.normal_()
                    module.running_var.uniform_(0.5, 2)
                    module.weight.normal_()
                    module.bias.normal_()
                elif hasattr(module, "weight"):
                    module.weight.mul_(scale)
    return net.eval(), shape


def inside(ball: LpBall, x: Tensor, count: int, seed: int) -> Tensor:
    """Points of the set around each sample, many of them on its edge: (count, n, \\*features), float64."""
    generator = torch.Generator().manual_seed(seed)
    x = x.double()
    delta = torch.randn(count, *x.shape, dtype=torch.float64, generator=generator).flatten(2)
    eps = ball.eps.view(-1, 1)
    if ball.norm is Norm.LINF:
        delta = torch.where(torch.rand(delta.shape, generator=generator) < 0.7, delta.sign(), delta.clamp(-1, 1)) * eps
    elif ball.norm is Norm.L2:
        delta = delta / delta.norm(dim=2, keepdim=True) * eps
    elif ball.norm is Norm.L1:
        delta = delta**5
        delta = delta / delta.abs().sum(2, keepdim=True) * eps
    else:
        k = int(ball.eps.max())
        top = delta.abs().topk(k, 2).indices
        delta = torch.zeros_like(delta).scatter(2, top, delta.gather(2, top).sign() * 9)
    point = x + delta.view(count, *x.shape)
    point = torch.maximum(torch.minimum(point, ball.upper.double()), ball.lower.double())
    return point if ball.mask is None else torch.where(ball.mask, point, x)
