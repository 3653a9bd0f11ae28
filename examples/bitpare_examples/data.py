"""Real digits, offline: scikit-learn's 8x8 scans, and colour scenes composed of them."""

import math

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor

TEST_IMAGES = 500


def digits(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The 1,797 scans as (train x, train y, test x, test y): [n, 1, 8, 8] in 0 .. 1; 500 of them,
    chosen by the seed, are for testing."""
    found = load_digits()
    x = torch.tensor(found.images, dtype=torch.float32).unsqueeze(1) / 16
    y = torch.tensor(found.target)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    test, train = order[:TEST_IMAGES], order[TEST_IMAGES:]
    return x[train], y[train], x[test], y[test]


def _placed(
    images: Tensor, size: int, generator: torch.Generator, scale: tuple[float, float]
) -> Tensor:
    """Images turned, scaled and moved into a square of `size`, as a mask in 0 .. 1."""
    n = len(images)

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(n, generator=generator) * (high - low) + low

    width = uniform(*scale)  # of the digit, as a part of the scene
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
    images: Tensor, labels: Tensor, count: int, size: int, seed: int
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    pick = torch.randint(len(images), (count,), generator=generator)
    mask = _placed(images[pick], size, generator, (0.5, 0.85))
    # A piece of another digit at the margin, which says nothing about the label.
    other = torch.randint(len(images), (count,), generator=generator)
    piece = _placed(images[other], size, generator, (0.2, 0.3))
    background = torch.rand(count, 3, 1, 1, generator=generator) * 0.5
    lighter = 0.3 + 0.5 * torch.rand(count, 3, 1, 1, generator=generator)
    tint = torch.rand(count, 3, 1, 1, generator=generator) * 0.6
    slope = torch.linspace(-0.5, 0.5, size).view(1, 1, 1, size)
    slope = slope * (torch.rand(count, 3, 1, 1, generator=generator) - 0.5) * 0.4
    scene = background + slope
    scene = scene + piece * (tint - background) * 0.5
    scene = scene + mask * lighter
    scene = scene + torch.randn(count, 3, size, size, generator=generator) * 0.06
    return scene.clamp(0, 1), labels[pick]


def composed_digits(
    train: int = 10_000, test: int = 2_000, *, size: int = 32, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Colour scenes, [n, 3, size, size] in 0 .. 1, each of one digit: scaled, turned, moved, in a
    colour lighter than its background, with noise and a piece of another digit. Training and test
    scenes come from different scans. Always the same for one seed."""
    train_x, train_y, test_x, test_y = digits(seed)
    return (
        *_compose(train_x, train_y, train, size, seed + 1),
        *_compose(test_x, test_y, test, size, seed + 2),
    )
