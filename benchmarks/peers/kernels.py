"""Time distillation losses against Liger's kernels, which are written in Triton and need a GPU.

benchmarks/run.py compares fake quantization with NNCF and Brevitas."""

from collections.abc import Callable
from typing import Any

import timing
import torch
import torch.nn.functional as F
from torch import Tensor

from peers import reason

SHAPES = ((256, 1000), (64, 32000))
TEMPERATURE = 4.0


def eager(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    soft = F.kl_div(
        F.log_softmax(student / TEMPERATURE, -1),
        F.softmax(teacher / TEMPERATURE, -1),
        reduction="batchmean",
    )
    return 0.5 * F.cross_entropy(student, target) + 0.5 * TEMPERATURE**2 * soft


def of_bitpare(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    import bitpare as bp

    return bp.functional.distill_loss(student, teacher, target, temperature=TEMPERATURE, alpha=0.5)


def of_liger(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    """Compute the loss with Liger's two kernels, and softmaxes of torch."""
    from liger_kernel.transformers import functional as liger

    soft = liger.liger_kl_div(
        F.log_softmax(student / TEMPERATURE, -1),
        F.softmax(teacher / TEMPERATURE, -1),
        reduction="batchmean",
    )
    hard = liger.liger_cross_entropy(student.clone(), target)  # it overwrites its input
    return 0.5 * hard + 0.5 * TEMPERATURE**2 * soft


LOSSES = {"eager": eager, "bitpare": of_bitpare, "Liger": of_liger}


def measure(shape: tuple[int, int], rounds: int, slice_s: float) -> dict[str, Any]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    student = torch.randn(shape, device=device, requires_grad=True)
    teacher = torch.randn(shape, device=device)
    target = torch.randint(0, shape[1], (shape[0],), device=device)
    steps: dict[str, Callable[[], Any]] = {}
    failed, expected = {}, eager(student, teacher, target)
    for name, loss in LOSSES.items():

        def step(loss: Callable[..., Tensor] = loss) -> Any:
            return torch.autograd.grad(loss(student, teacher, target), student)

        try:
            if not torch.allclose(loss(student, teacher, target), expected, rtol=1e-3):
                raise ArithmeticError("another value than eager's")
            step()
            steps[name] = step
        except Exception as error:  # a failure is a result too
            where = "" if device == "cuda" else "not on this machine without a GPU: "
            failed[name] = where + reason(error)
    found = timing.against(steps, "bitpare", rounds, slice_s)
    return {**found, "device": device, "failed": failed}
