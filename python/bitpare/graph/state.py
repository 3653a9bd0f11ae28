"""Protect the state of a model while it is analysed: random numbers, modes and hooks."""

import contextlib
import copy
import dataclasses
import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from bitpare.graph.results import WHOLE, parts_of


@dataclasses.dataclass
class Call:
    """The arguments of one call of a module, and the parts of its result."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any = WHOLE


def call_with(caller: str, example_inputs: Any, example_kwargs: dict[str, Any] | None) -> Call:
    """Return a call with the user's example inputs: a tuple of arguments, or a single tensor."""
    if isinstance(example_inputs, Tensor):
        example_inputs = (example_inputs,)
    if not isinstance(example_inputs, tuple | list):
        raise TypeError(
            f"{caller}: example_inputs must be a tuple of the model's arguments, got "
            f"{type(example_inputs).__name__}"
        )
    return Call(tuple(example_inputs), dict(example_kwargs or {}))


def cloned(values: Any) -> Any:
    """Return nested values with clones of their tensors."""
    return _pytree.tree_map(lambda v: v.clone() if isinstance(v, Tensor) else v, values)


def _copied(values: Any) -> Any:
    return _pytree.tree_map(lambda value: value, values)


@contextlib.contextmanager
def quiet_state(model: nn.Module) -> Iterator[None]:
    """Restore random number generators, buffers and modes at the end of the block."""
    python_state = random.getstate()
    modes = {module: module.training for module in model.modules()}
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python_state)
            for module, mode in modes.items():
                module.training = mode


_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_hooks",
    "_backward_pre_hooks",
)


@contextlib.contextmanager
def without_hooks(model: nn.Module) -> Iterator[None]:
    """Remove all hooks inside the block, so that only the user's forwards run."""
    saved = [(m, {name: m.__dict__[name] for name in _HOOKS}) for m in model.modules()]
    for module, hooks in saved:
        module.__dict__.update({name: type(hooks[name])() for name in hooks})
    try:
        yield
    finally:
        for module, hooks in saved:
            module.__dict__.update(hooks)


def clear_hooks(model: nn.Module) -> None:
    for module in model.modules():
        for name in _HOOKS:
            module.__dict__[name].clear()


def record_both(model: nn.Module, call: Call, caller: str) -> dict[bool, dict[str, list[Call]]]:
    """Return the calls of each module, in eval (False) and in training (True).

    If the model does not run in training, as with BatchNorm of a single value, the calls of
    eval are used for both."""
    try:
        calls = {False: record_calls(model, call, False)}
    except Exception as error:  # errors of the user's code
        shapes = [tuple(v.shape) if isinstance(v, Tensor) else v for v in call.args]
        raise ValueError(
            f"{caller}: the model does not run on example_inputs {shapes}: {error}"
        ) from error
    try:
        calls[True] = record_calls(model, call, True)
    except Exception:
        calls[True] = calls[False]
    return calls


def record_calls(model: nn.Module, call: Call, training: bool) -> dict[str, list[Call]]:
    """Return the calls of each module, by its first name, from one run of a copy of the model."""
    with quiet_state(model):
        probe = copy.deepcopy(model).train(training)
        clear_hooks(probe)
        found: dict[str, list[Call]] = {}

        open_calls: list[Call] = []

        def before(name: str) -> Callable[..., None]:
            def record(_: nn.Module, args: Any, kwargs: Any) -> None:
                open_calls.append(Call(*_copied((args, kwargs))))
                found.setdefault(name, []).append(open_calls[-1])

            return record

        def after(_: nn.Module, args: Any, result: Any) -> None:
            open_calls.pop().result = parts_of(result)

        for name, module in probe.named_modules():
            module.register_forward_pre_hook(before(name), with_kwargs=True)
            module.register_forward_hook(after)
        with torch.no_grad():
            probe(*_copied(call.args), **_copied(call.kwargs))
    return found
