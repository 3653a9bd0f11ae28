"""Ops that give values two or three levels, and the mean magnitude that scales them."""

import bitpare as bp
import reference
import torch
from torch import Tensor

from ops.entry import (
    CONTIGUOUS,
    LAST,
    SHAPE,
    TABLE,
    Arguments,
    Case,
    Expected,
    OpEntry,
    Speed,
    backward_of,
    floats,
    scale,
)
from ops.fakes import scaled_arguments

F = bp.functional


def levels_cases(op: str) -> list[Case]:
    shape, rows = (3, 4, 5, 6), []
    for given in (True, False):
        rows += [
            Case(op, shape, {}, scale=given),
            Case(op, shape, {"axis": 0}, scale=given),
            Case(op, shape, {"axis": 1}, scale=given, layout="channels_last"),
            Case(op, (4, 64), {"group": 16}, scale=given),
            Case(op, shape, {"estimator": "identity"}, scale=given),
        ]
    if op == "binarize":
        for levels in ("zero_one", "minus_one_zero"):
            rows.append(Case(op, shape, {"levels": levels, "axis": 0}))
    return rows


class Levels:
    """A call of binarize or ternarize, taken apart."""

    def __init__(self, case: Case) -> None:
        (self.x, self.given), kwargs = case.arguments()
        self.granularity = kwargs.get("axis"), kwargs.get("group")
        self.kind = "ternary" if case.op == "ternarize" else kwargs.get("levels", "sign")
        self.scale, threshold = self.given, None
        if self.kind == "ternary":
            threshold = self.mean(None) * 0.7 if self.given is None else self.given * 0.5
        if self.given is None:
            self.scale = self.mean(threshold)
        self.threshold = self.each(threshold)
        self.level = reference.levels(self.x, self.kind, self.threshold)

    def mean(self, threshold: Tensor | None) -> Tensor:
        return reference.mean_magnitude(self.x, threshold, *self.granularity)

    def each(self, values: Tensor | None) -> Tensor:
        return reference.per_element(values, self.x, *self.granularity)


def levels_value(case: Case) -> Expected:
    c = Levels(case)
    near = (c.x.double().abs() - c.threshold).abs() < 1e-6 if c.kind == "ternary" else None
    return Expected(c.level * c.each(c.scale), near)


def levels_gradient(case: Case, dy: Tensor) -> list[Expected]:
    c = Levels(case)
    limit = c.each(c.scale) * (1.5 if c.kind == "ternary" else 1.0)
    near = (c.x.double().abs() - limit).abs() < 1e-5
    passes = (c.x.double().abs() <= limit) | (case.attributes.get("estimator") == "identity")
    gradients = [Expected(torch.where(passes, dy.double(), 0.0), near)]
    if c.given is not None:
        ds = reference.reduce_like(dy.double() * c.level, c.given, *c.granularity)
        gradients.append(Expected(ds, scale=dy.double().abs().sum().item()))
    return gradients


def two_levels() -> Arguments:
    return {"x": floats(*SHAPE), "scale": scale(), "axis": 1, "group": None}


def private_levels() -> Arguments:
    more = {"threshold": scale() / 2, "levels": 3, "memory_format": CONTIGUOUS}
    return {**two_levels(), **more}


def binarize_speed(x: Tensor):
    s = torch.tensor(0.05, device=x.device)
    eager = lambda: torch.where(x < 0, -s, s)  # noqa: E731
    return {"bitpare": lambda: F.binarize(x, s), "torch": eager}


def ternarize_speed(x: Tensor):
    s = torch.tensor(0.05, device=x.device)
    return {"bitpare": lambda: F.ternarize(x, s)}


TABLE["binarize"] = OpEntry(
    cases=levels_cases("binarize"),
    build=scaled_arguments,
    reference=levels_value,
    gradient=levels_gradient,
    learned=("x", "scale"),
    sample=two_levels,
    speed=Speed(8, binarize_speed),
)
TABLE["ternarize"] = OpEntry(
    cases=levels_cases("ternarize"),
    build=scaled_arguments,
    reference=levels_value,
    gradient=levels_gradient,
    learned=("x", "scale"),
    sample=lambda: {**two_levels(), "threshold": scale() / 2},
    speed=Speed(8, ternarize_speed),
)
TABLE["_binarize"] = OpEntry(sample=private_levels, variants=({"memory_format": LAST},))
TABLE["_binarize_gradient"] = OpEntry(
    sample=lambda: backward_of(private_levels(), clipped=True),
    variants=({"threshold": None, "levels": 0, "memory_format": LAST},),
)
TABLE["mean_magnitude"] = OpEntry(
    cases=[
        Case("mean_magnitude", (3, 4, 5, 6)),
        Case("mean_magnitude", (3, 4, 5, 6), {"axis": 1}),
        Case("mean_magnitude", (3, 4, 5, 6), {"axis": 1}, layout="channels_last"),
        Case("mean_magnitude", (3, 5000), {"axis": 0}),
        Case("mean_magnitude", (0, 3), {"axis": 1}),
        Case("mean_magnitude", (4, 64), {"group": 16}),
    ],
    reference=lambda case: Expected(
        reference.mean_magnitude(
            case.x(), None, case.attributes.get("axis"), case.attributes.get("group")
        )
    ),
    sample=lambda: {"x": floats(*SHAPE), "threshold": scale(), "axis": 1},
    speed=Speed(
        4,
        lambda x: {
            "bitpare": lambda: F.mean_magnitude(x),
            "torch": lambda: x.abs().mean(),
        },
    ),
)
TABLE["_mean_magnitude"] = OpEntry(
    sample=lambda: {"x": floats(*SHAPE), "threshold": scale(), "axis": 1, "group": None}
)
