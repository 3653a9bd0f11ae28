"""Networks for the examples. They contain no code for quantization."""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LeNet(nn.Module):
    """LeNet for 8x8 digits."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.fc1 = nn.Linear(128, 84)
        self.fc2 = nn.Linear(84, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.fc1(torch.flatten(x, 1)))
        return self.fc2(x)


class SceneNet(nn.Module):
    """Four convolutions for 32 px scenes."""

    def __init__(self, width: int = 32, classes: int = 10) -> None:
        super().__init__()
        widths = (3, width, 2 * width, 2 * width, 4 * width)
        self.layers = nn.ModuleList(
            nn.Sequential(*_conv(i, o, 3), nn.ReLU()) for i, o in itertools.pairwise(widths)
        )
        self.classifier = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            x = layer(x if i == 0 else F.max_pool2d(x, 2))
        return self.classifier(x.mean([2, 3]))


class BasicBlock(nn.Module):
    """Two convolutions with a residual addition (He et al. 2015)."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(*_conv(channels, out, 3, stride), nn.ReLU())
        self.conv2 = nn.Sequential(*_conv(out, out, 3))
        changes = stride != 1 or channels != out
        self.shortcut = nn.Sequential(*_conv(channels, out, 1, stride)) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        added = x if self.shortcut is None else self.shortcut(x)
        return F.relu(self.conv2(self.conv1(x)) + added)


class ResNet(nn.Module):
    """A ResNet for 32 px images (He et al. 2015, section 4.2): three stages of ``blocks`` blocks.
    The first stage has ``width`` channels."""

    def __init__(self, blocks: int = 1, width: int = 16, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_conv(3, width, 3), nn.ReLU())
        layers, channels = [], width
        for stage in range(3):
            for i in range(blocks):
                stride = 2 if stage > 0 and i == 0 else 1
                layers.append(BasicBlock(channels, width << stage, stride))
                channels = width << stage
        self.blocks = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.blocks(self.stem(x)).mean([2, 3]))


class InvertedResidual(nn.Module):
    """A block of expansion, depthwise convolution and projection (Sandler et al. 2018)."""

    def __init__(self, channels: int, out: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = channels * expand
        self.residual = stride == 1 and channels == out
        layers: list[nn.Module] = []
        if expand > 1:
            layers += [*_conv(channels, hidden, 1), nn.ReLU6(inplace=True)]
        layers += [*_conv(hidden, hidden, 3, stride, hidden), nn.ReLU6(inplace=True)]
        self.conv = nn.Sequential(*layers, *_conv(hidden, out, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


def _conv(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


class MobileNetV2(nn.Module):
    """MobileNetV2 (Sandler et al. 2018, table 2) with a width multiplier. The first convolution has
    stride 1, for 32 px images."""

    SETTINGS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1),
                (6, 160, 3, 2), (6, 320, 1, 1))  # fmt: skip

    def __init__(self, classes: int = 10, width: float = 1.0) -> None:
        super().__init__()

        def scaled(channels: int) -> int:
            return max(8, int(channels * width + 4) // 8 * 8)

        channels = scaled(32)
        layers: list[nn.Module] = [nn.Sequential(*_conv(3, channels, 3), nn.ReLU6(inplace=True))]
        for expand, out, repeats, stride in self.SETTINGS:
            for i in range(repeats):
                step = stride if i == 0 else 1
                layers.append(InvertedResidual(channels, scaled(out), step, expand))
                channels = scaled(out)
        last = max(640, scaled(1280))
        layers.append(nn.Sequential(*_conv(channels, last, 1), nn.ReLU6(inplace=True)))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(last, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean([2, 3]))
