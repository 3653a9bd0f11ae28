"""Handle models as users pass them: wrappers, and the names of submodules."""

import difflib
import fnmatch
import itertools
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

_PLANS = "_bitpare_plans"
_PREFIXES = ("module.", "_orig_mod.")  # added by DistributedDataParallel and torch.compile


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside DistributedDataParallel, DataParallel or torch.compile."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(
            model, nn.parallel.DistributedDataParallel | nn.DataParallel
        ):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's first parameter or buffer, or the CPU."""
    state = itertools.chain(model.parameters(), model.buffers())
    return next((t.device for t in state), torch.device("cpu"))


def plain_name(name: str) -> str:
    """Return a name or glob without the prefixes that wrappers add to names."""
    while name.startswith(_PREFIXES):
        name = name.partition(".")[2]
    return name


def matches(name: str, glob: str) -> bool:
    """Return whether a glob matches a name, with or without the prefixes of wrappers."""
    return fnmatch.fnmatchcase(name, glob) or fnmatch.fnmatchcase(name, plain_name(glob))


def plans_of(model: nn.Module) -> dict[str, list[dict[str, Any]]]:
    """Return the plans that changed each part of a model, as plain values, by the part's path."""
    held = {name: vars(part).get(_PLANS) for name, part in model.named_modules()}
    return {name: list(plans) for name, plans in held.items() if plans}


def note_plan(changed: nn.Module, source: nn.Module, plan: dict[str, Any]) -> None:
    """Record on a changed copy of a model the plan that changed it, so that `bp.load` can repeat
    it."""
    vars(changed)[_PLANS] = [*vars(source).get(_PLANS, ()), plan]


class Globs:
    """Globs on names that a user gave. Each must match something.

    ``unused``: the globs that have matched no name so far."""

    def __init__(self, globs: Iterable[str]) -> None:
        self.globs = list(globs)
        self.unused = list(self.globs)

    def matching(self, *names: str) -> list[str]:
        """Return the globs that match one of the names, in the order given."""
        found = [glob for glob in self.globs if any(matches(name, glob) for name in names)]
        self.unused = [glob for glob in self.unused if glob not in found]
        return found

    def last(self, *names: str) -> str | None:
        """Return the last glob that matches one of the names, or None."""
        found = self.matching(*names)
        return found[-1] if found else None


def near_names(name: str, names: Iterable[str]) -> str:
    """Return the end of an error message that lists the names nearest to an unknown one."""
    near = difflib.get_close_matches(plain_name(name), list(names), n=5, cutoff=0.4)
    return f"; near matches: {', '.join(near)}" if near else ""
