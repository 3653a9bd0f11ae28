"""The entry of an op in the table, its cases, and helpers that build arguments."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import bitpare as bp
import torch
from torch import Tensor
from torch.utils import _pytree

Arguments = dict[str, Any]
Call = tuple[tuple[Any, ...], dict[str, Any]]  # positional and keyword arguments

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Relative to the largest magnitude that a result can be rounded from; float32 results of the same
# formula differ from float64 by the rounding of a few operations.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
SEED = 20240229
S8 = {"quant_min": -128, "quant_max": 127}
U8 = {"quant_min": 0, "quant_max": 255}
S4 = {"quant_min": -8, "quant_max": 7}


@dataclasses.dataclass(frozen=True)
class Case:
    """One call of a public op: tests of all ops run every case."""

    op: str
    shape: tuple[int, ...]
    attributes: dict[str, Any] = dataclasses.field(default_factory=dict)
    zero_point: str | None = None  # "integer", "learned"
    scale: bool = True
    layout: str = "contiguous"  # channels_last, transposed, sliced
    dtype: torch.dtype = torch.float32

    @property
    def id(self) -> str:
        extra = "-".join(f"{k}={v}" for k, v in self.attributes.items() if k[:5] != "quant")
        low, high = self.attributes.get("quant_min"), self.attributes.get("quant_max")
        grid = f"{low}..{high}" if high is not None else ""
        shape = "x".join(map(str, self.shape)) or "scalar"
        dtype = "" if self.dtype is torch.float32 else str(self.dtype)[6:]
        parts = (self.op, shape, grid, extra, self.zero_point, self.layout[:4], dtype)
        return ",".join(str(p) for p in parts if p and p != "cont")

    @property
    def entry(self) -> "OpEntry":
        return TABLE[self.op]

    @property
    def stochastic(self) -> bool:
        return self.attributes.get("rounding") == "stochastic"

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(SEED + sum(map(ord, self.id)))

    def x(self, device: str = "cpu") -> Tensor:
        return laid_out(torch.randn(self.shape, generator=self.generator()) * 2, self.layout).to(
            device=device, dtype=self.dtype
        )

    def scale_shape(self) -> list[int]:
        axis, group = self.attributes.get("axis"), self.attributes.get("group")
        if group is not None:
            return [*self.shape[:-1], self.shape[-1] // group]
        return [] if axis is None else [self.shape[axis]]

    def quantizer(self, device: str = "cpu") -> tuple[Tensor | None, Tensor | None]:
        """Return scale and zero_point."""
        generator, shape = self.generator(), self.scale_shape()
        if not self.scale:
            return None, None
        high = self.attributes.get("quant_max", 8)
        low = self.attributes.get("quant_min", -8)
        scale = (torch.rand(shape, generator=generator) + 0.5) * 5 / (high - low)
        zero_point = None
        if self.zero_point == "integer":
            zero_point = torch.randint(low, high + 1, shape, generator=generator, dtype=torch.int32)
        elif self.zero_point == "learned":
            zero_point = torch.randn(shape, generator=generator) * 3 + (low + high) / 2
        return scale.to(device), zero_point if zero_point is None else zero_point.to(device)

    def arguments(self, device: str = "cpu") -> Call:
        return self.entry.build(self, device)

    def learning(self, device: str = "cpu") -> tuple[Any, Any, list[Tensor]]:
        """Return the arguments, those that the op differentiates by requiring gradients, and a list
        of these."""
        args, kwargs = self.arguments(device)
        learned = []

        def leaf(name: str, value: Any) -> Any:
            if name not in self.entry.gets_gradient or not isinstance(value, Tensor):
                return value
            if value.is_floating_point():
                value = value.clone(memory_format=torch.preserve_format).requires_grad_()
                learned.append(value)
            return value

        args = tuple(leaf(name, v) for name, v in zip(names_of(self.op), args, strict=False))
        return args, {name: leaf(name, v) for name, v in kwargs.items()}, learned

    def results(self, call: Call, function: Callable[..., Any] | None = None) -> list[Tensor]:
        """Return the tensors that a call returns, and those that it writes."""
        args, kwargs = call
        given = (function or getattr(bp.functional, self.op))(*args, **kwargs)
        named = by_name(self.op, call)
        return tensors_in([given, [named[name] for name in written(self.op) if name in named]])

    def run(self, device: str = "cpu") -> list[Tensor]:
        return self.results(self.arguments(device))


class Expected(NamedTuple):
    """A right result, in float64."""

    value: Tensor
    ignore: Tensor | None = None  # True where rounding in float32 may give another value
    scale: float | None = None  # the magnitude it is rounded from; None: the largest of value


class Speed(NamedTuple):
    """A row of the benchmark: the op, and what people use today, on 2^20 float32 values."""

    bytes: float  # read and written, for each value
    functions: Callable[[Tensor], dict[str, Callable[[], Any]]]  # by name; `bitpare` is the op
    label: str = ""  # follows the op's name


def plain(case: Case, device: str) -> Call:
    return (case.x(device),), dict(case.attributes)


@dataclasses.dataclass(frozen=True)
class OpEntry:
    """An op as the tests, the fuzzer and the benchmark know it. A private op has a sample. A
    function of bitpare.functional has cases, a reference or a check, and a row of the benchmark.

    Args:
        cases: Calls of the op.
        build: Builds the arguments of a case on a device.
        reference: Returns the result of a case by its formula, in float64.
        check: Calls the op and asserts, where the result is not one tensor near a formula's.
        gradient: Returns the gradients of a case for an incoming one, in the arguments' order;
            None where the reference does not know which way values were rounded.
        learned: The arguments that get a gradient.
        halves: Float arguments may be float16 and bfloat16; else these are an error.
        sample: Returns right arguments by the schema's names, in float32; None: the first case's.
        variants: Changes of the sample that take other paths.
        wrong: Changes of the sample that are an error, with a part of its message.
        speed: The row of the benchmark.
        measured: The file of benchmarks/ that measures the op, where `speed` is None.
        host: The reason why the op cannot run on shapes alone.
    """

    cases: Sequence[Case] = ()
    build: Callable[[Case, str], Call] = plain
    reference: Callable[[Case], Expected] | None = None
    check: Callable[[Case], None] | None = None
    gradient: Callable[[Case, Tensor], Sequence[Expected] | None] | None = None
    learned: tuple[str, ...] = ("x",)
    halves: bool = True
    sample: Callable[[], Arguments] | None = None
    variants: Sequence[Arguments] = ()
    wrong: Sequence[tuple[Arguments, str]] = ()
    speed: Speed | None = None
    measured: str = ""
    host: str = ""

    @property
    def gets_gradient(self) -> tuple[str, ...]:
        return self.learned if self.gradient else ()


TABLE: dict[str, OpEntry] = {}


# -- schemas


@functools.cache
def schemas() -> dict[str, torch.FunctionSchema]:
    """Return the schema of every op of bitpare, by its name."""
    names = [n for n in torch._C._dispatch_get_all_op_names() if n.startswith("bitpare::")]
    plain_names = sorted(n.removeprefix("bitpare::") for n in names)
    return {n: getattr(torch.ops.bitpare, n).default._schema for n in plain_names}


def names_of(op: str) -> list[str]:
    return [a.name for a in schemas()[op].arguments]


def by_name(op: str, arguments: Call) -> Arguments:
    args, kwargs = arguments
    return {**dict(zip(names_of(op), args, strict=False)), **kwargs}


def written(op: str) -> list[str]:
    """Return the names of the arguments that an op writes to."""
    return [a.name for a in schemas()[op].arguments if a.alias_info and a.alias_info.is_write]


def sample(op: str) -> Arguments:
    """Return right arguments of an op, by the names in its schema."""
    entry = TABLE[op]
    return entry.sample() if entry.sample else by_name(op, entry.cases[0].arguments())


def call(op: str, arguments: Arguments) -> Any:
    return getattr(torch.ops.bitpare, op)(**arguments)


def tensors_in(values: Any) -> list[Tensor]:
    return [v for v in _pytree.tree_leaves(values) if isinstance(v, Tensor)]


# -- arguments

SHAPE = (2, 3, 4, 16)
N = math.prod(SHAPE)
CONTIGUOUS = torch.contiguous_format
LAST = torch.channels_last


def laid_out(x: Tensor, layout: str) -> Tensor:
    """Return the same values with other strides."""
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "transposed":
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "sliced":
        wide = torch.full((*x.shape[:-1], 2 * x.shape[-1] + 1), 77.0, dtype=x.dtype)
        wide[..., 1::2] = x
        return wide[..., 1::2]
    return x


def floats(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator) * 2


def words(n: int, more: int = 0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + n)
    bits = torch.randint(-(2**62), 2**62, ((n + 63) // 64,), generator=generator)
    return torch.cat([bits, torch.ones(more, dtype=torch.int64)])  # 1: a weight was clipped


def control() -> Tensor:
    return torch.tensor([-8, 7, 1, 1, 0], dtype=torch.int32)


def pending() -> Tensor:
    return torch.tensor([[math.inf], [-math.inf]])


def rng() -> Tensor:
    return torch.tensor([11, 22])


def scale(n: int = 3) -> Tensor:
    return torch.linspace(0.2, 0.5, n)


def zero(n: int = 3) -> Tensor:
    return torch.arange(n, dtype=torch.int32) - 1


def backward_of(arguments: Arguments, *without: str, **more: Any) -> Arguments:
    """Return the arguments of a backward op, made from those of the forward one."""
    kept = {k: v for k, v in arguments.items() if k not in without}
    return {"dy": floats(*SHAPE, seed=1), **kept, **more}


def exactly(got: Any, expected: Any) -> None:
    for a, b in zip(tensors_in(got), tensors_in(expected), strict=True):
        assert torch.equal(a, b)
