"""Time mask selection against torch, training steps with and without masks, and the inference of
shrunk models.

    python benchmarks/prune.py [--rounds 15] [--save]

All variants of a row take turns in one process.
"""

import copy
import pathlib
import sys

import timing

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "examples"))
RESULTS = pathlib.Path(__file__).parent / "results" / "prune-cpu.json"
SPARSITY = 0.9
SHRUNK = ("resnet18", "mobilenet_v2", "mobilenet_v3_small")


def selections():
    """Return functions that select masks for all weights of MobileNetV2, and the number of
    weights."""
    import bitpare as bp
    import torch
    import torchvision
    from torch.nn.utils import prune

    model = torchvision.models.mobilenet_v2()
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    scores = [m.weight.detach().abs() for m in layers]
    previous = bp.functional.select_mask(scores, 0.8)

    def kthvalue() -> list:
        flat = torch.cat([s.flatten() for s in scores])
        threshold = flat.kthvalue(int(SPARSITY * flat.numel())).values
        return [s > threshold for s in scores]

    def torch_prune() -> None:
        fresh = copy.deepcopy(model)
        chosen = [
            (m, "weight")
            for m in fresh.modules()
            if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)
        ]
        prune.global_unstructured(chosen, prune.L1Unstructured, amount=SPARSITY)

    select = bp.functional.select_mask
    return {
        "select_mask": lambda: select(scores, SPARSITY),
        "select_mask with masks in force": lambda: select(scores, SPARSITY, previous=previous),
        "select_mask local": lambda: select(scores, SPARSITY, scope="local"),
        "cat + kthvalue": kthvalue,
        "torch.nn.utils.prune.global_unstructured": torch_prune,
        "deepcopy of the model (part of the row above)": lambda: copy.deepcopy(model),
    }, sum(s.numel() for s in scores)


def steps(name: str):
    """Return a float training step without and with masks, and the set-up of each turn. Both use
    one model, because two equal models differ by 4 % depending on their memory addresses."""
    import bitpare as bp
    import torch
    import torch.nn.functional as F
    import torchvision
    from bitpare_examples.networks import LeNet

    torch.manual_seed(0)
    if name == "LeNet 64x8":
        model, x = LeNet(), torch.randn(64, 1, 8, 8)
    else:
        model = torchvision.models.mobilenet_v2(num_classes=10)
        model = model.to(memory_format=torch.channels_last)
        x = torch.randn(32, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    y = torch.randint(0, 10, (len(x),))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-5, momentum=0.9, weight_decay=4e-5)
    pruners: list[bp.prune.Pruner] = []

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    def without() -> None:
        while pruners:
            pruners.pop().finalize()
        step()

    def with_masks() -> None:
        if not pruners:
            pruner = bp.prune.Pruner(model, bp.prune.Schedule.one_shot(SPARSITY))
            pruners.append(pruner.attach(optimizer))
        step()

    label = f"{SPARSITY:.0%} pruned"
    return {"float": step, label: step}, {"float": without, label: with_masks}


def smaller(name: str):
    """Return the inference of a model and of its shrunk copy, on one image."""
    import bitpare as bp
    import torch
    import torchvision

    torch.manual_seed(0)
    model = getattr(torchvision.models, name)(num_classes=10).eval()
    model = model.to(memory_format=torch.channels_last)
    x = torch.randn(1, 3, 96, 96).contiguous(memory_format=torch.channels_last)

    def run(module):
        def forward() -> None:
            with torch.inference_mode():
                module(x)

        return forward

    found = {"whole": run(model)}
    for ratio in (0.3, 0.5, 0.7):
        plan = bp.prune.plan_shrink(model, example_inputs=x, sparsity=ratio)
        macs, weights = (
            plan.sizes[f"{what} after"] / plan.sizes[f"{what} before"]
            for what in ("MACs", "parameters")
        )
        label = f"{ratio:.0%} of the channels gone, {macs:.2f} MACs, {weights:.2f} weights"
        found[label] = run(plan.apply(model))
    return found


def main() -> None:
    options = timing.options(__doc__, RESULTS)
    rows = []
    selecting, n = selections()
    for name, (functions, before) in (
        (f"masks of {n} weights", (selecting, None)),
        ("LeNet 64x8", steps("LeNet 64x8")),
        ("MobileNetV2 32x32", steps("MobileNetV2 32x32")),
        *((f"inference of {n}, 1x96x96", (smaller(n), None)) for n in SHRUNK),
    ):
        for f in functions.values():
            for _ in range(3):
                f()
        times = timing.interleave(functions, rounds=options.rounds, slice_s=0.3, before=before)
        rows.append({"name": name, "seconds": {k: vars(t) for k, t in times.items()}})
        print(name)
        for kind, t in times.items():
            print(f"  {kind:48s} {t.median * 1e3:8.3f} ms")
    if options.save:
        timing.save(RESULTS, rows)


if __name__ == "__main__":
    main()
