"""Check which options of a Pruner can be combined."""

from collections.abc import Mapping
from typing import Any

from bitpare.prune.criteria import CRITERIA, FROM_GRADIENTS, OF_CHANNELS, Criterion
from bitpare.prune.regrowth import Regrowth
from bitpare.prune.schedule import Schedule
from bitpare.steps import check_steps, span_at

SHAPES = {"cubic": Schedule.cubic, "linear": Schedule.linear, "exponential": Schedule.exponential}


def schedule_of(
    schedule: Schedule | str | None,
    sparsity: float | Mapping[str, float] | None,
    steps: int | None,
    when: tuple[float, float] | None,
    every: float | None,
) -> Schedule | None:
    """Return the schedule for a Pruner's arguments, or None to keep only the current zeros."""
    given = {"sparsity": sparsity, "steps": steps, "when": when, "every": every}
    named = [name for name, value in given.items() if value is not None]
    if isinstance(schedule, Schedule):
        if named:
            raise ValueError(
                f"Pruner: a Schedule says how much is pruned and when; leave out {named[0]}="
            )
        return schedule
    if schedule is not None and not isinstance(schedule, str):
        raise TypeError(
            "Pruner: schedule must be a bp.prune.Schedule or one of "
            f"{', '.join(SHAPES)}, got {type(schedule).__name__}"
        )
    if schedule is not None and schedule not in SHAPES:
        raise ValueError(f"Pruner: schedule must be one of {', '.join(SHAPES)}, got {schedule!r}")
    if sparsity is None:
        if named or schedule:
            raise ValueError(f"Pruner: {(*named, 'schedule')[0]}= needs sparsity=")
        return None
    if isinstance(sparsity, Mapping):
        if not sparsity:
            raise ValueError("Pruner: sparsity={} is empty; give {glob: sparsity}")
        sparsity = max(sparsity.values())
    if steps is None and when is None:
        if schedule or every:
            raise ValueError(f"Pruner: {'schedule' if schedule else 'every'}= needs steps=")
        return Schedule.one_shot(sparsity)
    length = None if steps is None else check_steps("Pruner", steps)
    begin, end = span_at("Pruner", (0.0, 0.5) if when is None else when, length)
    if begin == end:
        return Schedule.one_shot(sparsity, at=begin)
    between = max((end - begin) // 100, 1) if every is None else every
    shape = SHAPES[schedule or "cubic"]
    return shape(sparsity, begin=begin, end=end, every=between, steps=length)


def check_options(
    schedule: Schedule | None,
    criterion: Criterion,
    pattern: str,
    mode: str,
    regrow: Regrowth | None,
    example_inputs: Any,
) -> None:
    if not callable(criterion) and criterion not in CRITERIA:
        raise ValueError(
            f"Pruner: criterion must be one of {', '.join(CRITERIA)} or a function, got "
            f"{criterion!r}"
        )
    if mode not in ("hard", "ste"):
        raise ValueError(f"Pruner: mode must be hard or ste, got {mode!r}")
    if criterion == "movement" and mode != "ste":
        raise ValueError(
            "Pruner: criterion 'movement' needs mode='ste', which keeps pruned weights"
        )
    if criterion == "fpgm" and pattern != "filter":
        raise ValueError("Pruner: criterion 'fpgm' compares filters; use pattern='filter'")
    if criterion in FROM_GRADIENTS and schedule and schedule.sparsity_at(0) > 0:
        raise ValueError(
            f"Pruner: criterion {criterion!r} has seen no gradient before the first step; "
            "let the schedule begin later"
        )
    if regrow is not None and pattern != "element":
        raise ValueError("Pruner: regrow= needs pattern='element'")
    if criterion in OF_CHANNELS and pattern != "channel":
        raise ValueError(
            f"Pruner: criterion {criterion!r} compares channels; use pattern='channel'"
        )
    if pattern != "channel":
        return
    if example_inputs is None:
        raise ValueError(
            "Pruner: pattern 'channel' needs example_inputs=, to find the channels that go together"
        )
    if mode != "hard" or schedule is None or schedule.rewind is not None:
        raise ValueError(
            "Pruner: pattern 'channel' needs mode='hard' and a schedule without rewind"
        )
