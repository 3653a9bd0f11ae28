"""The properties that every op has, whatever it computes: an entry in the table that is whole, any
strides are read right, one device, lazy tensors, arguments of other types."""

import ast
import copy
import inspect
import pathlib
import re

import bitpare as bp
import pytest
import torch
from ops import TABLE, call, sample, schemas, tensors_in, written
from ops.entry import by_name
from torch import Tensor

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"
FUNCTIONS = [n for n, f in inspect.getmembers(bp.functional, inspect.isfunction) if n[0] != "_"]


def test_every_op_is_in_the_table():
    assert set(schemas()) == set(TABLE)


@pytest.mark.parametrize("op", FUNCTIONS)
def test_the_entry_of_a_function_is_whole(op):
    """Cases with their right results, and a row of the benchmark: in the entry, or in the file of
    benchmarks/ that it names."""
    entry = TABLE[op]
    assert entry.cases and all(case.op == op for case in entry.cases)
    assert bool(entry.reference) != bool(entry.check)
    assert bool(entry.speed) != bool(entry.measured)
    if entry.measured:
        names = {
            getattr(n, "attr", None) or getattr(n, "value", None)
            for n in ast.walk(ast.parse((BENCHMARKS / entry.measured).read_text()))
        }
        assert op in names


def float_names(op: str, given: dict) -> list[str]:
    """Return the arguments that hold floats and are only read."""
    held = {k: tensors_in(v) for k, v in given.items() if k not in written(op)}
    return [k for k, v in held.items() if v and all(t.is_floating_point() for t in v)]


def has_derivative(t: Tensor) -> bool:
    return t.requires_grad and not t.grad_fn.name().endswith("NotImplemented")


@pytest.mark.parametrize("op", FUNCTIONS)
def test_gradients_go_where_the_entry_says(op):
    """They go to each argument that the entry names, and to no other that requires one."""
    learned, reached = set(TABLE[op].gets_gradient), set()
    for case in TABLE[op].cases:
        for name in float_names(op, by_name(op, case.arguments())):
            given = by_name(op, case.arguments())
            for leaf in {name, *learned & set(float_names(op, given))}:
                given[leaf] = applied(lambda t: t.clone().requires_grad_(), given[leaf])
            results = [t for t in tensors_in(call(op, given)) if has_derivative(t)]
            assert bool(results) == bool(learned)
            leaves = tensors_in(given[name])
            slopes = [torch.autograd.grad(t.sum(), leaves, allow_unused=True) for t in results]
            if tensors_in(slopes):
                reached.add(name)
    assert reached == learned


@pytest.mark.parametrize("op", [op for op in FUNCTIONS if not TABLE[op].halves])
def test_halves_are_refused_where_the_entry_says(op):
    given = by_name(op, TABLE[op].cases[0].arguments())
    for name in float_names(op, given):
        with pytest.raises(RuntimeError, match=op):
            call(op, {**given, name: applied(Tensor.half, given[name])})


@pytest.mark.parametrize(
    "op, change, message", [(op, *wrong) for op, entry in TABLE.items() for wrong in entry.wrong]
)
def test_wrong_arguments_are_refused(op, change, message):
    with pytest.raises(RuntimeError, match=re.escape(message)):
        call(op, {**sample(op), **change})


@pytest.mark.parametrize("op", [op for op in TABLE if TABLE[op].host])
def test_ops_of_the_host_need_values(op):
    given = sample(op)
    if tensors_in(given):  # the others take no tensors
        with pytest.raises((RuntimeError, ValueError)):
            call(op, {k: applied(lambda t: t.to("meta"), v) if tensors_in(v) else v
                      for k, v in given.items()})  # fmt: skip


def tensor_names(op: str) -> list[str]:
    return [k for k, v in sample(op).items() if tensors_in(v)]


PAIRS = [(op, name) for op in TABLE for name in tensor_names(op)]


def outcome(op: str, given: dict):
    """Return the result of a call and the arguments it wrote to, or its error."""
    try:
        result = call(op, given)
    except (RuntimeError, ValueError, IndexError, NotImplementedError) as error:
        return str(error)
    if op == "_new_program":
        result = None  # a new number in each call
    return result, {k: given[k] for k in written(op)}


def same(a, b) -> bool:
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and same_bits(a, b)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return a == b


def same_bits(a: Tensor, b: Tensor) -> bool:
    first, second = (x.contiguous().numpy(force=True).tobytes() for x in (a, b))
    return first == second


def strided(x: Tensor) -> Tensor:
    other = torch.full_like(x, 99) if x.dtype is not torch.bool else ~x
    return torch.stack([x, other], -1)[..., 0]


def offset(x: Tensor) -> Tensor:
    return torch.cat([torch.ones(3, dtype=x.dtype), x.flatten()])[3:].view(x.shape)


def expanded(x: Tensor) -> Tensor:
    return x.flatten()[-1].expand(x.shape)


def flipped(x: Tensor) -> Tensor:
    """Return a tensor with the reverse order of dimensions in memory."""
    return x.permute(*reversed(range(x.dim()))).contiguous().permute(*reversed(range(x.dim())))


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else flipped(x)


def applied(change, value):
    return [change(v) for v in value] if isinstance(value, list) else change(value)


def dense(x: Tensor) -> Tensor:
    return x.clone(memory_format=torch.contiguous_format)


@pytest.mark.parametrize("layout", [strided, offset, expanded, flipped, channels_last])
@pytest.mark.parametrize("op, name", PAIRS, ids=[f"{op}-{name}" for op, name in PAIRS])
def test_any_strides_are_read_right_or_refused(op, name, layout):
    given = sample(op)
    if "rounding" in given and name != "rng":  # stochastic: a number for each place in memory
        given["rounding"] = "nearest" if isinstance(given["rounding"], str) else 0
    changed = {**copy.deepcopy(given), name: applied(layout, given[name])}
    plain = {**copy.deepcopy(given), name: applied(dense, changed[name])}
    got, expected = outcome(op, changed), outcome(op, plain)
    if isinstance(got, str) and re.search("must be contiguous|a single memory location", got):
        return
    assert same(got, expected) or (layout is not expanded and close(got, expected))


def close(got, expected) -> bool:
    """Compare with tolerance, because sums follow the order in memory and may round differently."""
    if isinstance(got, Tensor):
        kinds = got.is_floating_point() and expected.is_floating_point()
        return kinds and torch.allclose(got, expected, rtol=1e-5, atol=1e-6, equal_nan=True)
    if isinstance(got, list | tuple):
        return len(got) == len(expected) and all(
            same(a, b) or close(a, b) for a, b in zip(got, expected, strict=True)
        )
    if isinstance(got, dict):
        return all(same(got[k], expected[k]) or close(got[k], expected[k]) for k in got)
    return False


DISPATCHED = [(op, name) for op, name in PAIRS if not TABLE[op].host]


@pytest.mark.parametrize("op, name", DISPATCHED, ids=[f"{op}-{name}" for op, name in DISPATCHED])
def test_another_device_is_refused(op, name):
    """Also where the op does not read the argument: a rng that is not for this rounding."""
    given = sample(op)
    tensors = [n for n in tensor_names(op) if n != name]
    moved = [v.to("meta") for v in given[name]] if isinstance(given[name], list) else None
    given[name] = given[name].to("meta") if moved is None else moved
    if not tensors:
        return  # the op only needs shapes
    if "rounding" in given:
        given["rounding"] = "nearest" if isinstance(given["rounding"], str) else 0
    with pytest.raises(RuntimeError, match=f"{op}: .* must be on (cpu|meta) like .*, got "):
        call(op, given)


@pytest.mark.parametrize("op, name", DISPATCHED, ids=[f"{op}-{name}" for op, name in DISPATCHED])
@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("kind", ["negative", "zero"])
def test_lazy_tensors_are_resolved_or_refused(op, name, kind, inference):
    def lazy(x: Tensor) -> Tensor:
        if kind == "zero":
            return torch._efficientzerotensor(x.shape, dtype=x.dtype)
        return torch._neg_view(x.neg()) if x.is_floating_point() else torch._neg_view(x)

    def real(x: Tensor) -> Tensor:
        return torch.zeros_like(x) if kind == "zero" else x.resolve_neg().clone()

    given = sample(op)
    if kind == "negative" and any(
        v.dtype is torch.bool
        for v in (given[name] if isinstance(given[name], list) else [given[name]])
    ):
        return
    with torch.inference_mode(inference):
        changed = {**copy.deepcopy(given), name: applied(lazy, given[name])}
        plain = {**copy.deepcopy(given), name: applied(real, changed[name])}
        got, expected = outcome(op, changed), outcome(op, plain)
    if name in written(op):
        assert isinstance(got, str) and "since it is written" in got
    else:
        assert same(got, expected)


OTHER_TYPES = [torch.float64, torch.int64, torch.int8, torch.bool, torch.complex64, torch.float16]


@pytest.mark.parametrize("op, name", PAIRS, ids=[f"{op}-{name}" for op, name in PAIRS])
def test_other_types_and_sizes_are_refused_or_taken_as_they_are(op, name):
    """Check that a call either fails or does not depend on the memory behind the tensor."""
    for dtype in OTHER_TYPES:
        for cut in (0, 1):
            given = sample(op)

            def changed(x: Tensor, garbage: int, dtype=dtype, cut=cut) -> Tensor:
                made = x.to(dtype).flatten()[cut:] if cut else x.to(dtype)
                room = torch.full((made.numel() + 64,), garbage).to(dtype)
                room[: made.numel()] = made.flatten()
                return room[: made.numel()].view(made.shape)

            results = []
            for garbage in (0, 1):
                fresh = copy.deepcopy(given)
                fresh[name] = applied(lambda x, g=garbage: changed(x, g), given[name])
                results.append(outcome(op, fresh))
            assert same(*results), (dtype, cut)
