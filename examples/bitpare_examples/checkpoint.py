"""Save the state of a training run to a file."""

import argparse
import copy
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from bitpare_examples.command import can_resume, fail, settings


class Checkpoint:
    """The stages of a training run, each with the states of its parts and the number of epochs
    done.

    A resumed run takes the same path through the program. A finished stage restores its states
    and is not trained again. settings: the options that results depend on; a run cannot be
    resumed with others. The file is always complete, because a new one replaces the old one
    only when written."""

    def __init__(self, path: pathlib.Path, settings: Mapping[str, Any], *, resume: bool) -> None:
        self.path, self.settings = path, dict(settings)
        self.stages: dict[str, dict[str, Any]] = self._read() if resume else {}

    @classmethod
    def of(cls, options: argparse.Namespace) -> "Checkpoint":
        """Return the checkpoint in an example's results folder."""
        try:
            options.output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            fail(f"--output: {options.output} cannot be made ({error.strerror})")
        path = options.output / "checkpoint.pt"
        return cls(path, settings(options), resume=options.resume)

    def _read(self) -> dict[str, dict[str, Any]]:
        found = _loaded(self.path, "--resume")
        if not isinstance(found, dict) or found.keys() != {"settings", "stages"}:
            fail(f"--resume: {self.path} is no checkpoint of an example")
        settings, stages = found["settings"], found["stages"]
        if settings.keys() != self.settings.keys():
            fail(f"--resume: {self.path} is of another example")
        for key, then in settings.items():
            now = self.settings[key]
            if then != now:
                option = "--" + key.replace("_", "-")
                fail(f"--resume: {self.path} was made with {option} {then}, and this is {now}")
        can_resume(self.path)
        return stages

    def restore(self, stage: str, parts: Mapping[str, Any], generator: torch.Generator) -> int:
        """Restore the states of the parts, and return the number of epochs done."""
        found = self.stages.get(stage)
        if found is None:
            return 0
        for name, part in parts.items():
            part.load_state_dict(found["parts"][name])
        generator.set_state(found["order"])
        torch.set_rng_state(found["random"])
        if torch.cuda.is_available() and found["random on GPUs"]:
            torch.cuda.set_rng_state_all(found["random on GPUs"])
        return int(found["epochs"])

    def save(
        self, stage: str, epochs: int, parts: Mapping[str, Any], generator: torch.Generator
    ) -> None:
        self.stages[stage] = {
            "epochs": epochs,
            "parts": {name: copy.deepcopy(part.state_dict()) for name, part in parts.items()},
            "order": generator.get_state(),
            "random": torch.get_rng_state(),
            "random on GPUs": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }
        beside = self.path.with_suffix(".new")
        with open(beside, "wb") as file:
            torch.save({"settings": self.settings, "stages": self.stages}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, self.path)
        can_resume(self.path)


def load_weights(model: nn.Module, path: pathlib.Path, option: str) -> None:
    """Load weights from a state dict in a file, which must be of this model."""
    state = _loaded(path, option)
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        shown = "; ".join(line.strip() for line in str(error).splitlines()[:3])
        fail(f"{option}: {path} holds no weights of this {type(model).__name__}: {shown}")


def _loaded(path: pathlib.Path, option: str) -> Any:
    """Return what torch.save wrote to a file that the option names."""
    if not path.is_file():
        fail(f"{option}: there is no file {path}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file may raise anything
        fail(f"{option}: {path} is damaged, or not a file of torch.save ({_first_line(error)})")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
