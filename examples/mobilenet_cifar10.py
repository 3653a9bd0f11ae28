"""MobileNetV2 on 32 px images: float, then calibrated and trained in 8 bits, then in integers.

The images are CIFAR-10 if torchvision finds it in --data, or downloads it there with --download.
Otherwise they are 10,000 colour scenes composed of scikit-learn's real digits, which need no
download. Float weights are trained first, or come from --checkpoint. That is a state dict of
bitpare_examples.networks.MobileNetV2 of the same --width, such as the float.pt that this example
writes.

Several processes share each batch: torchrun --nproc-per-node 2 examples/mobilenet_cifar10.py
On a GPU: --device cuda --amp bf16 --channels-last --batch 256 --lr 0.2.
"""

import argparse
import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import bitpare as bp
import torch
import torch.distributed
import torch.nn.functional as F
from bitpare_examples import command, results
from bitpare_examples.checkpoint import Checkpoint, load_weights
from bitpare_examples.data import cifar10, composed_digits, shifted_and_flipped
from bitpare_examples.networks import MobileNetV2
from bitpare_examples.training import accuracy, steps_of, train
from torch import Tensor, nn

AMP = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command.parser(__doc__, "mobilenet_cifar10")
    add = parser.add_argument
    add("--data", type=Path, default=Path("data"), help="folder in which CIFAR-10 may be")
    add("--download", action="store_true", help="let torchvision download CIFAR-10")
    add("--images", type=command.COUNT, default=10_000, help="scenes in place of CIFAR-10")
    add("--width", type=command.POSITIVE, default=0.5, help="share of MobileNetV2's channels")
    add("--checkpoint", type=Path, metavar="FILE", help="file of float weights to begin with")
    add("--epochs", type=command.COUNT, default=8, help="epochs of float training")
    add("--qat-epochs", type=command.COUNT, default=2, help="epochs in 8 bits")
    add("--batch", type=command.COUNT, default=64, help="images of a step, of all processes")
    add("--lr", type=command.POSITIVE, default=0.1, help="learning rate of float training")
    add("--qat-lr", type=command.POSITIVE, default=0.02, help="learning rate in 8 bits")
    add("--amp", choices=AMP, default="no", help="mixed precision")
    add("--channels-last", action="store_true", help="use channels_last memory")
    gpu = "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", type=command.device, default=gpu, help="device to train on")
    small = {"images": 800, "width": 0.25, "epochs": 4, "qat_epochs": 1, "batch": 20, "lr": 0.05}
    return command.parse(parser, argv, quick=small)


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[torch.device]:
    """Join the process group if run by torchrun, and yield the device of this process."""
    if "WORLD_SIZE" not in os.environ:
        yield device
        return
    own = device
    if own.type == "cuda":
        own = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(own)
    torch.distributed.init_process_group("nccl" if own.type == "cuda" else "gloo")
    yield own
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def images(options: argparse.Namespace, say: Callable[[str], None]) -> tuple[str, list[Tensor]]:
    """Return CIFAR-10, or scenes. Only the first process downloads."""
    rank, world = command.processes()
    if options.download and world > 1:
        if rank == 0:
            with contextlib.suppress(RuntimeError):
                cifar10(options.data, download=True)
        torch.distributed.barrier()
    try:
        found = cifar10(options.data, download=options.download and world == 1)
        say(f"CIFAR-10 from {options.data}: {len(found[1]):,} images to train with")
        return "CIFAR-10", list(found)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        say(f"no CIFAR-10 in {options.data} ({reason})")
        say(f"composed digits instead: {options.images:,} scenes to train with")
        count, seed = options.images, options.seed
        return "digits", [*composed_digits(count, count // 5, seed=seed, clear=options.quick)]


class Trainer:
    """The code that both trainings share: mixed precision, augmentation, processes."""

    def __init__(self, options: argparse.Namespace, name: str, data: list[Tensor], run: Checkpoint):
        self.options, self.data, self.run = options, data, run
        self.augment = name == "CIFAR-10"

    def __call__(
        self, model: nn.Module, name: str, epochs: int, lr: float, *, quantized: bool = False
    ) -> nn.Module:
        x, y, test_x, test_y = self.data
        device, dtype = x.device, AMP[self.options.amp]
        groups = bp.param_groups(model, weight_decay=4e-5)
        optimizer = torch.optim.SGD(groups, lr=lr, momentum=0.9)
        parts: dict[str, Any] = {}
        if quantized:
            steps = steps_of(y, epochs, self.options.batch)
            schedule = bp.QatSchedule(model, steps=steps, freeze_bn=0.8, freeze_ranges=0.9)
            parts["quantization"] = schedule.attach(optimizer)
        called = model
        if command.processes()[1] > 1:
            called = nn.parallel.DistributedDataParallel(model)

        def objective(images: Tensor, labels: Tensor) -> Tensor:
            if self.augment:
                images = shifted_and_flipped(images)
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                return F.cross_entropy(called(images), labels)

        with command.recorder(model, optimizer, self.options, name) as recorder:
            train(
                model,
                x,
                y,
                optimizer,
                epochs,
                batch=self.options.batch,
                seed=self.options.seed,
                objective=objective,
                evaluate=lambda: accuracy(model, test_x, test_y),
                recorder=recorder,
                scaler=torch.amp.GradScaler(device.type, enabled=dtype is torch.float16),
                name=name,
                checkpoint=self.run,
                parts=parts,
            )
        return model.eval()


def trained(
    options: argparse.Namespace, device: torch.device
) -> tuple[nn.Module, nn.Module, list[Tensor]]:
    """Return the float model, the fake-quantized one, and the images."""
    rank, _ = command.processes()
    say = print if rank == 0 else lambda *_: None
    name, data = images(options, say)
    layout = torch.channels_last if options.channels_last else torch.contiguous_format
    data = [t.to(device) for t in data]
    data[0], data[2] = (data[i].contiguous(memory_format=layout) for i in (0, 2))
    x, _, test_x, test_y = data
    run = Checkpoint.of(options)
    trainer = Trainer(options, name, data, run)

    model = MobileNetV2(width=options.width).to(device, memory_format=layout)
    if options.checkpoint is not None:
        load_weights(model, options.checkpoint, "--checkpoint")
        model.eval()
        say(f"float weights from {options.checkpoint}: {accuracy(model, test_x, test_y):.1f} %")
    else:
        trainer(model, "float", options.epochs, options.lr)
        if rank == 0:
            torch.save(model.state_dict(), options.output / "float.pt")
        say(f"wrote {options.output / 'float.pt'}")

    qat = bp.prepare(model, bp.QConfig.int8(), example_inputs=(x[:1],))
    bp.calibrate(qat, data=x[:1024].split(128), progress=False)
    say(f"8 bits, calibrated only: {accuracy(qat, test_x, test_y):.1f} %")
    trainer(qat, "8 bits", options.qat_epochs, options.qat_lr, quantized=True)
    return model, qat, data


def main(argv: Sequence[str] | None = None) -> dict[str, Any] | None:
    options = parse(argv)
    if options.quick:
        torch.set_num_threads(1)  # more threads slow down a network this small
    with process_group(options.device) as device:
        rank, _ = command.processes()
        model, qat, (_, _, test_x, test_y) = trained(options, device)
    if rank > 0:
        return None
    integer = bp.convert(qat)
    results.ship(integer, options.output, test_x)
    results.verify(qat, integer, test_x[:1000])
    models = {"float": model, "fake-quant": qat, "integer": integer}
    found = results.compared(models, test_x, test_y, options.output)
    results.print_compared(found)
    return found


if __name__ == "__main__":
    command.run(main)
