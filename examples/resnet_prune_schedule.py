"""Remove half of the channels of a ResNet while it trains, on colour scenes of digits.

A schedule masks more and more whole channels, in the groups that residual additions tie together.
Then bp.prune.shrink makes a smaller ResNet of the same classes without the masked channels. The
optimizer is moved to it with its momentum, and training continues.

It prints what was removed, and compares the models.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import bitpare as bp
import torch
from bitpare_examples import command, results
from bitpare_examples.checkpoint import Checkpoint
from bitpare_examples.data import composed_digits
from bitpare_examples.networks import ResNet
from bitpare_examples.training import accuracy, steps_of, train
from torch import nn


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command.parser(__doc__, "resnet_prune_schedule")
    add = parser.add_argument
    add("--images", type=command.COUNT, default=4000, help="images to train with")
    add("--blocks", type=command.COUNT, default=1, help="blocks in each of the three stages")
    add("--width", type=command.COUNT, default=16, help="channels of the first stage")
    add("--batch", type=command.COUNT, default=64, help="images of a step")
    add("--epochs", type=command.COUNT, default=6, help="epochs while masks grow")
    add("--more-epochs", type=command.COUNT, default=3, help="epochs of the smaller model")
    add("--ratio", type=command.SHARE, default=0.5, help="share of channels to remove")
    add("--criterion", choices=["l1", "l2", "taylor", "bn_gamma"], default="l2")
    add("--scope", choices=["local", "global"], default="local")
    small = {"images": 1000, "width": 8, "batch": 16, "epochs": 6, "more_epochs": 2}
    return command.parse(parser, argv, quick=small)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    options = parse(argv)
    x, y, test_x, test_y = composed_digits(options.images, 1000, seed=options.seed)
    run = Checkpoint.of(options)
    model = ResNet(options.blocks, options.width)
    optimizer = torch.optim.SGD(
        bp.param_groups(model, weight_decay=1e-4), lr=0.1, momentum=0.9, nesterov=True
    )
    steps = steps_of(y, options.epochs, options.batch)
    schedule = bp.prune.Schedule.cubic(options.ratio, begin=steps // 4, end=steps * 3 // 4, every=5)
    pruner = bp.prune.Pruner(
        model,
        schedule,
        criterion=options.criterion,
        scope=options.scope,
        pattern="channel",
        example_inputs=(x[:1],),
    ).attach(optimizer)
    print(schedule)

    def trained(model: nn.Module, epochs: int, name: str, parts: dict[str, Any]) -> nn.Module:
        with command.recorder(model, optimizer, options, name) as recorder:
            train(
                model,
                x,
                y,
                optimizer,
                epochs,
                batch=options.batch,
                seed=options.seed,
                evaluate=lambda: accuracy(model, test_x, test_y),
                recorder=recorder,
                name=name,
                checkpoint=run,
                parts=parts,
            )
        return model.eval()

    masked = trained(model, options.epochs, "masked", {"pruner": pruner})
    plan = bp.prune.plan_shrink(masked, example_inputs=(x[:1],), pruner=pruner)
    print(f"\n{plan}\n")
    small = bp.prune.shrink(masked, example_inputs=(x[:1],), pruner=pruner, optimizer=optimizer)
    before = accuracy(small.eval(), test_x, test_y)
    held = sum(v.numel() for s in optimizer.state.values() for v in s.values() if v is not None)
    print(f"the smaller model, before it trains: {before:.1f} %; momentum of {held:,} weights\n")
    for group in optimizer.param_groups:  # restart the learning rate at a lower value
        group["lr"] = group["initial_lr"] = 0.02
    trained(small, options.more_epochs, "smaller", {})
    torch.save(small.state_dict(), options.output / "small.pt")
    plan.save(options.output / "plan.json")
    print(f"wrote {options.output / 'small.pt'} and, to make its model again, plan.json")
    models = {"masked": masked, "smaller": small}
    found = results.compared(models, test_x, test_y)
    results.print_compared(found)
    found["smaller, untrained"] = {"accuracy": before}
    return found


if __name__ == "__main__":
    command.run(main)
