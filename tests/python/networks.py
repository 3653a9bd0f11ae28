"""Networks to prepare in tests: small ones, and forwards that are hard to trace."""

import functools
import random
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn


class LeNet(nn.Module):
    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5, padding=2)
        self.conv2 = nn.Conv2d(6, 16, 3)
        self.fc1 = nn.Linear(16 * 3 * 3, 32)
        self.fc2 = nn.Linear(32, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.relu(self.conv2(F.pad(x, (0, 1, 0, 1))))
        x = torch.flatten(x, 1)
        return self.fc2(F.relu(self.fc1(x)))


class Inverted(nn.Module):
    """A block of MobileNetV2."""

    def __init__(self, channels: int, out: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = channels * expand
        self.residual = stride == 1 and channels == out
        self.conv = nn.Sequential(
            nn.Conv2d(channels, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(inplace=True),
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(inplace=True),
            nn.Conv2d(hidden, out, 1, bias=False),
            nn.BatchNorm2d(out),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class SmallMobileNet(nn.Module):
    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(True)),
            Inverted(8, 8, 1, 2),
            Inverted(8, 16, 2, 2),
            Inverted(16, 16, 1, 3),
        )
        self.classifier = nn.Sequential(nn.Dropout(0.1), nn.Linear(16, classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean([2, 3]))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "lenet": (LeNet, (4, 1, 8, 8)),
    "mobilenet": (SmallMobileNet, (4, 3, 16, 16)),
}


def conv(inputs: int = 4, outputs: int = 4) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 1)


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(), conv()
        self.more()

    def more(self) -> None: ...


def decorated(forward: Any) -> Any:
    @functools.wraps(forward)
    def wrapper(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if "shift" not in kwargs:
            kwargs["shift"] = 0.5
        return forward(self, *args, **kwargs)

    return wrapper


class Hard:
    """Forwards that a careless tracer gets wrong, by name."""

    class KeywordArguments(Base):
        def inner(self, x: Tensor, *args: float, scale: Any = None, **more: Any) -> Tensor:
            y = F.relu(self.a(x) + x) * (args[0] if args else 1.0)
            return y + more.get("bias", 0)

        def forward(self, *args: Any, **kwargs: Any) -> Tensor:
            return self.inner(*args, **kwargs) + self.b(args[0])

    class UnpackedSizes(Base):
        """Unpacks the sizes before the last dimension, the usual way to split heads."""

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x).permute(0, 2, 3, 1)
            heads = y.view(*y.shape[:-1], 2, -1)
            batch, height, width, count, _ = heads.shape
            y = heads.transpose(-1, -2).reshape((*y.shape[:-1], 4))
            y = y.reshape(batch, height, width, count * 2).permute(0, 3, 1, 2)
            return self.b(y) + x

    class ChildNamedSelf(Base):
        def __init__(self) -> None:
            super().__init__()
            self.add_module("self", conv())
            self.register_buffer("input", torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            self_outputs = self.self(x)
            return self.b(F.relu(self_outputs + x) * self.input) + self.a(x)

    class DecoratedForward(Base):
        """A decorator reads the arguments of the caller."""

        @decorated
        def forward(self, x: Tensor, scale: float = 1.0, shift: float | None = None) -> Tensor:
            y = self.b(F.relu(self.a(x) + x)) * scale
            return y if shift is None else y + shift

    class NoGradRegion(Base):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                y = self.a(x) + x
            return self.b(x) + y

    class Detached(Base):
        def forward(self, x: Tensor) -> Tensor:
            return self.b(x) + (self.a(x) + x).detach()

    class AutocastRegion(Base):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                y = self.a(x)
            return self.b(x) + y.float()

    class IgnoredInplace(Base):
        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            F.relu(y, inplace=True)
            return self.b(y) + x

    class BufferArithmetic(Base):
        def more(self) -> None:
            self.register_buffer("gain", torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) * self.gain.exp() + x

    class BufferUpdate(Base):
        def more(self) -> None:
            self.register_buffer("count", torch.zeros(()))
            self.register_buffer("average", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                self.count += 1
                self.average.mul_(0.9).add_(x.detach().mean() * 0.1)
            return self.a(x) + x

    class AssignedAttribute(Base):
        def forward(self, x: Tensor) -> Tensor:
            self.last = x
            self.calls = getattr(self, "calls", 0) + 1
            return self.a(x) + x

    class ChangingNumber(Base):
        def more(self) -> None:
            self.strength = 1.0

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) * self.strength + x

    class RandomBranch(Base):
        def forward(self, x: Tensor) -> Tensor:
            if self.training and torch.rand(1) < 0.5:
                return x + 0
            return self.a(x) + x

    class PythonRandom(Base):
        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) + x if random.random() < 0.5 else self.b(x) + x

    class Checkpointed(Base):
        def block(self, x: Tensor) -> Tensor:
            return F.relu(self.a(x) + x)

        def forward(self, x: Tensor) -> Tensor:
            checkpoint = torch.utils.checkpoint.checkpoint
            return checkpoint(self.block, x, use_reentrant=False) + self.b(x)

    class CheckpointedChild(Base):
        def forward(self, x: Tensor) -> Tensor:
            checkpoint = torch.utils.checkpoint.checkpoint
            return checkpoint(self.a, x, use_reentrant=False) + self.b(x)

    class ShapeBranch(Base):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[-1] % 2:
                x = F.pad(x, (0, 1))
            n, c, h, w = x.shape
            return (self.a(x) + x).view(n, c, h * w)

    class TypeBranch(Base):
        def forward(self, x: Any) -> Tensor:
            if isinstance(x, Tensor):
                x = [x]
            return self.a(torch.cat(x, 1)) + x[0]

    class IteratedOutput(Base):
        class Two(Base):
            def forward(self, x: Tensor) -> list[Tensor]:
                return [self.a(x), self.b(x)]

        def more(self) -> None:
            self.two = Hard.IteratedOutput.Two() if type(self) is Hard.IteratedOutput else None

        def forward(self, x: Tensor) -> Tensor:
            y = x
            for part in self.two(x):
                y = y + part
            return y

    class PartsOfAChild(Base):
        """Uses a child's tuple, dict and named tuple, whose parts may be None or computed in
        float."""

        class Pair(NamedTuple):
            first: Tensor
            second: Tensor | None

        class Many(Base):
            def forward(self, x: Tensor) -> Any:
                y = self.a(x)
                softened = torch.softmax(self.b(y), 1)
                pair = Hard.PartsOfAChild.Pair(y, None)
                return {"all": (y, softened), "pair": pair, "none": None}, x.shape[0]

        class Opaque(Many):
            def forward(self, x: Tensor) -> Any:
                with torch.enable_grad():
                    return super().forward(x)

        def more(self) -> None:
            if type(self) is Hard.PartsOfAChild:
                self.inside, self.opaque = self.Many(), self.Opaque()

        def forward(self, x: Tensor) -> Tensor:
            for child in (self.inside, self.opaque):
                named, count = child(x)
                (y, softened), (first, second) = named["all"], named["pair"]
                assert second is None and named["none"] is None and len(named) == 3
                x = self.a(y + first.view(count, *first.shape[1:])) + softened
            return x

    class Chunks(Base):
        def forward(self, x: Tensor) -> Tensor:
            parts = [part * 2 for part in self.a(x).chunk(2, 1)]
            return self.b(torch.cat(parts, 1))

    class SequentialWithForward(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(conv(), nn.ReLU(), conv())

        def forward(self, x: Tensor) -> Tensor:
            y = x
            for module in self:
                y = module(y)
            return F.interpolate(y, size=x.shape[-2:]) + x + self[-1](x)

    class ListWithForward(nn.ModuleList):
        def __init__(self) -> None:
            super().__init__([conv(), conv()])

        def forward(self, x: Tensor) -> Tensor:
            for i in range(len(self)):
                x = self[i](x) + x
            return x

    class Loops(Base):
        def more(self) -> None:
            self.layers = nn.ModuleList(conv() for _ in range(3))
            self.by_name = nn.ModuleDict({"k": conv()})

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = F.relu(layer(x) + x)
            return self.by_name["k"](x) + x

    class CallsSuper(Loops):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 1

    class Annotated(Base):
        def forward(
            self, x: "Tensor", mask: "Tensor | None" = None, *, mode: str = "a", dims: Any = (2, 3)
        ) -> Tensor:
            y = self.a(x) + x
            if mask is not None:
                y = y * mask
            return y.mean(dims) if mode == "a" else y

    class MadeConstants(Base):
        def forward(self, x: Tensor) -> Tensor:
            y = torch.add(self.a(x), x, alpha=2)
            y = x.new_zeros(x.size()) + y
            return y + torch.arange(4).view(1, 4, 1, 1)

    class Length(Base):
        def forward(self, x: Tensor) -> Tensor:
            return sum(self.a(x[i : i + 1]) for i in range(len(x))) + x[:1]

    class Asserts(Base):
        def forward(self, x: Tensor) -> Tensor:
            assert x.dim() == 4, "four dimensions"
            return self.a(x) + x

    class Twice(Base):
        def forward(self, x: Tensor) -> Tensor:
            return self.a(F.relu(self.a(x)) + x)

    class SharedTwoPlaces(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = Hard.Twice(), Hard.Twice()
            self.two.a = self.one.a
            self.three = self.one

        def forward(self, x: Tensor) -> Tensor:
            return self.three(self.two(self.one(x)))

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = conv(), conv()
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x) + x) + F.conv2d(x, self.a.weight)

    class OwnWeight(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4, 3, 3))
            self.shift = nn.Parameter(torch.randn(1, 4, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.weight, padding=1) + self.shift

    class InplaceAddition(Base):
        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            z = y.sigmoid()
            y += x
            return self.b(y) + z + y

    class Gates(Base):
        """Squeeze-and-excite, and a channel shuffle."""

        def forward(self, x: Tensor) -> Tensor:
            gate = F.hardsigmoid(self.a(F.adaptive_avg_pool2d(x, 1)))
            one, two = (self.b(x) * gate).chunk(2, dim=1)
            n, c, h, w = x.shape
            y = torch.cat([one, F.max_pool2d(two, 3, 1, 1)], dim=1)
            return y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w) + x


class Wrapped(nn.Module):
    """A model that contains one of the forwards of Hard."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.stem, self.inner = conv(), inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.stem(x))


HARD = {name: kind for name, kind in vars(Hard).items() if isinstance(kind, type)}
