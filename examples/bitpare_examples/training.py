"""Train with a plain loop that can be resumed, and measure accuracy."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import bitpare as bp
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from bitpare_examples import command
from bitpare_examples.checkpoint import Checkpoint


def accuracy(model: nn.Module, x: Tensor, y: Tensor, batch: int = 250) -> float:
    """Return the percentage of correct answers."""
    model.eval()
    with torch.no_grad():
        right = sum(
            (model(part).argmax(1) == labels).sum().item()
            for part, labels in zip(x.split(batch), y.split(batch), strict=True)
        )
    return 100.0 * right / len(y)


def steps_of(y: Tensor, epochs: int, batch: int) -> int:
    """Return the number of optimizer steps that `train` takes."""
    return epochs * (len(y) // batch)


def train(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    *,
    batch: int = 64,
    seed: int = 0,
    objective: Callable[[Tensor, Tensor], Tensor] | None = None,
    evaluate: Callable[[], float] | None = None,
    recorder: bp.report.Recorder | None = None,
    scaler: torch.amp.GradScaler | None = None,
    name: str = "",
    checkpoint: Checkpoint | None = None,
    parts: Mapping[str, Any] | None = None,
) -> None:
    """Train for some epochs, with a learning rate that falls along a cosine.

    With several processes, each trains on its share of every batch.

    objective: the loss of images and labels; by default the cross entropy of the model's
    result. evaluate: returns a percentage after each epoch, which the progress bar shows. name:
    the name of the progress bar; None shows none. recorder: gets losses and percentages.
    checkpoint: saves model, optimizer, learning rate, recorder, scaler, random numbers and
    ``parts`` (other objects with a state) after each epoch, and restores them when the run is
    resumed."""
    if len(y) < batch:
        command.fail(f"{len(y)} images are fewer than one batch takes ({batch})")
    generator = torch.Generator().manual_seed(seed)
    steps = steps_of(y, epochs, batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    scaler = torch.amp.GradScaler(y.device.type, enabled=False) if scaler is None else scaler
    held = {"model": model, "optimizer": optimizer, "learning rate": schedule, "scaler": scaler}
    held |= {"recorder": recorder} if recorder is not None else {}
    held |= parts or {}
    first = 0 if checkpoint is None else checkpoint.restore(name, held, generator)
    rank, world = command.processes()
    bar = tqdm(total=epochs, initial=first, desc=name, unit="epoch", disable=not name or rank > 0)
    with bar:
        for epoch in range(first, epochs):
            model.train()
            for part in torch.randperm(len(y), generator=generator).split(batch):
                if len(part) < batch:
                    continue
                part = part[rank::world].to(y.device)
                optimizer.zero_grad()
                if objective is not None:
                    loss = objective(x[part], y[part])
                else:
                    loss = F.cross_entropy(model(x[part]), y[part])
                if recorder is not None:
                    recorder.log(loss=loss)
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
                schedule.step()
            if evaluate is not None:
                percent = evaluate()
                bar.set_postfix_str(f"{percent:.1f} %", refresh=False)
                if recorder is not None:
                    recorder.log(accuracy=percent)
            if checkpoint is not None and rank == 0:
                checkpoint.save(name, epoch + 1, held, generator)
            bar.update()


def trained_in_float(
    model: nn.Module,
    data: Sequence[Tensor],
    options: argparse.Namespace,
    run: Checkpoint,
    *,
    lr: float,
    batch: int = 64,
) -> nn.Module:
    """Train the model with SGD on (x, y, test x, test y) for ``options.epochs``, and return it in
    eval."""
    x, y, test_x, test_y = data
    groups = bp.param_groups(model, weight_decay=1e-4)
    optimizer = torch.optim.SGD(groups, lr=lr, momentum=0.9)
    with command.recorder(model, optimizer, options, "float") as recorder:
        train(
            model,
            x,
            y,
            optimizer,
            options.epochs,
            batch=batch,
            seed=options.seed,
            evaluate=lambda: accuracy(model, test_x, test_y),
            recorder=recorder,
            name="float",
            checkpoint=run,
        )
    return model.eval()
