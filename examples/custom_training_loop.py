"""Write your own training loop with only the ops of bp.functional: no prepare, Pruner or Distiller.

LeNet is trained on real digits in float, then with 8, 4 and 2 bits for weights and activations,
with half of the weights pruned, and with the float model's outputs as soft labels. Three ops do
this: fake_quant_lsq quantizes with learned scales, select_mask and apply_mask prune the weights of
smallest magnitude, and distill_loss compares with the teacher. The rest is plain PyTorch.
"""

import argparse
from collections.abc import Sequence

import bitpare as bp
import torch
import torch.nn.functional as F
from bitpare_examples import command
from bitpare_examples.checkpoint import Checkpoint
from bitpare_examples.data import digits
from bitpare_examples.training import accuracy, steps_of
from torch import Tensor, nn
from tqdm import tqdm

BATCH = 32


class Quantizer(nn.Module):
    """Fake quantization with a learned scale (LSQ), which is initialised from the first tensor."""

    def __init__(self, bits: int, signed: bool, axis: int | None = None, channels: int = 1) -> None:
        super().__init__()
        self.quant_min = -(2 ** (bits - 1)) if signed else 0
        self.quant_max = self.quant_min + 2**bits - 1
        self.axis = axis
        self.scale = nn.Parameter(torch.ones(channels))
        self.register_buffer("ready", torch.tensor(False))

    def forward(self, x: Tensor) -> Tensor:
        if not self.ready:
            mean = bp.functional.mean_magnitude(x.detach(), axis=self.axis)
            self.scale.data.copy_(2 * mean / self.quant_max**0.5)
            self.ready.fill_(True)
        return bp.functional.fake_quant_lsq(
            x, self.scale, quant_min=self.quant_min, quant_max=self.quant_max, axis=self.axis
        )


class LeNet(nn.Module):
    """LeNet for 8x8 digits. With ``bits``, the weights and activations of every layer are quantized
    and weights are masked. The first and last layers keep 8 bits."""

    def __init__(self, bits: int | None = None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1),
             nn.Linear(128, 84), nn.Linear(84, 10)]
        )  # fmt: skip
        self.weight_quantizers = nn.ModuleList()
        self.input_quantizers = nn.ModuleList()
        for i, layer in enumerate(self.layers if bits else []):
            b = 8 if i in (0, 3) else bits
            self.weight_quantizers.append(Quantizer(b, True, 0, layer.weight.shape[0]))
            self.input_quantizers.append(Quantizer(b, False))
            everything = torch.ones(layer.weight.shape, dtype=torch.bool)
            self.register_buffer(f"mask{i}", bp.functional.pack_mask(everything))

    def prune(self, sparsity: float) -> None:
        """Mask the weights of smallest magnitude in the whole model. Masked weights stay masked."""
        masks = [self.get_buffer(f"mask{i}") for i in range(len(self.layers))]
        scores = [layer.weight.detach().abs() for layer in self.layers]
        found = bp.functional.select_mask(scores, sparsity, previous=masks)
        for mask, new in zip(masks, found, strict=True):
            mask.copy_(new)

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            weight = layer.weight
            if i == 2:
                x = x.flatten(1)
            if self.weight_quantizers:
                x = self.input_quantizers[i](x)
                masked = bp.functional.apply_mask(weight, self.get_buffer(f"mask{i}"))
                weight = self.weight_quantizers[i](masked)
            if isinstance(layer, nn.Conv2d):
                x = F.max_pool2d(F.relu(F.conv2d(x, weight, layer.bias, padding=1)), 2)
            else:
                x = F.linear(x, weight, layer.bias)
                x = F.relu(x) if i < 3 else x
        return x


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command.parser(__doc__, "custom_training_loop")
    add = parser.add_argument
    add("--epochs", type=command.COUNT, default=20, help="epochs of float training")
    add("--tune-epochs", type=command.COUNT, default=10, help="epochs of each quantized model")
    add("--bits", type=command.BITS, nargs="+", default=[8, 4, 2], help="bits to try in turn")
    add("--sparsity", type=command.SHARE, default=0.5, help="share of the weights to prune")
    return command.parse(parser, argv, quick={"epochs": 8, "tune_epochs": 4})


def train(
    model: LeNet,
    teacher: LeNet | None,
    data: Sequence[Tensor],
    stage: str,
    options: argparse.Namespace,
    run: Checkpoint,
) -> float:
    """Train with SGD with momentum on a cosine schedule, and return the accuracy."""
    x, y, test_x, test_y = data
    epochs = options.epochs if teacher is None else options.tune_epochs
    lr = 0.05 if teacher is None else 0.01
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps_of(y, epochs, BATCH))
    order = torch.Generator().manual_seed(options.seed)
    with command.recorder(model, optimizer, options, stage) as recorder:
        parts = {"model": model, "optimizer": optimizer, "schedule": schedule, "record": recorder}
        first = run.restore(stage, parts, order)
        for epoch in tqdm(range(first, epochs), stage, epochs, initial=first, unit="epoch"):
            if teacher is not None:
                done = min(2 * epoch / epochs, 1)  # all pruning is done in the first half
                model.prune(options.sparsity * (1 - (1 - done) ** 3))
            for rows in torch.randperm(len(x), generator=order).split(BATCH):
                if len(rows) < BATCH:
                    continue
                logits = model(x[rows])
                if teacher is None:
                    loss = F.cross_entropy(logits, y[rows])
                else:
                    with torch.no_grad():
                        soft = teacher(x[rows])
                    loss = bp.functional.distill_loss(logits, soft, y[rows], temperature=4.0)
                recorder.log(loss=loss)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
            run.save(stage, epoch + 1, parts, order)
    return accuracy(model, test_x, test_y)


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    options = parse(argv)
    torch.set_num_threads(1)  # more threads slow down a network this small
    data = digits(options.seed)
    run = Checkpoint.of(options)
    model = LeNet()
    found = {"float32": train(model, None, data, "float32", options, run)}
    for bits in options.bits:
        quantized = LeNet(bits)
        quantized.load_state_dict(model.state_dict(), strict=False)
        name = f"{bits} bits"
        found[name] = train(quantized, model, data, name, options, run)
    print()
    rows = [[name, f"{percent:.1f} %"] for name, percent in found.items()]
    print(command.table(["weights and activations", "test accuracy"], rows))
    print(f"the quantized ones with {options.sparsity:.0%} of their weights pruned")
    return found


if __name__ == "__main__":
    command.run(main)
