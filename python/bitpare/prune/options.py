"""Which options of a Pruner go together."""

from typing import Any

from bitpare.prune.criteria import CRITERIA, FROM_GRADIENTS, OF_CHANNELS, Criterion
from bitpare.prune.regrowth import Regrowth
from bitpare.prune.schedule import Schedule


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
        raise ValueError("Pruner: criterion 'movement' needs mode='ste', where weights live on")
    if criterion == "fpgm" and pattern != "filter":
        raise ValueError("Pruner: criterion 'fpgm' compares filters; use pattern='filter'")
    if schedule is not None and not isinstance(schedule, Schedule):
        raise TypeError(
            f"Pruner: schedule must be a bp.prune.Schedule, got {type(schedule).__name__}"
        )
    if criterion in FROM_GRADIENTS and schedule and schedule.sparsity_at(0) > 0:
        raise ValueError(
            f"Pruner: criterion {criterion!r} has seen no gradient before the first step; "
            "let the schedule begin later"
        )
    if regrow is not None and pattern != "element":
        raise ValueError("Pruner: regrowth goes with pattern='element'")
    if criterion in OF_CHANNELS and pattern != "channel":
        raise ValueError(
            f"Pruner: criterion {criterion!r} compares channels; use pattern='channel'"
        )
    if pattern != "channel":
        return
    if example_inputs is None:
        raise ValueError(
            "Pruner: pattern 'channel' needs example_inputs=, to see which channels go together"
        )
    if mode != "hard" or schedule is None or schedule.rewind is not None:
        raise ValueError(
            "Pruner: pattern 'channel' goes with mode='hard' and a schedule without rewinding"
        )
