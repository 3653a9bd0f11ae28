"""LeNet on scikit-learn's real digits: in float, then with 8, 4 and 2 bits for weights and
activations, each fine-tuned from the float model with bitpare's functional ops.

    python examples/lenet_digits.py --help
"""

import argparse
import time

import bitpare as bp
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from tqdm import tqdm


class Quantizer(nn.Module):
    """Fake quantization with a learned scale (LSQ), initialised from the first tensor it sees."""

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
    """LeNet for 8x8 digits. With bits, weights and activations of every layer are quantized; the
    first and last layer keep 8 bits."""

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

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            weight = layer.weight
            if i == 2:
                x = x.flatten(1)
            if self.weight_quantizers:
                x = self.input_quantizers[i](x)
                weight = self.weight_quantizers[i](weight)
            if isinstance(layer, nn.Conv2d):
                x = F.max_pool2d(F.relu(F.conv2d(x, weight, layer.bias, padding=1)), 2)
            else:
                x = F.linear(x, weight, layer.bias)
                x = F.relu(x) if i < 3 else x
        return x


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Train and test images and labels: the last 500 are for testing."""
    data = load_digits()
    x = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    y = torch.tensor(data.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    return x[:-500], y[:-500], x[-500:], y[-500:]


def train(model: nn.Module, x: Tensor, y: Tensor, epochs: int, lr: float, name: str) -> None:
    """SGD with momentum on a cosine schedule."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    batches = len(x) // 32
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * batches)
    for _ in tqdm(range(epochs), desc=f"{name:7}", unit="epoch"):
        for rows in torch.randperm(len(x))[: batches * 32].view(batches, 32):
            loss = F.cross_entropy(model(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return (model(x).argmax(1) == y).double().mean().item() * 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20, help="of float training")
    parser.add_argument("--tune-epochs", type=int, default=10, help="of each quantized model")
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 4, 2], help="bits to try")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    train_x, train_y, test_x, test_y = digits()
    model, rows = LeNet(), []
    start = time.perf_counter()
    train(model, train_x, train_y, options.epochs, 0.05, "float")
    rows.append(("float32", accuracy(model, test_x, test_y), time.perf_counter() - start))
    for bits in options.bits:
        start = time.perf_counter()
        quantized = LeNet(bits)
        quantized.load_state_dict(model.state_dict(), strict=False)
        train(quantized, train_x, train_y, options.tune_epochs, 0.01, f"{bits} bits")
        seconds = time.perf_counter() - start
        rows.append((f"{bits} bits", accuracy(quantized, test_x, test_y), seconds))

    print(f"\n{'weights and activations':24} {'test accuracy':>13} {'seconds':>8}")
    for name, percent, seconds in rows:
        print(f"{name:24} {percent:12.1f}% {seconds:8.1f}")


if __name__ == "__main__":
    main()
