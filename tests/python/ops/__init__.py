"""The table of ops: one entry for each registered op. Tests of all ops, the fuzzer and the
benchmarks read it; a family of ops is a file."""

from ops import (  # noqa: F401
    codes,
    distillation,
    fakes,
    fused,
    levels,
    masks,
    programs,
    ranges,
    weights,
)
from ops.entry import DTYPES, TABLE, Case, OpEntry, call, sample, schemas, tensors_in, written

__all__ = [
    "CASES",
    "DTYPES",
    "TABLE",
    "WITH_GRADIENT",
    "Case",
    "OpEntry",
    "call",
    "sample",
    "schemas",
    "tensors_in",
    "written",
]

CASES = [case for entry in TABLE.values() for case in entry.cases]
WITH_GRADIENT = [case for case in CASES if case.entry.gradient]
