"""QSpec: how one tensor is quantized."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

ROUNDINGS = ("nearest", "half_up", "floor", "ceil", "toward_zero", "stochastic")
RANGES = ("minmax", "ema", "percentile", "mse", "entropy", "sigma")
LEARNS = ["lsq", "lsq+", "pact", "dorefa", "binary", "ternary"]  # users may add names
ESTIMATORS = ("ste", "identity", "ewgs", "tanh")
GRANULARITIES = ("tensor", "channel", "token")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(f"QSpec: {message}")


def _one_of(name: str, value: object, allowed: Sequence[str]) -> None:
    _require(value in allowed, f"{name} must be one of {', '.join(allowed)}, got {value!r}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class QSpec:
    """How one tensor is quantized.

    Args:
        bits: 1 to 16.
        signed: whether codes are signed. None chooses what the target's integer kernels need:
            signed for weights; for activations see ``QConfig.target``.
        symmetric: whether the zero point is 0. None chooses as for ``signed``.
        power_of_two: whether scales are rounded up to powers of two.
        narrow: whether to leave out the most negative code (-127..127).
        granularity: one scale per "tensor", per "channel" (output channel, for weights) or per
            "token" (the last dimension).
        group: one scale per this many neighbours of the last dimension, instead of ``granularity``.
        rounding: "nearest", "half_up", "floor", "ceil", "toward_zero" or "stochastic".
        range: how the range is determined: "minmax", "ema", "percentile", "mse", "entropy", "sigma"
            (mean +- ``sigma`` deviations), or a fixed pair (low, high).
        momentum: the momentum of "ema".
        percentile: the percentage of values that "percentile" keeps.
        sigma: the number of deviations for "sigma".
        stretch: a factor for the range.
        learn: the method that replaces ``range``: "lsq" (Esser 2020), "lsq+" (Bhalgat 2020), "pact"
            (Choi 2018), "dorefa" (Zhou 2016), "binary" (mean magnitude), "ternary", or a name from
            `bp.extend.quantizer`. None uses ``range``.
        estimator: the gradient of rounding: "ste", "identity", "ewgs" or "tanh" (DSQ).
        delta: the parameter of "ewgs" and "tanh".
        dynamic: whether the range is taken from each batch, even at inference.
        exponent: the exponent bits of a floating-point format; see ``QSpec.float``.
        mantissa: the mantissa bits of a floating-point format.

    >>> QSpec(bits=4, learn="lsq")
    QSpec(bits=4, learn='lsq')
    """

    bits: int = 8
    signed: bool | None = None
    symmetric: bool | None = None
    power_of_two: bool = False
    narrow: bool | None = None
    granularity: Literal["tensor", "channel", "token"] | None = None
    group: int | None = None
    rounding: Literal["nearest", "half_up", "floor", "ceil", "toward_zero", "stochastic"] = (
        "nearest"
    )
    range: (
        Literal["minmax", "ema", "percentile", "mse", "entropy", "sigma"]
        | tuple[float, float]
        | None
    ) = None
    momentum: float = 0.01
    percentile: float = 99.99
    sigma: float = 3.0
    stretch: float = 1.0
    learn: str | None = None
    estimator: Literal["ste", "identity", "ewgs", "tanh"] = "ste"
    delta: float = 0.0
    dynamic: bool = False
    exponent: int | None = None
    mantissa: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.range, list):
            object.__setattr__(self, "range", tuple(self.range))
        self._check_fields()
        self._check_combinations()

    def _check_fields(self) -> None:
        _require(
            isinstance(self.bits, int) and 1 <= self.bits <= 16,
            f"bits must be 1 to 16, got {self.bits!r}",
        )
        _one_of("rounding", self.rounding, ROUNDINGS)
        _one_of("estimator", self.estimator, ESTIMATORS)
        if self.granularity is not None:
            _one_of("granularity", self.granularity, GRANULARITIES)
        if self.learn is not None:
            _one_of("learn", self.learn, LEARNS)
        if isinstance(self.range, tuple):
            low, high = self.range if len(self.range) == 2 else (1.0, 0.0)
            _require(low < high, f"range must be (low, high) with low < high, got {self.range}")
        elif self.range is not None:
            _one_of("range", self.range, RANGES)
        _require(
            self.group is None or self.group >= 1, f"group must be 1 or more, got {self.group}"
        )
        _require(0 < self.momentum <= 1, f"momentum must be in (0, 1], got {self.momentum}")
        _require(
            50 < self.percentile <= 100, f"percentile must be in (50, 100], got {self.percentile}"
        )
        _require(self.sigma > 0, f"sigma must be positive, got {self.sigma}")
        _require(self.stretch > 0, f"stretch must be positive, got {self.stretch}")

    def _check_combinations(self) -> None:
        _require(
            self.group is None or self.granularity is None,
            "group and granularity are two ways to say how many scales there are; give one",
        )
        _require(
            not (self.symmetric is False and self.power_of_two),
            "power-of-two scales go with symmetric=True: an integer zero point would move the ends "
            "of the range by up to half of it",
        )
        _require(
            not (self.dynamic and self.learn),
            f"dynamic ranges come from each batch, so learn={self.learn!r} has nothing to learn",
        )
        _require(
            not (self.dynamic and self.range is not None and self.range != "minmax"),
            f"dynamic ranges are each batch's min and max, got range={self.range!r}",
        )
        _require(
            not (self.learn and self.range is not None),
            f"learn={self.learn!r} finds the range by training; leave range unset",
        )
        _require(
            not (self.learn in ("lsq", "lsq+", "pact", "dorefa") and self.estimator != "ste"),
            f"learn={self.learn!r} defines its own gradient; estimator={self.estimator!r} has none",
        )
        _require(
            not (self.learn and self.rounding != "nearest"),
            f"learn={self.learn!r} rounds to the nearest, got rounding={self.rounding!r}",
        )
        _require(
            not (self.learn == "lsq+" and self.symmetric), "lsq+ learns an offset: symmetric=False"
        )
        _require(
            not (self.learn == "lsq" and self.symmetric is False),
            "lsq has no offset; learn='lsq+' learns one",
        )
        _require(
            not (self.learn == "ternary" and self.bits != 2),
            f"ternary codes have 2 bits, got bits={self.bits}",
        )
        _require(
            not (self.learn == "binary" and self.bits != 1),
            f"binary codes have 1 bit, got bits={self.bits}",
        )
        _require(
            not (self.bits == 1 and self.learn not in (None, "binary", "lsq")),
            f"1 bit is binary: learn must be None, 'binary' or 'lsq', got {self.learn!r}",
        )
        _require(
            not (self.bits == 1 and self.rounding != "nearest"),
            f"1 bit takes the sign; rounding={self.rounding!r} does not apply",
        )
        _require(
            self.learn != "pact" or self.signed is not True,
            "pact clips at 0 and a learned top, so its codes are unsigned",
        )
        _require(
            self.granularity != "token" or self.dynamic,
            "a scale per token needs dynamic=True: tokens differ from batch to batch",
        )
        histogram = self.range in ("percentile", "entropy")
        _require(
            not (histogram and (self.group or self.granularity == "token")),
            f"range={self.range!r} counts a histogram for each tensor or channel, "
            "not for groups or tokens",
        )
        _require(
            (self.exponent is None) == (self.mantissa is None),
            "exponent and mantissa go together: QSpec.float(4, 3)",
        )
        if self.is_float:
            _require(
                self.learn is None and self.estimator == "ste" and not self.narrow,
                "a floating-point format has no integer grid to learn or to narrow",
            )

    @classmethod
    def float(cls, exponent: int, mantissa: int, **options: Any) -> "QSpec":
        """Return a spec of a floating-point format: (4, 3) and (5, 2) are fp8, (2, 1) is fp4.

        >>> QSpec.float(4, 3).bits
        8
        """
        return cls(bits=1 + exponent + mantissa, exponent=exponent, mantissa=mantissa, **options)

    @property
    def is_float(self) -> bool:
        """Return whether the format is floating-point."""
        return self.exponent is not None

    def replace(self, **changes: Any) -> "QSpec":
        """Return a copy with these options changed."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that differ from the defaults.

        >>> QSpec(bits=4, range=(0.0, 6.0)).to_dict()
        {'bits': 4, 'range': [0.0, 6.0]}
        """
        found = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value != field.default or field.name == "bits":
                found[field.name] = list(value) if isinstance(value, tuple) else value
        return found

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "QSpec":
        """Return the spec from the values of ``to_dict``."""
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        _require(not unknown, f"unknown option {', '.join(unknown)}; known are {sorted(known)}")
        return cls(**values)

    def __repr__(self) -> str:
        options = ", ".join(
            f"{name}={tuple(v) if isinstance(v, list) else v!r}"
            for name, v in self.to_dict().items()
        )
        return f"QSpec({options})"


class Float:
    """The type of ``bp.FLOAT``, which keeps a tensor in floating point."""

    def __repr__(self) -> str:
        return "FLOAT"

    def __reduce__(self) -> str:
        return "FLOAT"


FLOAT = Float()
Spec = QSpec | Float
