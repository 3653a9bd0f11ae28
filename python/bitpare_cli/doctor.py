"""Print what a bug report needs: the build, torch, the machine, and whether the ops work or why
they cannot be loaded."""

import pathlib
from typing import Any

from bitpare_cli.diagnosis import diagnosis, lines, python_here


def _self_test(device: str) -> str:
    import torch
    from bitpare import functional

    x = torch.linspace(-3, 3, 1001, device=device, requires_grad=True)
    y = functional.fake_quant(x, torch.tensor(0.25, device=device), quant_min=-8, quant_max=7)
    y.sum().backward()
    expected = (x.detach() / 0.25).round().clamp(-8, 7) * 0.25
    good = torch.equal(y.detach(), expected) and x.grad is not None and bool(x.grad.sum() > 0)
    return "works" if good else "gives wrong results: please report this"


def _cuda(build: Any) -> str:
    import torch

    if not build.with_cuda:
        return (
            "not in this build: it found no nvcc of torch's CUDA version, or BITPARE_CUDA was OFF"
        )
    built = f"built by nvcc {build.cuda_compiler} for {build.cuda_archs.replace(';', ' ')}"
    if not torch.cuda.is_available():
        return f"{built}; no usable GPU here"
    return f"{built}; {torch.cuda.get_device_name()} {_self_test('cuda')}"


def facts() -> dict[str, str]:
    """Return the name and value of every fact, in the order to print them."""
    import torch
    from bitpare import _C, _build_info

    flush = torch.tensor([2e-38]).mul(0.01).item() == 0.0
    return {
        "bitpare": f"{_build_info.version} in {pathlib.Path(_build_info.__file__).parent}",
        "library": f"{_C.version()}, {_build_info.build_type}, {_build_info.compiler}",
        "torch": f"{torch.__version__}, built against {_build_info.torch}",
        "python": python_here(),
        "cpu": f"{_C.cpu_capability()} in use, {_C.machine_cpu_capability()} available, "
        f"{torch.get_num_threads()} threads",
        "cpu ops": _self_test("cpu"),
        "cuda": _cuda(_build_info),
        "denormals": "flushed to zero: results differ in their bits" if flush else "kept",
    }


def main(brief: bool = False) -> int:
    """Print the facts, on two lines if ``brief``. Return exit status 1 if an op fails."""
    try:
        found = facts()
    except ImportError as error:
        print(diagnosis(error))
        return 1
    if brief:
        print(f"bitpare {found['library']}; torch {found['torch']}; cpu {found['cpu']}")
        print(f"cuda {found['cuda']}")
    else:
        print(lines(found))
    return int(any("wrong results" in value for value in found.values()))
