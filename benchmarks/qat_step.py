"""Compare a quantization-aware training step with a float one: time and peak memory.

    python benchmarks/qat_step.py [--models mobilenet_v2@32x32 ...] [--rounds 15]

Both models are timed in contiguous and channels_last layout, in turns in one process. The ratio
compares the faster layout of each. The quantized model is bp.prepare of the unmodified torchvision
model, in training with observers on. A step is forward, loss, backward and SGD with momentum.
"""

import pathlib

import timing

RESULTS = pathlib.Path(__file__).parent / "results" / "qat-step-cpu.json"
MODELS = (
    "mobilenet_v2@32x32",
    "mobilenet_v2@16x96",
    "resnet18@32x32",
    "resnet18@16x96",
    "mobilenet_v3_small@32x32",
    "mobilenet_v3_small@16x96",
    "mobilenet_v3_large@32x32",
    "mobilenet_v3_large@16x96",
)
KINDS = ("float", "float channels_last", "bitpare", "bitpare channels_last")


def build(name: str, kind: str):
    """Return a step function of one of KINDS."""
    import bitpare as bp
    import torch
    import torch.nn.functional as F
    import torchvision

    model_name, shape = name.split("@")
    batch, size = (int(n) for n in shape.split("x"))
    torch.manual_seed(0)
    model = getattr(torchvision.models, model_name)(num_classes=10)
    x, y = torch.randn(batch, 3, size, size), torch.randint(0, 10, (batch,))
    if kind.endswith("channels_last"):
        x = x.contiguous(memory_format=torch.channels_last)
        model = model.to(memory_format=torch.channels_last)
    if kind.startswith("bitpare"):
        model = bp.prepare(model, example_inputs=(x,))
        bp.calibrate(model, data=[x])
    model.train()
    parameters = bp.param_groups(model, weight_decay=4e-5)
    optimizer = torch.optim.SGD(parameters, lr=0.01, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def measure(name: str, rounds: int) -> dict:
    steps = {kind: build(name, kind) for kind in KINDS}
    for step in steps.values():
        for _ in range(3):
            step()
    times = timing.interleave(steps, rounds=rounds, slice_s=0.4)
    del steps
    memory = {kind: timing.peak_memory("qat_step", name, kind) for kind in KINDS}
    fastest = [min(pair, key=lambda kind: times[kind].median) for pair in (KINDS[:2], KINDS[2:])]
    return {
        "model": name,
        "seconds": {kind: vars(t) for kind, t in times.items()},
        "fastest": fastest,
        "ratio": times[fastest[1]].median / times[fastest[0]].median,
        "peak_mib": memory,
        "memory_ratio": memory[fastest[1]] / memory[fastest[0]],
    }


def main() -> None:
    options = timing.options(__doc__, RESULTS, models={"nargs": "+", "default": MODELS})
    rows = []
    print("time of", ", ".join(KINDS), "and the ratio of the faster ones")
    for name in options.models:
        row = measure(name, options.rounds)
        rows.append(row)
        ms = {kind: f"{t['median'] * 1e3:.1f}" for kind, t in row["seconds"].items()}
        print(
            f"{name:26s} {' / '.join(ms[kind] for kind in KINDS)} ms: {row['ratio']:.2f}; memory "
            f"{row['peak_mib'][row['fastest'][1]]:.0f} MiB, {row['memory_ratio']:.2f}",
            flush=True,
        )
    if options.save:
        timing.save(RESULTS, rows)


if __name__ == "__main__":
    main()
