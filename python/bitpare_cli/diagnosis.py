"""The doctor's answer if the package cannot be loaded. It needs neither torch nor bitpare."""

import importlib.metadata
import platform
import sys


def python_here() -> str:
    return f"{sys.version.split()[0]} on {platform.platform()}"


def _installed(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def diagnosis(error: ImportError) -> str:
    """Return the report for a package that cannot be loaded."""
    first, *rest = str(error).splitlines() or [""]
    known = {
        "bitpare": _installed("bitpare"),
        "torch": _installed("torch"),
        "python": python_here(),
        "cpu ops": "cannot be loaded",
        "why": first,
    }
    return "\n".join([lines(known), *rest])


def lines(known: dict[str, str]) -> str:
    return "\n".join(f"{name:10} {value}" for name, value in known.items())
