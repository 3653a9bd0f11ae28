"""Apply changes late in training."""

from collections.abc import Callable
from typing import Any

import torch


def after(optimizer: torch.optim.Optimizer, step: int, act: Callable[[], Any]) -> None:
    """Call ``act`` once the optimizer has taken this many steps."""
    taken = 0

    def count(*_: Any) -> None:
        nonlocal taken
        taken += 1
        if taken == step:
            act()

    optimizer.register_step_post_hook(count)
