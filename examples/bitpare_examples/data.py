"""Real digits without a download: scikit-learn's 8x8 scans, and colour scenes composed of them.
Also CIFAR-10, if it is available."""

import math
import pathlib

import torch
import torch.nn.functional as F
from torch import Tensor

from bitpare_examples.command import fail

TEST_IMAGES = 500


def digits(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the 1,797 scans as (train x, train y, test x, test y), with x [n, 1, 8, 8] in 0 .. 1.
    The 500 test scans depend on the seed."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        fail("the digits come with the scikit-learn package: pip install scikit-learn")
    found = load_digits()
    x = torch.tensor(found.images, dtype=torch.float32).unsqueeze(1) / 16
    y = torch.tensor(found.target)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    test, train = order[:TEST_IMAGES], order[TEST_IMAGES:]
    return x[train], y[train], x[test], y[test]


def _placed(
    images: Tensor, size: int, generator: torch.Generator, scale: tuple[float, float]
) -> Tensor:
    """Rotate, scale and move images inside a square of ``size``, and return them as a mask in 0 ..
    1."""
    n = len(images)

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(n, generator=generator) * (high - low) + low

    width = uniform(*scale)  # width of the digit, relative to the scene
    angle = uniform(-math.pi / 9, math.pi / 9)
    room = (1 - width) * 0.9
    dx, dy = uniform(-1, 1) * room, uniform(-1, 1) * room
    cos, sin = angle.cos() / width, angle.sin() / width
    matrix = torch.stack(
        [
            torch.stack([cos, sin, -(cos * dx + sin * dy)], 1),
            torch.stack([-sin, cos, -(-sin * dx + cos * dy)], 1),
        ],
        1,
    )
    grid = F.affine_grid(matrix, [n, 1, size, size], align_corners=False)
    return F.grid_sample(images, grid, align_corners=False).clamp(0, 1)


def _compose(
    images: Tensor, labels: Tensor, count: int, size: int, seed: int, clear: bool = False
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    pick = torch.randint(len(images), (count,), generator=generator)
    mask = _placed(images[pick], size, generator, (0.95, 1.0) if clear else (0.5, 0.85))
    # Add another small, faint digit, which is unrelated to the label.
    other = torch.randint(len(images), (count,), generator=generator)
    piece = _placed(images[other], size, generator, (0.2, 0.3))
    background = torch.rand(count, 3, 1, 1, generator=generator) * 0.5
    lighter = 0.3 + 0.5 * torch.rand(count, 3, 1, 1, generator=generator)
    tint = torch.rand(count, 3, 1, 1, generator=generator) * 0.6
    slope = torch.linspace(-0.5, 0.5, size).view(1, 1, 1, size)
    slope = slope * (torch.rand(count, 3, 1, 1, generator=generator) - 0.5) * 0.4
    if clear:
        return (background * 0.5 + mask * lighter).clamp(0, 1), labels[pick]
    scene = background + slope
    scene = scene + piece * (tint - background) * 0.5
    scene = scene + mask * lighter
    scene = scene + torch.randn(count, 3, size, size, generator=generator) * 0.06
    return scene.clamp(0, 1), labels[pick]


def composed_digits(
    train: int = 10_000, test: int = 2_000, *, size: int = 32, seed: int = 0, clear: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return colour scenes, [n, 3, size, size] in 0 .. 1, as (train x, train y, test x, test y).

    Each scene has a digit that is scaled, rotated, moved and lighter than its background,
    noise, and another small, faint digit. clear: digits fill the scene, without noise or other
    digits, so that a network learns from few scenes. Training and test scenes use different
    scans. The scenes depend only on the seed."""
    train_x, train_y, test_x, test_y = digits(seed)
    return (
        *_compose(train_x, train_y, train, size, seed + 1, clear),
        *_compose(test_x, test_y, test, size, seed + 2, clear),
    )


def cifar10(
    folder: pathlib.Path, *, download: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return CIFAR-10 from torchvision's files in a folder, in the form of `composed_digits`. Each
    channel has mean 0 and standard deviation 1. Raise RuntimeError if it is not available."""
    try:
        from torchvision.datasets import CIFAR10
    except ImportError as error:
        raise RuntimeError("torchvision is not installed") from error
    mean = torch.tensor([0.4914, 0.4822, 0.4465]).view(1, 3, 1, 1)
    deviation = torch.tensor([0.2470, 0.2435, 0.2616]).view(1, 3, 1, 1)
    found: list[Tensor] = []
    for train in (True, False):
        try:
            part = CIFAR10(folder, train=train, download=download)
        except OSError as error:
            raise RuntimeError(f"the download failed: {error}") from error
        x = torch.from_numpy(part.data).permute(0, 3, 1, 2).float() / 255
        found += [((x - mean) / deviation).contiguous(), torch.tensor(part.targets)]
    return found[0], found[1], found[2], found[3]


def shifted_and_flipped(x: Tensor) -> Tensor:
    """Shift each image by up to 4 pixels, and flip half of them."""
    n, _, height, width = x.shape
    padded = F.pad(x, (4, 4, 4, 4), mode="reflect")
    top, left = torch.randint(0, 9, (2, n, 1), device=x.device)
    rows = top + torch.arange(height, device=x.device)
    columns = left + torch.arange(width, device=x.device)
    image = torch.arange(n, device=x.device).view(n, 1, 1)
    moved = padded[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    mirrored = torch.rand(n, 1, 1, 1, device=x.device) < 0.5
    return torch.where(mirrored, moved.flip(3), moved).contiguous()
