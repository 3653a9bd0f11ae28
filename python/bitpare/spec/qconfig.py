"""QConfig: how each layer of a model is quantized."""

import dataclasses
import sys
from collections.abc import Callable
from typing import Any, Literal

from torch import nn

from bitpare.models import matches, near_names
from bitpare.spec.qspec import FLOAT, Float, QSpec, Spec

TARGETS = ("onnxruntime", "tensorrt")
INT8 = QSpec()
Target = Literal["onnxruntime", "tensorrt"]
Pattern = str | type | Callable[[str, nn.Module], bool]


@dataclasses.dataclass(frozen=True)
class Override:
    """Different specs for the layers that ``pattern`` matches. None keeps the spec chosen
    before."""

    pattern: Pattern
    weight: Spec | None = None
    activation: Spec | None = None

    def matches(self, name: str, module: nn.Module | None) -> bool:
        if isinstance(self.pattern, str):
            return matches(name, self.pattern)
        if module is None:
            return False
        if isinstance(self.pattern, type):
            return isinstance(module, self.pattern)
        return bool(self.pattern(name, module))

    def __str__(self) -> str:
        pattern = (
            self.pattern if isinstance(self.pattern, str) else getattr(self.pattern, "__name__", "")
        )
        chosen = [f"{k}={v}" for k in ("weight", "activation") if (v := getattr(self, k))]
        return f"{pattern}: {', '.join(chosen)}"


def _spec_to_plain(spec: Spec | None) -> Any:
    if spec is None:
        return None
    return "float" if isinstance(spec, Float) else spec.to_dict()


def _spec_from_plain(value: Any) -> Spec | None:
    if value is None or isinstance(value, QSpec | Float):
        return value
    if value == "float":
        return FLOAT
    if not isinstance(value, dict):
        raise ValueError(f"QConfig: a spec must be a mapping or 'float', got {value!r}")
    return QSpec.from_dict(value)


def _pattern_to_plain(pattern: Pattern) -> str:
    if isinstance(pattern, str):
        return pattern
    if isinstance(pattern, type):
        return f"type:{pattern.__module__}.{pattern.__qualname__}"
    raise ValueError(
        f"QConfig: the predicate {getattr(pattern, '__name__', pattern)!r} cannot be written to a "
        "file; use a glob or a type"
    )


def _pattern_from_plain(text: str) -> Pattern:
    if not text.startswith("type:"):
        return text
    module, _, name = text[5:].rpartition(".")
    found = getattr(sys.modules.get(module), name, None)
    if not isinstance(found, type):  # a config file must not import modules
        raise ValueError(f"QConfig: no type {text[5:]} is known here; import {module} first")
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class QConfig:
    """How each layer of a model is quantized.

    Args:
        weight: the spec of weights, a QSpec or FLOAT.
        activation: the spec of activations, a QSpec or FLOAT.
        target: the runtime whose integer grid activations use, unless their spec says otherwise:
            "onnxruntime" (unsigned, with zero point 0 if no value is negative) or "tensorrt"
            (signed, symmetric).
        first_last: the bits of layers at the model's inputs and outputs, in place of both specs;
            None treats them like all others.
        overrides: what `override` added.

    >>> print(QConfig.int8().override("head.*", weight=QSpec(bits=4)))
    QConfig for onnxruntime
      weight      QSpec(bits=8)
      activation  QSpec(bits=8)
      head.*: weight=QSpec(bits=4)
    """

    weight: Spec = INT8
    activation: Spec = INT8
    target: Target = "onnxruntime"
    first_last: int | None = None
    overrides: tuple[Override, ...] = ()

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise ValueError(
                f"QConfig: target must be one of {', '.join(TARGETS)}, got {self.target!r}"
            )
        for role in ("weight", "activation"):
            self._check(role, getattr(self, role))
        for override in self.overrides:
            for role in ("weight", "activation"):
                self._check(role, getattr(override, role))

    def _check(self, role: str, spec: Spec | None) -> None:
        if spec is None or isinstance(spec, Float):
            return
        if not isinstance(spec, QSpec):
            raise ValueError(f"QConfig: {role} must be a QSpec or FLOAT, got {spec!r}")

        def refuse(condition: object, reason: str) -> None:
            if condition:
                raise ValueError(f"QConfig: {role}={spec}: {reason}")

        if role == "activation":
            refuse(spec.group, "activations have no groups; granularity='token' is the nearest")
            refuse(
                spec.learn in ("binary", "ternary") and spec.learn == "ternary",
                "ternary codes are for weights",
            )
            refuse(
                self.target == "tensorrt" and spec.symmetric is False,
                "the tensorrt grid is symmetric",
            )
        else:
            refuse(spec.dynamic, "weights do not change with the batch: dynamic has no meaning")
            refuse(spec.learn == "pact", "pact clips activations")
            refuse(spec.granularity == "token", "weights have no tokens; use 'channel' or group")
            refuse(
                spec.symmetric is False and not self._weights_only(),
                "integer kernels multiply weights with zero point 0: symmetric=False is for "
                "weight-only quantization (activation=FLOAT)",
            )

    def _weights_only(self) -> bool:
        return isinstance(self.activation, Float)

    @classmethod
    def int8(cls, *, target: Target = "onnxruntime") -> "QConfig":
        """Return a config with 8 bits: weights per channel, activations per tensor."""
        return cls(target=target)

    @classmethod
    def _low_bits(cls, weight: QSpec, activation_bits: int, target: Target) -> "QConfig":
        activation = QSpec(bits=activation_bits, learn="lsq" if activation_bits < 8 else None)
        return cls(weight=weight, activation=activation, target=target, first_last=8)

    @classmethod
    def int4(cls, *, activation_bits: int = 4, target: Target = "onnxruntime") -> "QConfig":
        """Return a config of 4 bits with learned scales (LSQ), and 8 bits at the model's ends."""
        return cls._low_bits(QSpec(bits=4, learn="lsq"), activation_bits, target)

    @classmethod
    def int2(cls, *, activation_bits: int = 2, target: Target = "onnxruntime") -> "QConfig":
        """Return a config of 2 bits with learned scales (LSQ), and 8 bits at the model's ends."""
        return cls._low_bits(QSpec(bits=2, learn="lsq"), activation_bits, target)

    @classmethod
    def binary_weights(
        cls, *, activation_bits: int = 4, target: Target = "onnxruntime"
    ) -> "QConfig":
        """Return a config of 1-bit weights {-s, +s}, and 8 bits at the model's ends. s is the mean
        magnitude of a channel."""
        return cls._low_bits(QSpec(bits=1, learn="binary"), activation_bits, target)

    @classmethod
    def weight_only(cls, *, bits: int = 8, group: int | None = None) -> "QConfig":
        """Return a config that quantizes only weights, in groups of ``group`` neighbours along the
        last dimension if given.

        If ``group`` does not divide the last dimension of a layer, the layer gets one scale
        per channel, and the placement report says so."""
        return cls(weight=QSpec(bits=bits, group=group), activation=FLOAT)

    @classmethod
    def dynamic(cls, *, bits: int = 8) -> "QConfig":
        """Return a config of quantized weights, and activations with the range of each batch even
        at inference."""
        return cls(weight=QSpec(bits=bits), activation=QSpec(bits=bits, dynamic=True))

    @classmethod
    def fp8(
        cls,
        *,
        weight: Literal["e4m3", "e5m2"] = "e4m3",
        activation: Literal["e4m3", "e5m2"] = "e4m3",
    ) -> "QConfig":
        """Return a config of 8-bit floats, "e4m3" or "e5m2"."""
        formats = {"e4m3": (4, 3), "e5m2": (5, 2)}
        for name in (weight, activation):
            if name not in formats:
                raise ValueError(f"QConfig.fp8: a format is e4m3 or e5m2, got {name!r}")
        return cls(
            weight=QSpec.float(*formats[weight]),
            activation=QSpec.float(*formats[activation]),
        )

    def override(
        self, pattern: Pattern, *, weight: Spec | None = None, activation: Spec | None = None
    ) -> "QConfig":
        """Return a config with different specs for some layers. The last override that matches
        wins.

        Args:
            pattern: a glob on module names, a type, or a predicate (name, module) -> bool.
            weight: the spec of their weights; None keeps it.
            activation: the spec of their activations; None keeps it.
        """
        if weight is None and activation is None:
            raise ValueError(f"QConfig.override({pattern!r}): give weight= or activation=")
        if not isinstance(pattern, str | type) and not callable(pattern):
            raise ValueError(
                f"QConfig.override: pattern must be a glob, a type or a predicate, got {pattern!r}"
            )
        added = Override(pattern, weight, activation)
        return dataclasses.replace(self, overrides=(*self.overrides, added))

    def spec_for(
        self, role: str, name: str, module: nn.Module | None, *, at_end: bool = False
    ) -> Spec:
        """Return the spec of one layer.

        Args:
            role: "weight" or "activation".
            name: the layer's name.
            module: the layer, or None if it is not a module.
            at_end: whether the layer is at the model's inputs or outputs.
        """
        chosen: Spec = getattr(self, role)
        if at_end and self.first_last and isinstance(chosen, QSpec):
            chosen = QSpec(bits=self.first_last)
        for override in self.overrides:
            own = getattr(override, role)
            if own is not None and override.matches(name, module):
                chosen = own
        return chosen

    def check_patterns(self, model: nn.Module) -> None:
        """Raise ValueError if an override matches no module. The message lists the nearest
        names."""
        modules = dict(model.named_modules(remove_duplicate=False))
        for override in self.overrides:
            if any(override.matches(name, module) for name, module in modules.items()):
                continue
            pattern = override.pattern
            hint = near_names(pattern, modules) if isinstance(pattern, str) else ""
            raise ValueError(f"QConfig: override {pattern!r} matches no module of the model{hint}")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, from which ``from_dict`` makes an equal config."""
        found: dict[str, Any] = {
            "weight": _spec_to_plain(self.weight),
            "activation": _spec_to_plain(self.activation),
            "target": self.target,
        }
        if self.first_last is not None:
            found["first_last"] = self.first_last
        if self.overrides:
            found["overrides"] = [
                {
                    "pattern": _pattern_to_plain(o.pattern),
                    **{
                        role: _spec_to_plain(getattr(o, role))
                        for role in ("weight", "activation")
                        if getattr(o, role) is not None
                    },
                }
                for o in self.overrides
            ]
        return found

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "QConfig":
        """Return the config from the values of ``to_dict``. Specs may also be QSpec objects."""
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(
                f"QConfig: unknown key {', '.join(unknown)}; known are {sorted(known)}"
            )
        options = dict(values)
        for role in ("weight", "activation"):
            if role in options:
                options[role] = _spec_from_plain(options[role])
        options["overrides"] = tuple(
            Override(
                _pattern_from_plain(o["pattern"]),
                _spec_from_plain(o.get("weight")),
                _spec_from_plain(o.get("activation")),
            )
            for o in values.get("overrides", ())
        )
        return cls(**options)

    def to_yaml(self) -> str:
        """Return the config as YAML text. It needs PyYAML."""
        import yaml

        return str(yaml.safe_dump(self.to_dict(), sort_keys=False))

    @classmethod
    def from_yaml(cls, text: str) -> "QConfig":
        """Return the config from the text of ``to_yaml``."""
        import yaml

        return cls.from_dict(yaml.safe_load(text))

    def __str__(self) -> str:
        lines = [
            f"QConfig for {self.target}",
            f"  weight      {self.weight}",
            f"  activation  {self.activation}",
        ]
        if self.first_last is not None:
            lines.append(f"  first and last layers: {self.first_last} bits")
        return "\n".join([*lines, *(f"  {o}" for o in self.overrides)])
