"""Time every op against torch's own, and against NNCF and Brevitas if they are installed.

    python benchmarks/run.py [--device cuda] [--only fake_quant]

The rows are printed and stored in benchmarks/results/. Each op is timed in turns with x.clone(),
whose time is scaled to the bytes that the op moves. `copy` is the share of that speed that the op
reaches. Both allocate their result, with an allocator that keeps freed memory, so there are no page
faults. Times depend on the machine; compare the ratios.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import bitpare as bp
import torch
from timing import Times, interleave, keep_freed_memory, machine
from torch import Tensor

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "python"))
from ops import TABLE  # noqa: E402

F = bp.functional
RESULTS = ROOT / "benchmarks" / "results"
GRID = {"quant_min": -128, "quant_max": 127}


@dataclasses.dataclass
class Row:
    """A measurement: functions by name, those of `bitpare` and of the peers."""

    op: str
    what: str  # forward, backward, both
    shape: str
    dtype: torch.dtype
    bytes: int
    functions: dict[str, Callable[[], Any]]
    x: Tensor  # the tensor whose copy is timed for comparison


def element_bytes(n: int, dtype: torch.dtype, reads: int, writes: int, bits: int = 0) -> int:
    return n * dtype.itemsize * (reads + writes) + n * bits // 8


def both(forward: Callable[..., Tensor], inputs: list[Tensor], dy: Tensor) -> Callable[[], Any]:
    return lambda: torch.autograd.grad(forward(*inputs), inputs, dy)


def per_tensor(device: str) -> Iterator[Row]:
    scale = torch.tensor(0.05, device=device)
    zero = torch.tensor(3, dtype=torch.int32, device=device)
    dense = torch.contiguous_format
    saved = torch.ops.bitpare._fake_quant
    backward = torch.ops.bitpare._straight_through
    torch_saved = torch.ops.aten._fake_quantize_per_tensor_affine_cachemask_tensor_qparams
    torch_backward = torch.ops.aten.fake_quantize_per_tensor_affine_cachemask_backward
    enabled = torch.ones(1, dtype=torch.int64, device=device)
    for power in (16, 20, 22, 24):
        for dtype in (torch.float32, torch.bfloat16):
            n = 2**power
            x = dy = torch.randn(n, device=device, dtype=dtype)
            mine = lambda x=x: F.fake_quant(x, scale, zero, **GRID)
            theirs = lambda x=x: torch.fake_quantize_per_tensor_affine(x, scale, zero, -128, 127)
            peers = {"bitpare": mine}
            if dtype is torch.float32:
                peers["torch"] = theirs
            yield Row(
                "fake_quant",
                "forward",
                f"2^{power}",
                dtype,
                element_bytes(n, dtype, 1, 1),
                peers,
                x,
            )
            inside = saved(
                x, scale, zero, -128, 127, None, None, 0, None, False, True, dense
            )[1]  # fmt: skip
            peers = {"bitpare": lambda dy=dy, inside=inside: backward(dy, inside, dense)}
            if dtype is torch.float32:
                mask = torch_saved(x, scale, zero, enabled, -128, 127)[1]
                peers["torch"] = lambda dy=dy, mask=mask: torch_backward(dy, mask)
            yield Row(
                "fake_quant", "backward", f"2^{power}", dtype,
                element_bytes(n, dtype, 1, 1, 1), peers, x,
            )  # fmt: skip


def with_autograd(device: str) -> Iterator[Row]:
    """Time forward and backward through torch's engine. At 64 elements this is the fixed cost of a
    call."""
    scale = torch.tensor([0.05], device=device, requires_grad=True)
    zero = torch.tensor([3.0], device=device, requires_grad=True)
    fixed, fixed_zero = scale.detach(), torch.tensor([3], dtype=torch.int32, device=device)
    for n, name in ((64, "64"), (2**16, "2^16"), (2**20, "2^20")):
        x = torch.randn(n, device=device, requires_grad=True)
        dy = torch.randn(n, device=device)
        mine = lambda x: F.fake_quant(x, fixed, fixed_zero, **GRID)
        theirs = lambda x: torch.fake_quantize_per_tensor_affine(x, fixed, fixed_zero, -128, 127)
        yield Row(
            "fake_quant", "both, autograd", name, torch.float32,
            element_bytes(n, torch.float32, 2, 2, 2),
            {"bitpare": both(mine, [x], dy), "torch": both(theirs, [x], dy), **peers_of(x, dy)}, x,
        )  # fmt: skip
        lsq = lambda x, s, z: F.fake_quant_lsq(x, s, z, grad_scale=1.0, **GRID)
        learnable = lambda x, s, z: torch._fake_quantize_learnable_per_tensor_affine(
            x, s, z, -128, 127, 1.0
        )
        yield Row(
            "fake_quant_lsq", "both, autograd", name, torch.float32,
            element_bytes(n, torch.float32, 3, 2),
            {"bitpare": both(lsq, [x, scale, zero], dy),
             "torch": both(learnable, [x, scale, zero], dy)}, x,
        )  # fmt: skip


def peers_of(x: Tensor, dy: Tensor) -> dict[str, Callable[[], Any]]:
    """Return the int8 fake quantization of other projects, if they are installed."""
    found: dict[str, Callable[[], Any]] = {}
    if x.device.type != "cpu":
        return found
    try:
        from brevitas.nn import QuantIdentity

        module = QuantIdentity(bit_width=8).train()
        module(x)
        found["brevitas"] = both(module.eval(), [x], dy)
    except ImportError:
        pass
    try:
        from nncf.torch.quantization.quantize_functions import asymmetric_quantize

        low, span = torch.tensor([-6.55]), torch.tensor([12.75])
        found["nncf"] = both(
            lambda x: asymmetric_quantize(x, 256, -128, 127, low, span, 1e-16), [x], dy
        )
    except ImportError:
        pass
    return found


def lsq_backward(device: str) -> Iterator[Row]:
    scale = torch.tensor([0.05], device=device)
    op = torch.ops.bitpare._fake_quant_lsq_gradient
    for power in (20, 24):
        x = torch.randn(2**power, device=device)
        dy = x + 0
        run = lambda x=x, dy=dy: op(
            dy, x, scale, None, -128, 127, None, None, 1.0, torch.contiguous_format
        )
        yield Row(
            "fake_quant_lsq", "backward", f"2^{power}", torch.float32,
            element_bytes(2**power, torch.float32, 2, 1), {"bitpare": run}, x,
        )  # fmt: skip


def per_channel(device: str) -> Iterator[Row]:
    layouts = [
        ((16, 64, 8, 8), 1, torch.contiguous_format, "activation NCHW"),
        ((16, 64, 32, 32), 1, torch.contiguous_format, "activation NCHW"),
        ((16, 64, 8, 8), 1, torch.channels_last, "activation NHWC"),
        ((16, 64, 32, 32), 1, torch.channels_last, "activation NHWC"),
        ((64, 64, 7, 7), 1, torch.contiguous_format, "activation NCHW"),
        ((256, 256, 1, 1), 0, torch.contiguous_format, "weight"),
        ((256, 256, 4, 4), 0, torch.contiguous_format, "weight"),
        ((960, 1, 3, 3), 0, torch.contiguous_format, "depthwise weight"),
    ]
    for shape, axis, layout, name in layouts:
        x = torch.randn(shape, device=device).contiguous(memory_format=layout)
        scale = torch.rand(shape[axis], device=device) * 0.05 + 0.01
        zero = torch.zeros(shape[axis], dtype=torch.int32, device=device)
        mine = lambda x=x, s=scale, z=zero, a=axis: F.fake_quant(x, s, z, axis=a, **GRID)
        theirs = lambda x=x, s=scale, z=zero, a=axis: torch.fake_quantize_per_channel_affine(
            x, s, z, a, -128, 127
        )
        yield Row(
            "fake_quant per channel", "forward", f"{name} {list(shape)}", torch.float32,
            element_bytes(x.numel(), torch.float32, 1, 1), {"bitpare": mine, "torch": theirs}, x,
        )  # fmt: skip


def observed(device: str) -> Iterator[Row]:
    """Time activation, range and quantization in one op, against torch's observer and separate
    ops."""
    scale, zero = torch.full((1,), 0.05, device=device), torch.zeros(1, device=device).int()
    control = torch.tensor([-128, 127, 1, 1, 0], dtype=torch.int32, device=device)
    pending = torch.tensor([[torch.inf], [-torch.inf]], device=device)
    on = torch.ones(1, dtype=torch.int64, device=device)
    low, high = torch.full((1,), -4.0, device=device), torch.full((1,), 4.0, device=device)
    plain = lambda x: F.fake_quant(x, scale, zero, **GRID)
    for power in (16, 20, 22, 24):
        n, f32 = 2**power, torch.float32
        x = torch.randn(n, device=device)
        added = torch.randn(n, device=device)

        def act(activation: str, x: Tensor = x, other: Tensor | None = None) -> Tensor:
            return F.act_fake_quant(x, other, scale, zero, control, pending, activation=activation)

        def torch_observed(x: Tensor) -> Tensor:
            return torch.fused_moving_avg_obs_fake_quant(
                x, on, on, low, high, scale.clone(), zero, 0.01, -128, 127, -1
            )

        yield Row(
            "act_fake_quant", "forward", f"2^{power}", f32, element_bytes(n, f32, 1, 1),
            {"bitpare": lambda x=x: act("none", x), "fake_quant": lambda x=x: plain(x),
             "torch": lambda x=x: torch_observed(x)}, x,
        )  # fmt: skip
        yield Row(
            "act_fake_quant relu6", "forward", f"2^{power}", f32, element_bytes(n, f32, 1, 1),
            {"bitpare": lambda x=x: act("relu6", x), "fake_quant": lambda x=x: plain(x),
             "torch": lambda x=x: torch_observed(torch.nn.functional.relu6(x))}, x,
        )  # fmt: skip
        yield Row(
            "act_fake_quant add relu", "forward", f"2^{power}", f32, element_bytes(n, f32, 2, 1),
            {"bitpare": lambda x=x, a=added: act("relu", x, a),
             "add+fake_quant": lambda x=x, a=added: plain(torch.relu(x + a)),
             "torch": lambda x=x, a=added: torch_observed(torch.relu(x + a))}, x,
        )  # fmt: skip


def ranges_of_a_model(device: str) -> Iterator[Row]:
    """Time the range updates of a model's 60 activation quantizers."""
    size, control = 60, torch.tensor([0, 255, 1, 1, 0], dtype=torch.int32, device=device)
    new = lambda *shape: [torch.zeros(*shape, device=device) for _ in range(size)]
    pending, in_force, scale, zero = new(2, 1), new(2, 1), new(1), [z.int() for z in new(1)]
    count, controls = [c.long() for c in new(2)], [control] * size
    for p in pending:
        p[0], p[1] = -1.0, 3.0

    def mine() -> None:
        F.update_ranges_(
            pending, in_force, scale, zero, count, controls, rule="ema", symmetric=False
        )

    def apart() -> None:
        for r in in_force:
            F.qparams(r[0], r[1], quant_min=0, quant_max=255, symmetric=False)

    functions = {"bitpare": mine, "qparams apart": apart}
    size_in_bytes = size * (2 * (2 + 2 + 2) * 4 + 3 * 8)
    yield Row(
        "update_ranges_", "step", f"{size} quantizers", torch.float32, size_in_bytes, functions,
        in_force[0],
    )  # fmt: skip


def mobilenet_v2_weights(device: str, classes: int = 10) -> list[Tensor]:
    stages = [(1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1)]
    shapes, channels = [(32, 3, 3, 3)], 32
    for expansion, width, blocks in stages:
        for _ in range(blocks):
            hidden = channels * expansion
            if expansion > 1:
                shapes.append((hidden, channels, 1, 1))
            shapes += [(hidden, 1, 3, 3), (width, hidden, 1, 1)]
            channels = width
    shapes += [(1280, 320, 1, 1), (classes, 1280, 1, 1)]
    return [torch.randn(shape, device=device) for shape in shapes]


def weights_of_a_model(device: str) -> Iterator[Row]:
    weights = mobilenet_v2_weights(device)
    n, f32 = sum(w.numel() for w in weights), torch.float32
    control = torch.tensor([-127, 127, 1, 1, 0], dtype=torch.int32, device=device)
    controls, grid = [control] * len(weights), {"quant_min": -127, "quant_max": 127}
    flat = torch.randn(n, device=device)
    for name, size in (("channel", lambda w: w.shape[0]), ("tensor", lambda w: 1)):
        scale = [torch.ones(size(w), device=device) for w in weights]
        axis = 0 if name == "channel" else None

        def apart(axis: int | None = axis) -> None:
            for w in weights:
                s, _ = F.qparams(*F.minmax(w, axis=axis), **grid)
                F.fake_quant(w, s, axis=axis, **grid)

        mine = lambda scale=scale: F.fake_quant_weights(weights, scale, controls)
        yield Row(
            "fake_quant_weights", f"per {name}", "MobileNetV2", f32, element_bytes(n, f32, 2, 1, 1),
            {"bitpare": mine, "one by one": apart}, flat,
        )  # fmt: skip
    weight = torch.randn(64, device=device, requires_grad=True)
    (value,), (inside,) = F.fake_quant_weights([weight], [torch.ones(1, device=device)], [control])
    yield Row(
        "use_weight", "forward", "64", f32, 0,
        {"bitpare": lambda: F.use_weight(weight, value, inside),
         "view_as": lambda: weight.view_as(weight)}, flat,
    )  # fmt: skip


def batch_norms(device: str) -> Iterator[Row]:
    """Time forward and backward of BatchNorm and ReLU6: fused with fake_quant, as three torch ops,
    and in float with the in-place ReLU6 of torchvision."""
    scale, zero = torch.tensor(6 / 255, device=device), torch.tensor(-128, dtype=torch.int32)
    zero = zero.to(device)
    control = torch.tensor([-128, 127, 1, 1, 0], dtype=torch.int32, device=device)
    pending = torch.zeros(2, 1, device=device)
    shapes = [(32, 96, 16, 16), (32, 24, 8, 8), (32, 192, 8, 8), (16, 144, 24, 24),
              (16, 64, 48, 48), (32, 960, 1, 1)]  # fmt: skip
    for layout, name in ((torch.channels_last, "NHWC"), (torch.contiguous_format, "NCHW")):
        for shape in shapes:
            c = shape[1]
            x = torch.randn(shape, device=device).contiguous(memory_format=layout).requires_grad_()
            dy = torch.randn(shape, device=device).contiguous(memory_format=layout)
            weight, bias = (torch.rand(c, device=device).add(0.5).requires_grad_() for _ in "wb")
            mean, var = torch.zeros(c, device=device), torch.ones(c, device=device)
            count = torch.tensor(0, device=device)
            mine = lambda x, w, b, m=mean, v=var, n=count: F.bn_act_fake_quant(
                x, w, b, m, v, n, scale, zero, control, pending, activation="relu6", training=True
            )

            def plain(x, w, b, m=mean, v=var, n=count):
                n.add_(1)
                y = torch.nn.functional.batch_norm(x, m, v, w, b, True)
                return torch.nn.functional.relu6(y, inplace=True)

            def theirs(x, w, b, plain=plain):
                y = plain(x, w, b)
                return torch.fake_quantize_per_tensor_affine(y, scale, zero, -128, 127)

            inputs = [x, weight, bias]
            yield Row(
                "bn_act_fake_quant", "both, autograd", f"{name} {list(shape)}", torch.float32,
                element_bytes(x.numel(), torch.float32, 6, 2, 3),
                {"bitpare": both(mine, inputs, dy), "torch": both(theirs, inputs, dy),
                 "float": both(plain, inputs, dy)}, x,
            )  # fmt: skip


def of_the_table(device: str) -> Iterator[Row]:
    """The ops whose entries in the table of tests/python/ops say how they are called."""
    x = torch.randn(2**20, device=device)
    for op, entry in TABLE.items():
        if entry.speed:
            name = f"{op} {entry.speed.label}".strip()
            size, functions = int(x.numel() * entry.speed.bytes), entry.speed.functions(x)
            yield Row(name, "forward", "2^20", torch.float32, size, functions, x)


def measure(row: Row) -> dict[str, Any]:
    x = row.x.detach()
    times: dict[str, Times] = interleave({**row.functions, "copy": x.clone})
    same = row.bytes / (2 * x.nbytes)
    times["copy"] = Times(*(t * same for t in dataclasses.astuple(times["copy"])))
    mine, copy = times["bitpare"], times["copy"]
    return {
        "op": row.op,
        "what": row.what,
        "shape": row.shape,
        "dtype": str(row.dtype)[6:],
        "bytes": row.bytes,
        "microseconds": {
            name: {k: round(v * 1e6, 3) for k, v in dataclasses.asdict(t).items()}
            for name, t in times.items()
        },
        "gb_per_s": round(row.bytes / mine.median / 1e9, 2),
        "share_of_copy": round(copy.median / mine.median, 3),
        "times_faster": {
            name: round(t.median / mine.median, 2)
            for name, t in times.items()
            if name not in ("bitpare", "copy")
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--only", default="", help="ops whose name holds this")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=pathlib.Path, help="default: benchmarks/results/ops-DEVICE")
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    rows = []
    print(f"{'op':23}{'what':16}{'shape':33}{'dtype':9}{'us':>10}{'p20':>10}{'p80':>10}"
          f"{'GB/s':>8}{'copy':>7}  times faster than")  # fmt: skip
    for group in (
        per_tensor,
        per_channel,
        with_autograd,
        lsq_backward,
        batch_norms,
        observed,
        ranges_of_a_model,
        weights_of_a_model,
        of_the_table,
    ):
        for row in group(options.device):
            if options.only not in row.op:
                continue
            r = measure(row)
            rows.append(r)
            t = r["microseconds"]["bitpare"]
            peers = ", ".join(f"{name} {ratio}" for name, ratio in r["times_faster"].items())
            print(f"{r['op']:23}{r['what']:16}{r['shape']:33}{r['dtype']:9}{t['median']:10.2f}"
                  f"{t['p20']:10.2f}{t['p80']:10.2f}{r['gb_per_s']:8.1f}"
                  f"{r['share_of_copy']:7.0%}  {peers}", flush=True)  # fmt: skip
    out = options.out or RESULTS / f"ops-{options.device}.json"
    if not options.only or options.out:
        out.parent.mkdir(exist_ok=True)
        out.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
        print(f"stored in {out}", file=sys.stderr)


if __name__ == "__main__":
    main()
