"""Time a linear layer with only integer weights, and with dynamic ranges, against float.

python benchmarks/linear.py [--rounds 15] [--save]
"""

import pathlib
from typing import Any

import timing

RESULTS = pathlib.Path(__file__).parent / "results" / "linear-cpu.json"
SIZE = 4096
ROWS = (1, 8, 64)


def layers() -> dict[str, Any]:
    import bitpare as bp
    import torch
    from torch import nn

    torch.manual_seed(0)
    layer = nn.Linear(SIZE, SIZE).eval()

    def integer(config: Any) -> Any:
        x = torch.randn(1, SIZE)
        return bp.convert(bp.prepare(layer, config, example_inputs=(x,)).eval())

    binary = bp.QConfig(weight=bp.QSpec(bits=1, learn="binary"), activation=bp.FLOAT)
    return {
        "float": layer,
        "int8 weights": integer(bp.QConfig.weight_only(bits=8)),
        "int4 weights": integer(bp.QConfig.weight_only(bits=4)),
        "int4 weights, groups of 64": integer(bp.QConfig.weight_only(bits=4, group=64)),
        "int2 weights": integer(bp.QConfig.weight_only(bits=2)),
        "binary weights": integer(binary),
        "dynamic int8": integer(bp.QConfig.dynamic()),
    }


def main() -> None:
    options = timing.options(__doc__, RESULTS)
    import torch

    rows, held = [], layers()
    for count in ROWS:
        x = torch.randn(count, SIZE)
        with torch.inference_mode():
            times = timing.interleave(
                {kind: lambda f=layer, x=x: f(x) for kind, layer in held.items()},
                rounds=options.rounds,
                slice_s=0.05,
            )
        name = f"linear {SIZE} to {SIZE}, {count} row{'s' * (count > 1)}"
        rows.append({"name": name, "seconds": {k: vars(t) for k, t in times.items()}})
        print(name)
        for kind, t in times.items():
            ratio = t.median / times["float"].median
            print(f"  {kind:28s} {t.median * 1e3:8.2f} ms, {ratio:5.2f}")
    if options.save:
        timing.save(RESULTS, rows)


if __name__ == "__main__":
    main()
