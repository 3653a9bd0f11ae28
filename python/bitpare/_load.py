"""Load libbitpare.so, after checking that it was built for this version of torch."""

import pathlib
import sys

import torch
from bitpare_cli.diagnosis import diagnosis

try:
    from bitpare import _build_info
except ImportError:  # in the source folder, before a build
    _build_info = None  # type: ignore[assignment]

REBUILD = "pip install --no-build-isolation --force-reinstall --no-deps ."


def _release(version: str) -> str:
    """Return the part of a torch version that fixes its ABI: 2.11 of 2.11.0+cu130."""
    return ".".join(version.split("+")[0].split(".")[:2])


def check_build(built_torch: str, built_cuda: str) -> None:
    """Raise ImportError unless a build for this torch and CUDA can be loaded here."""
    here_cuda = torch.version.cuda or "none"
    same_cuda = built_cuda.split(".")[0] == here_cuda.split(".")[0]
    if _release(built_torch) == _release(torch.__version__) and same_cuda:
        return
    raise ImportError(
        f"bitpare was built against torch {built_torch} (CUDA {built_cuda}), but torch "
        f"{torch.__version__} (CUDA {here_cuda}) is installed. Rebuild it in its source folder:\n"
        f"  {REBUILD}"
    )


def _checked_library() -> pathlib.Path:
    if _build_info is None:
        raise ImportError(
            f"bitpare has not been built yet. Build it in its source folder:\n  {REBUILD}"
        )
    check_build(_build_info.torch, _build_info.torch_cuda)
    return pathlib.Path(__file__).parent / "libbitpare.so"


def load() -> None:
    """Register the ops, once, when the package is imported."""
    try:
        library = _checked_library()
        try:
            torch.ops.load_library(str(library))
        except OSError as error:
            raise ImportError(
                f"{error}\nRebuild bitpare in its source folder:\n  {REBUILD}"
            ) from error
    except ImportError as error:
        if not _doctor_is_asked():
            raise
        print(diagnosis(error))
        raise SystemExit(1) from None


def _doctor_is_asked() -> bool:
    """Return whether this is `python -m bitpare doctor`, which prints an error as its answer."""
    words = sys.orig_argv
    at = words.index("-m") if "-m" in words else len(words)
    return words[at + 1 : at + 3] == ["bitpare", "doctor"]
