"""Prune weights with masks that follow a schedule during training."""

import warnings
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.distributed
from torch import Tensor, nn

from bitpare import functional as bpf
from bitpare import graph as g
from bitpare.distributed import world_size
from bitpare.models import unwrapped
from bitpare.prune.criteria import Criterion
from bitpare.prune.hold import hold_mask, masked_weights, release_mask
from bitpare.prune.options import check_options, schedule_of
from bitpare.prune.regrowth import Regrowth
from bitpare.prune.schedule import Schedule
from bitpare.prune.scoring import Scoring, shared
from bitpare.prune.targets import Target
from bitpare.prune.units import ChannelUnits, ElementUnits, Units
from bitpare.steps import Hooks, StepCounter

_pruned_models: weakref.WeakSet[nn.Module] = weakref.WeakSet()  # models that have a pruner


class Pruner:
    """Prune the weights of a float or a prepared model with masks while it trains.

    The weights of convolutions, linear, recurrent and attention layers are pruned. Give the
    amount by ``sparsity``, with ``steps`` and ``when`` for the time, or give a `Schedule` for
    both. With neither, the weights that are 0 now stay 0.

    Args:
        model: the model; it is changed in place.
        schedule: a `Schedule`; or, with ``sparsity``, how it grows: "cubic" (the default), "linear"
            or "exponential".
        sparsity: the share of the weights to prune, in [0, 1); or {glob: sparsity} for some of the
            weights, while the others are not pruned. Without ``steps`` and ``when`` pruning happens
            at once.
        steps: the length of the run, in applied optimizer steps.
        when: (begin, end) of pruning, (0.0, 0.5) by default. A float is a fraction of the run, an
            int an applied step.
        every: the time between two prunings; by default a hundredth of the span.
        criterion: the score of a weight. "l1" and "l2" use the norm of a block or filter, and agree
            for single elements. "lamp" is for scope "global". "taylor" and "movement" sum up
            gradients since the last pruning. "fpgm" needs pattern "filter". "bn_gamma" and "apoz"
            (how often a ReLU's result is not 0) need pattern "channel". "random" ignores the
            weights. A function of name and weight returns a score for each element.
        scope: "global" compares all weights; "local" prunes every weight to the same share. A dict
            {glob: sparsity} gives each weight its own share, scaled with the schedule; weights that
            no glob matches are not pruned.
        pattern: "element", "2:4", "block4x1" or "filter" (see `functional.select_mask`). A weight
            whose shape the pattern does not divide stays dense and is listed in ``dense``.
            "channel" prunes whole channels with their biases, norms and the columns that read them;
            a trace of ``example_inputs`` finds the groups, and `shrink` can remove them afterwards.
        mode: "hard" sets pruned weights, their gradients and optimizer state to 0. "ste" keeps the
            values of pruned weights under the mask and lets gradients pass, so that they can come
            back.
        min_keep: the number of elements (blocks, filters) of each weight that are never pruned.
        ignore: globs of weights that are not pruned.
        regrow: a `Regrowth`, which at certain steps swaps some pruned weights for others.
        example_inputs: the arguments of a call of the model, for pattern "channel".
        seed: the seed of criterion "random" and of regrowth.

    The masks depend only on the number of applied steps and on the trained weights. Let
    ``attach(optimizer)`` count the steps, or call ``step()`` after each one.

    >>> model = nn.Linear(4, 2)
    >>> pruner = Pruner(model, sparsity=0.5)
    >>> int((model.weight == 0).sum())
    4
    >>> print(pruner)
    Pruner at step 0: 4 of 8 weights pruned (50.0 %)
    """

    def __init__(
        self,
        model: nn.Module,
        schedule: Schedule | Literal["cubic", "linear", "exponential"] | None = None,
        *,
        sparsity: float | Mapping[str, float] | None = None,
        steps: int | None = None,
        when: tuple[float, float] | None = None,
        every: float | None = None,
        criterion: Criterion = "l1",
        scope: Literal["global", "local"] | Mapping[str, float] = "global",
        pattern: str = "element",
        mode: Literal["hard", "ste"] = "hard",
        min_keep: int = 1,
        ignore: Sequence[str] = (),
        regrow: Regrowth | None = None,
        example_inputs: Any = None,
        seed: int = 0,
    ) -> None:
        self.model = unwrapped(model)
        schedule = schedule_of(schedule, sparsity, steps, when, every)
        if isinstance(sparsity, Mapping):
            if scope != "global":
                raise ValueError("Pruner: sparsity={glob: ...} says the scope; leave out scope=")
            scope = sparsity
        self.schedule, self.criterion, self.pattern = schedule, criterion, pattern
        self.mode, self.min_keep, self.regrow, self.seed = mode, min_keep, regrow, seed
        check_options(schedule, criterion, pattern, mode, regrow, example_inputs)
        if self.model in _pruned_models:
            raise ValueError("Pruner: the model has a pruner already; finalize or restore that one")
        self.units: Units
        if pattern == "channel":
            call = g.call_with("Pruner", example_inputs, None)
            self.units = ChannelUnits(self.model, call, ignore)
        else:
            self.units = ElementUnits(self.model, pattern, ignore)
        self.scope, self._sparsities = self._scope(scope)
        self.targets, self.dense = self.units.targets, self.units.dense
        self.masks = {t.name: _all_kept(t.value) for t in self.targets}
        self.scoring = Scoring(criterion, seed)
        self._rewound: dict[str, Tensor] = {}
        self._hooks, self._attached = Hooks(), Hooks()
        self._noting = False
        self._optimizer: torch.optim.Optimizer | None = None
        self._warned = False
        self.counter = StepCounter(self._events(), self._at_event)
        _pruned_models.add(self.model)
        try:
            weights, masks = [t.value for t in self.targets], list(self.masks.values())
            self._weights: Any = masked_weights(weights, masks, self.mode)
            self._hooks.add(self._weights)
            self._hooks.add(*self.units.watch(self.scoring, self.model))
            if schedule is None:
                self._set_masks([bpf.pack_mask(t.value.detach() != 0) for t in self.targets])
            elif schedule.sparsity_at(0) > 0 or schedule.rewind == 0:
                self._at_event(0)
            self._note_gradients()
        except Exception:
            self._release()
            raise

    def _scope(
        self, scope: Literal["global", "local"] | Mapping[str, float]
    ) -> tuple[Literal["global", "local"], list[float] | None]:
        if isinstance(scope, str):
            if scope not in ("global", "local"):
                raise ValueError(f"Pruner: scope must be global, local or a dict, got {scope!r}")
            return scope, None
        return "local", self.units.sparsities(scope)

    def _events(self) -> list[int]:
        steps = {step for step, _ in self.schedule.events} if self.schedule else set()
        if self.schedule and self.schedule.rewind:
            steps.add(self.schedule.rewind)
        if self.regrow:
            steps |= set(self.regrow.events)
        return sorted(step for step in steps if step > 0)

    # -- gradients

    def _note_gradients(self) -> None:
        """Record dense gradients before a step at which weights come back."""
        if self.regrow is None or self.regrow.kind != "rigl":
            return
        wanted = self.regrow.wants(*self.counter.span())
        if wanted or self._noting:
            self._weights.note(wanted)
        self._noting = wanted

    def _dense_gradients(self) -> dict[str, Tensor]:
        """Return the recorded gradients, summed over all processes; 0 for a weight without a
        gradient."""
        found = [self._weights.noted(i) for i in range(len(self.targets))]
        if all(gradient is None for gradient in found) and world_size() == 1:
            return {}
        dense = [
            torch.zeros_like(t.value) if gradient is None else gradient
            for t, gradient in zip(self.targets, found, strict=True)
        ]
        return dict(zip((t.name for t in self.targets), shared(dense), strict=True))

    def _mask(self, target: Target) -> Tensor:
        """Return the mask, moved to the device of the weight."""
        mask, device = self.masks[target.name], target.value.device
        if mask.device != device:
            mask = mask.to(device)
            self._hold(target, mask)
        return mask

    def _hold(self, target: Target, mask: Tensor) -> None:
        self.masks[target.name] = mask
        hold_mask(target, mask, self.mode)
        self._weights.set(list(self.masks).index(target.name), mask)

    # -- what happens at a step

    @torch.no_grad()
    def _at_event(self, step: int) -> None:
        schedule = self.schedule
        if schedule is not None and schedule.rewind == step:
            self._rewound = {t.name: t.value.detach().clone() for t in self.targets}
        if schedule is not None and any(when == step for when, _ in schedule.events):
            self._prune(step, schedule.sparsity_at(step))
            for target in self.targets:
                if target.name in self._rewound:
                    target.value.copy_(self._rewound[target.name])
            if self._rewound and self._optimizer is not None:
                self._optimizer.state.clear()
            self._remask_states()
        if self.regrow is not None and self.regrow.wants(step - 1, step):
            dense = self._dense_gradients()
            regrown = self.regrow.masks(self.targets, self.masks, dense, step, self.seed)
            self._set_masks(regrown)

    def _prune(self, step: int, sparsity: float) -> None:
        shares: float | list[float] = sparsity
        if self._sparsities is not None:
            assert self.schedule is not None
            shares = [s * sparsity / self.schedule.sparsity for s in self._sparsities]
        # A mask only grows, but for weights that live on behind it.
        previous = [self._mask(t) for t in self.targets] if self.mode == "hard" else None
        masks = self.units.masks_for(
            self.scoring,
            step,
            shares,
            previous=previous,
            scope=self.scope,
            min_keep=self.min_keep,
        )
        self._set_masks(masks)
        self.scoring.sums.clear()
        self._warn_if_short(sparsity)

    def _warn_if_short(self, sparsity: float) -> None:
        if self._warned or self.pattern != "element" or self.scope != "global":
            return
        total = sum(t.value.numel() for t in self.targets)
        if self.pruned() < int(sparsity * total + 1e-6):
            self._warned = True
            warnings.warn(
                f"Pruner: min_keep={self.min_keep} keeps more than a sparsity of {sparsity:g} "
                "leaves; less is pruned",
                stacklevel=4,
            )

    def _set_masks(self, masks: Sequence[Tensor]) -> None:
        for target, mask in zip(self.targets, masks, strict=True):
            self._hold(target, mask)
        self._remask_states()

    @torch.no_grad()
    def _remask_states(self) -> None:
        """Set weights, gradients and optimizer states to 0 after masks changed. For most optimizers
        masked gradients keep the states at 0, but not for all the weights too."""
        self._remask()
        if self.mode != "hard":
            return
        tensors, masks = [], []
        for target in self.targets:
            weight = target.value
            found = self._states_of(weight)
            if weight.grad is not None:
                found.append(weight.grad)
            tensors += found
            masks += [self._mask(target)] * len(found)
        bpf.remask_(tensors, masks)

    def _remask(self) -> None:
        if self.mode == "hard":
            self._weights.remask()

    def _states_of(self, weight: Tensor) -> list[Tensor]:
        """Return the optimizer's tensors that have an element for each element of a weight."""
        if self._optimizer is None:
            return []
        state = self._optimizer.state.get(weight, {})
        return [
            value
            for value in state.values()
            if isinstance(value, Tensor)
            and value.shape == weight.shape
            and value.device == weight.device
        ]

    # -- counting

    def attach(self, optimizer: torch.optim.Optimizer) -> "Pruner":
        """Count the optimizer's applied steps and mask its state. Return the pruner."""
        if self._optimizer is not None:
            raise ValueError("Pruner: it is attached to an optimizer already")
        owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
        trained = [t for t in self.targets if t.value.requires_grad]
        foreign = [t.name for t in trained if id(t.value) not in owned]
        if foreign:
            raise ValueError(
                f"Pruner: the optimizer does not own {foreign[0]}"
                + (f" and {len(foreign) - 1} more" if len(foreign) > 1 else "")
                + "; give it the model's parameters, or name them in ignore="
            )
        self._optimizer = optimizer
        if self.scoring.from_gradients:
            self._attached.add(
                optimizer.register_step_pre_hook(lambda *_: self.scoring.sum_up(self.targets))
            )
        self._attached.add(optimizer.register_step_post_hook(self._after_step))
        self._remask_states()
        return self

    def detach(self) -> None:
        """Stop following the optimizer. The masks stay until `finalize` or `restore`. The pruner
        can be attached again."""
        self._attached.remove()
        self._optimizer = None

    def _after_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        self._remask()
        self.counter.after_step(optimizer, args, kwargs)
        self._note_gradients()

    def sum_gradients(self) -> None:
        """Add the current gradients to the scores, before an optimizer step. ``attach`` calls it by
        itself."""
        if self.scoring.from_gradients:
            self.scoring.sum_up(self.targets)

    def step(self) -> None:
        """Count one applied optimizer step. ``attach`` calls it by itself."""
        self._remask()
        self.counter.step()
        self._note_gradients()

    @property
    def step_count(self) -> int:
        """Return the number of applied optimizer steps."""
        return self.counter.count()

    # -- the pruned weights

    def kept(self, name: str) -> Tensor:
        """Return the mask of a weight as a bool tensor that is True where the weight is kept."""
        target = next((t for t in self.targets if t.name == name), None)
        if target is None:
            names = ", ".join(t.name for t in self.targets[:5])
            raise KeyError(f"Pruner: no weight {name!r}; there are {names}, ...")
        return bpf.unpack_mask(self._mask(target), target.value.shape)

    def pruned(self) -> int:
        """Return the number of pruned weights."""
        return sum(int((~self.kept(t.name)).sum()) for t in self.targets)

    def sparsity(self) -> dict[str, float]:
        """Return the pruned share of each weight."""
        return {t.name: 1 - float(self.kept(t.name).float().mean()) for t in self.targets}

    def __str__(self) -> str:
        total = max(sum(t.value.numel() for t in self.targets), 1)
        pruned = self.pruned()
        text = f"{pruned} of {total} weights pruned ({100 * pruned / total:.1f} %)"
        lines = [f"Pruner at step {self.step_count}: {text}"]
        if self.dense:
            lines.append(f"  dense, since {self.pattern} does not fit: {', '.join(self.dense)}")
        return "\n".join(lines)

    @torch.no_grad()
    def apply_to_(self, model: nn.Module) -> None:
        """Prune a copy of the model in place, such as an average of its weights."""
        module = unwrapped(model)
        inner = getattr(module, "module", None)
        if isinstance(inner, nn.Module) and not hasattr(self.model, "module"):
            module = inner
        parameters = dict(module.named_parameters(remove_duplicate=False))
        missing = [t.name for t in self.targets if t.name not in parameters]
        if missing:
            raise ValueError(f"Pruner.apply_to_: the model has no weight {missing[0]}")
        tensors = [parameters[t.name].detach() for t in self.targets]
        bpf.remask_(tensors, [self.masks[t.name].to(tensors[0].device) for t in self.targets])

    # -- the end

    def _release(self) -> None:
        self.detach()
        self._hooks.remove()
        for target in self.targets:
            release_mask(target)
        _pruned_models.discard(self.model)

    @torch.no_grad()
    def finalize(self) -> nn.Module:
        """Set pruned weights to 0 for good, release the model and return it."""
        tensors = [t.value.detach() for t in self.targets]
        bpf.remask_(tensors, [self._mask(t) for t in self.targets])
        self._release()
        return self.model

    def restore(self) -> nn.Module:
        """Release the model and return it with all its weights (mode "ste" only)."""
        if self.mode != "ste":
            raise ValueError(
                "Pruner.restore: pruned weights were set to 0; only mode='ste' keeps them"
            )
        self._release()
        return self.model

    # -- state

    def state_dict(self) -> dict[str, Any]:
        """Return the step count, the masks and the sums of the criterion."""
        state: dict[str, Any] = {
            "step": self.step_count,
            "masks": {name: mask.clone() for name, mask in self.masks.items()},
            "sums": {name: value.clone() for name, value in self.scoring.sums.items()},
            "rewound": {name: value.clone() for name, value in self._rewound.items()},
        }
        return state | self.units.state()

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue a run. Load the states of the model and the optimizer too, in any order."""
        masks = state["masks"]
        names = {t.name: t for t in self.targets}
        odd = sorted(set(names) ^ set(masks))
        if odd:
            raise ValueError(f"Pruner: the state is of other weights: {', '.join(odd[:5])}")
        for name, target in names.items():
            if masks[name].shape != self.masks[name].shape:
                raise ValueError(
                    f"Pruner: the mask of {name} is for {64 * masks[name].numel()} elements or "
                    f"fewer, the weight has {target.value.numel()}"
                )
        self.units.load(state)
        device = {t.name: t.value.device for t in self.targets}
        device |= dict.fromkeys(state["sums"].keys() - device.keys(), torch.device("cpu"))
        self.masks = {n: masks[n].to(device[n]).clone() for n in names}
        self.scoring.sums = {n: v.to(device[n]).clone() for n, v in state["sums"].items()}
        self._rewound = {n: v.to(device[n]).clone() for n, v in state["rewound"].items()}
        self.counter.reset(int(state["step"]))
        for target in self.targets:
            self._hold(target, self.masks[target.name])
        self._note_gradients()
        self._remask_states()


def _all_kept(weight: Tensor) -> Tensor:
    return bpf.pack_mask(torch.ones(weight.shape, dtype=torch.bool, device=weight.device))
