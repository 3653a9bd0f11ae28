"""Compare accuracy after the same epochs from the same float models, on real and composed
digits."""

import copy
import pathlib
import sys
from typing import Any, NamedTuple

import torch
from torch import nn

from peers import adapter
from peers.steps import optimizer_of

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "examples"))

from bitpare_examples import data, networks, training


class Recipe(NamedTuple):
    """The settings of float training, and of the epochs of quantization-aware training."""

    seeds: int
    float_epochs: int
    float_lr: float
    epochs: int
    lr: float
    decay: float


LENET, MOBILENET = "LeNet, real digits", "MobileNetV2 x0.5, composed digits"
RECIPES = {
    (LENET, 8): Recipe(3, 30, 0.05, 5, 0.01, 1e-4),
    (LENET, 4): Recipe(3, 30, 0.05, 15, 0.02, 1e-4),
    (MOBILENET, 8): Recipe(1, 8, 0.1, 2, 0.02, 4e-5),
}
QUICK = Recipe(1, 2, 0.05, 1, 0.01, 1e-4)


def problem(name: str, seed: int, quick: bool) -> tuple[nn.Module, list[torch.Tensor]]:
    """Return a network, and its data as (train x, train y, test x, test y)."""
    torch.manual_seed(seed)
    if name == LENET:
        return networks.LeNet(), list(data.digits(seed))
    model = networks.MobileNetV2(width=0.5).to(memory_format=torch.channels_last)
    found = data.composed_digits(256, 250) if quick else data.composed_digits(seed=seed)
    last = torch.channels_last
    return model, [t.contiguous(memory_format=last) if t.dim() == 4 else t for t in found]


def trained_in_float(
    name: str, recipe: Recipe, seed: int, quick: bool, folder: pathlib.Path
) -> tuple[nn.Module, list[torch.Tensor], float]:
    """Return the float model, which is the same for every tool: trained once, then read from the
    folder."""
    model, found = problem(name, seed, quick)
    path = folder / f"{name.split(',')[0].replace(' ', '-')}-{seed}.pt"
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
    else:
        optimizer = torch.optim.SGD(
            model.parameters(), lr=recipe.float_lr, momentum=0.9, weight_decay=recipe.decay
        )
        training.train(model, *found[:2], optimizer, recipe.float_epochs, seed=seed)
        torch.save(model.state_dict(), path)
    return model, found, training.accuracy(model, *found[2:])


def in_integers(tool: str, model: nn.Module, found: list[torch.Tensor]) -> float | None:
    """Return the accuracy of the model that the tool converts to, or None if it cannot convert."""
    made = adapter(tool)
    if not hasattr(made, "convert"):
        return None
    plain = getattr(made, "converted", None)  # the numbers are the same compiled or not
    integer = plain(model) if plain else made.convert(model, found[2][:2])
    return training.accuracy(integer, *found[2:])


def measure(tool: str, name: str, bits: int, quick: bool, folder: str) -> dict[str, Any]:
    recipe = QUICK if quick else RECIPES[name, bits]
    row: dict[str, list[float]] = {"float": [], "after": [], "converted": []}
    for seed in range(recipe.seeds):
        start = trained_in_float(name, recipe, seed, quick, pathlib.Path(folder))
        model, (x, y, *test), before = start
        torch.manual_seed(seed)
        batches = [x[i : i + 128] for i in range(0, min(1024, len(x)), 128)]
        qat = copy.deepcopy(model) if tool == "float" else adapter(tool).prepare(
            model, batches, bits
        )  # fmt: skip
        optimizer = optimizer_of(qat, recipe.lr, recipe.decay)
        if tool != "float":
            adapter(tool).schedule(qat, optimizer, recipe.epochs * (len(y) // 64))
        training.train(qat, x, y, optimizer, recipe.epochs, seed=seed)
        row["float"].append(before)
        row["after"].append(training.accuracy(qat, *test))
        if bits == 8 and tool != "float":
            integer = in_integers(tool, qat, [x, y, *test])
            row["converted"] += [] if integer is None else [integer]
    return {**row, "epochs": recipe.epochs}
