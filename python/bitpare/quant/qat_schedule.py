"""Switch observing, quantizing and freezing by the number of applied optimizer steps."""

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn

from bitpare.models import unwrapped
from bitpare.nn import layers
from bitpare.nn.hub import find_hub
from bitpare.nn.quantizer import Quantizer
from bitpare.quant.oscillation import Oscillations
from bitpare.steps import Attached, StepCounter, check_steps, step_at


def _in_force(changes: list[tuple[float, Any]], step: int) -> Any:
    """Return the value of the last change at or before a step."""
    return next((value for when, value in reversed(changes) if step >= when), None)


class QatSchedule(Attached):
    """Change what a prepared model does during training: observing, quantizing, freezing and bits.

    Points in time are fractions of the run (floats) or applied steps (ints). The state of the
    model depends only on the number of applied steps. Let ``attach(optimizer)`` count them
    (steps that a GradScaler skips do not count), or call ``step()`` after each one.

    Args:
        model: a prepared model.
        steps: the length of the run, in applied optimizer steps.
        delay: the time at which quantization begins. Before it, only ranges are observed.
        ramp: the span after the delay in which quantizers are turned on one by one, in the order of
            the forward pass.
        freeze_ranges: the time from which ranges are fixed.
        freeze_bn: the time from which BatchNorm uses its running statistics and no longer updates
            them.
        bits: {when: bits}, such as {0: 8, 0.3: 4, 0.6: 2}, for the tensors that ``anneal`` names. A
            layer whose config asks for more than 8 bits keeps at least its own.
        anneal: "weights", "activations" or "both".
        freeze_oscillating: the frequency above which weights that oscillate between two integers
            are frozen, or {when: frequency}. `Oscillations` tracks them, as ``oscillations``. With
            inf weights are tracked and never frozen.

    >>> model = nn.Sequential(nn.Linear(2, 2))
    >>> import bitpare as bp
    >>> qat = bp.prepare(model, example_inputs=(torch.ones(1, 2),))
    >>> schedule = QatSchedule(qat, steps=100, delay=0.1, freeze_ranges=0.9)
    >>> print(schedule)
    QatSchedule at step 0 of 100: observe
      step 10: quantize 2 of 2 quantizers
      step 90: freeze ranges
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        steps: int,
        delay: float = 0,
        ramp: float = 0,
        freeze_ranges: float | None = None,
        freeze_bn: float | None = None,
        bits: Mapping[float, int] | None = None,
        anneal: Literal["weights", "activations", "both"] = "weights",
        freeze_oscillating: float | Mapping[float, float] | None = None,
    ) -> None:
        find_hub(model, "QatSchedule")
        self.steps = check_steps("QatSchedule", steps)
        if anneal not in ("weights", "activations", "both"):
            raise ValueError(
                f"QatSchedule: anneal must be weights, activations or both, got {anneal!r}"
            )
        self.model, self.anneal = unwrapped(model), anneal
        self._delay = self._at("delay", delay)
        self._ramp = self._at("ramp", ramp)
        self._freeze_ranges = self._at("freeze_ranges", freeze_ranges)
        self._freeze_bn = self._at("freeze_bn", freeze_bn)
        self._bits = sorted((self._at("bits", when), value) for when, value in (bits or {}).items())
        for _, value in self._bits:
            if not (isinstance(value, int) and 1 <= value <= 16):
                raise ValueError(f"QatSchedule: bits must be 1 to 16, got {value!r}")
        self.quantizers = [m for m in self.model.modules() if isinstance(m, Quantizer)]
        self._own_bits = {q: q.spec.bits for q in self.quantizers}
        self.oscillations: Oscillations | None = None
        self._thresholds: list[tuple[float, float]] = []
        if freeze_oscillating is not None:
            self.oscillations = Oscillations(self.model)
            given = freeze_oscillating
            given = given if isinstance(given, Mapping) else {0: given}
            self._thresholds = sorted(
                (self._at("freeze_oscillating", when), value) for when, value in given.items()
            )
        each = None if self.oscillations is None else self.oscillations.step
        self.counter = StepCounter(self._events(), self._apply, each)
        # A state that is loaded later has the bits of its own step, not those of step 0.
        self._before = {q: q.snapshot() for q in self.quantizers}
        self._loads = {q: q.loads for q in self.quantizers}
        self._apply(0)

    def _at(self, name: str, when: float | None) -> float:
        """Convert a point in time to a step number."""
        if when is None:
            return math.inf
        return step_at("QatSchedule", name, when, self.steps)

    # -- what holds after a number of steps

    def _enabled(self, step: int) -> int:
        """Return how many quantizers are on."""
        count = len(self.quantizers)
        if step < self._delay:
            return 0
        if not self._ramp:
            return count
        return min(count, math.ceil(count * (step - self._delay + 1) / (self._ramp + 1)))

    def _bits_at(self, step: int) -> int | None:
        return _in_force(self._bits, step)

    def _threshold_at(self, step: int) -> float | None:
        return _in_force(self._thresholds, step)

    def _events(self) -> list[int]:
        """Return the steps at which something changes."""
        found = {self._delay, self._freeze_ranges, self._freeze_bn}
        found |= {when for when, _ in (*self._bits, *self._thresholds)}
        if self._ramp:
            found |= {self._delay + i for i in range(int(self._ramp) + 1)}
        return sorted(int(step) for step in found if 0 < step < math.inf)

    def _apply(self, step: int) -> None:
        """Set the model's state for this step."""
        enabled, bits = self._enabled(step), self._bits_at(step)
        observe, freeze = step < self._freeze_ranges, step >= self._freeze_bn
        with torch.no_grad():
            for index, q in enumerate(self.quantizers):
                q.set_flags(
                    observe=observe and q.may_observe, quantize=index < enabled, freeze=freeze
                )
                wanted = self._own_bits[q]
                if bits is not None and self.anneal in (f"{q.role}s", "both"):
                    wanted = max(bits, wanted) if wanted > 8 else bits
                    wanted = wanted if self._can_change(q) else self._own_bits[q]
                if q.bits != wanted:
                    q.set_bits(wanted)
            if self.oscillations is not None:
                self.oscillations.freeze_above = self._threshold_at(step)
            for module in self.model.modules():
                if isinstance(module, layers.NORMS):
                    module.bp_frozen = freeze  # type: ignore[assignment]

    def _can_change(self, q: Quantizer) -> bool:
        return not q.spec.is_float and q.spec.bits > 1 and q.spec.learn not in ("ternary",)

    # -- state

    def state_dict(self) -> dict[str, Any]:
        """Return the step count and the state of ``oscillations``."""
        state: dict[str, Any] = {"step": self.step_count}
        if self.oscillations is not None:
            state["oscillations"] = self.oscillations.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue at the step of ``state``. Load the model's own state first."""
        step = int(state["step"])
        for q, snapshot in self._before.items():
            if q.bits != snapshot.bits and self.step_count == 0 and q.loads == self._loads[q]:
                q.put_back(snapshot)
        self.counter.reset(step)
        self._apply(step)
        if self.oscillations is not None:
            if "oscillations" not in state:
                raise ValueError("QatSchedule: the state is of a schedule without oscillations")
            self.oscillations.load_state_dict(state["oscillations"])

    def __str__(self) -> str:
        step, count = self.step_count, len(self.quantizers)
        lines = []
        for event in [e for e in self._events() if e > step]:
            what = []
            if self._enabled(event) != self._enabled(event - 1):
                what.append(f"quantize {self._enabled(event)} of {count} quantizers")
            if event == self._freeze_ranges:
                what.append("freeze ranges")
            if event == self._freeze_bn:
                what.append("freeze BatchNorm")
            if self._bits_at(event) != self._bits_at(event - 1):
                what.append(f"{self._bits_at(event)} bits for {self.anneal}")
            if self._threshold_at(event) != self._threshold_at(event - 1):
                what.append(f"freeze weights oscillating above {self._threshold_at(event):g}")
            lines.append(f"  step {event}: {', '.join(what)}")
        now = "observe" if not self._enabled(step) else "observe and quantize"
        if step >= self._freeze_ranges:
            now = "quantize, ranges frozen"
        return "\n".join([f"QatSchedule at step {step} of {self.steps}: {now}", *lines])
