"""The build backend: setuptools, after a look for the torch to build against.

An isolated build environment has no torch, and must not get one: the extension has to be built
against the torch it will run with. `python -I` ignores what the isolation adds and sees the
packages of the environment that pip installs into.
"""

import subprocess
import sys

import setuptools
from setuptools import build_meta
from setuptools.build_meta import (  # noqa: F401
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
)

NO_TORCH = """
bitpare is built against the torch that is already installed, and {python} has none
(or it lives in another environment). Install torch first, then:

  pip install torch==2.11.0
  pip install "setuptools>=77,<82" cmake ninja
  pip install --no-build-isolation .
"""
OLD = """
bitpare needs setuptools 77 or newer to be built, and {python} has {version}:

  pip install "setuptools>=77,<82"
"""


def require_torch() -> None:
    probe = [sys.executable, "-I", "-c", "import torch"]
    if subprocess.run(probe, capture_output=True).returncode:
        raise SystemExit(NO_TORCH.format(python=sys.executable))


def require_setuptools() -> None:
    """Without isolation nobody else looks at its version; an older one does not read licenses as
    they are written now, and says so at length."""
    if int(setuptools.__version__.split(".")[0]) < 77:
        raise SystemExit(OLD.format(python=sys.executable, version=setuptools.__version__))


def prepare_metadata_for_build_wheel(*args, **kwargs):
    require_setuptools()
    return build_meta.prepare_metadata_for_build_wheel(*args, **kwargs)


def prepare_metadata_for_build_editable(*args, **kwargs):
    require_setuptools()
    return build_meta.prepare_metadata_for_build_editable(*args, **kwargs)


def build_wheel(*args, **kwargs):
    require_torch()
    return build_meta.build_wheel(*args, **kwargs)


def build_editable(*args, **kwargs):
    require_torch()
    return build_meta.build_editable(*args, **kwargs)


def build_sdist(*args, **kwargs):
    return build_meta.build_sdist(*args, **kwargs)
