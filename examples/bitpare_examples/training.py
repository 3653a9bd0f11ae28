"""A plain training loop, and accuracy."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def accuracy(model: nn.Module, x: Tensor, y: Tensor, batch: int = 250) -> float:
    """Percent of right answers."""
    model.eval()
    with torch.no_grad():
        right = sum(
            (model(part).argmax(1) == labels).sum().item()
            for part, labels in zip(x.split(batch), y.split(batch), strict=True)
        )
    return 100.0 * right / len(y)


def train(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    *,
    batch: int = 64,
    seed: int = 0,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    objective: Callable[[Tensor, Tensor], Tensor] | None = None,
    after_epoch: Callable[[int], None] | None = None,
) -> None:
    """Epochs of SGD with the learning rate going down along a cosine. objective: of images and
    labels, in place of the loss of the model's result."""
    generator = torch.Generator().manual_seed(seed)
    steps = epochs * (len(y) // batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for epoch in range(epochs):
        model.train()
        for part in torch.randperm(len(y), generator=generator).split(batch):
            if len(part) < batch:
                continue
            optimizer.zero_grad()
            if objective is not None:
                objective(x[part], y[part]).backward()
            else:
                loss(model(x[part]), y[part]).backward()
            optimizer.step()
            schedule.step()
        if after_epoch is not None:
            after_epoch(epoch)
