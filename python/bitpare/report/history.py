"""Records of a model during its training."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from bitpare.report.layers import plain


@dataclasses.dataclass
class Record:
    """The values at one step. found: kind -> name -> value; see `Recorder`."""

    step: int
    found: dict[str, dict[str, float]]


def is_state(value: Any) -> bool:
    """Return whether a value in a checkpoint is the state of a `Recorder`."""
    if not isinstance(value, Mapping) or not {"records", "every", "step"} <= value.keys():
        return False
    records = value["records"]
    return isinstance(records, list) and all(map(_is_record, records))


def _is_record(value: Any) -> bool:
    if not isinstance(value, Mapping) or not isinstance(value.get("step"), int):
        return False
    found = value.get("found")
    return isinstance(found, Mapping) and all(
        isinstance(named, Mapping) and all(isinstance(v, float | int) for v in named.values())
        for named in found.values()
    )


def records_of(state: Mapping[str, Any]) -> list[Record]:
    """Return the records of a `Recorder`'s state."""
    return [Record(int(r["step"]), r["found"]) for r in state["records"]]


class History:
    """A list of records, in the order of their steps."""

    def __init__(self, records: list[Record] | None = None) -> None:
        self.records = [] if records is None else records

    def names(self, kind: str) -> list[str]:
        """Return the names with values of a kind: scale, clipped, sqnr, sparsity, oscillating,
        frozen or scalars."""
        return list(dict.fromkeys(n for r in self.records for n in r.found.get(kind, {})))

    def series(self, kind: str, name: str) -> list[tuple[int, float]]:
        """Return (step, value) for each record that has the value."""
        held = ((r.step, r.found.get(kind, {}).get(name)) for r in self.records)
        return [(step, value) for step, value in held if value is not None]

    def to_json(self) -> str:
        return json.dumps(plain([dataclasses.asdict(r) for r in self.records]), indent=1)
