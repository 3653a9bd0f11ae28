"""The build backend: setuptools, after a look for the torch to build against.

An isolated build environment has no torch, and must not get one: the extension has to be built
against the torch it will run with. `python -I` ignores what the isolation adds and sees the
packages of the environment that pip installs into.
"""

import subprocess
import sys

from setuptools import build_meta
from setuptools.build_meta import (  # noqa: F401
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

NO_TORCH = """
bitpare is built against the torch that is already installed, and {python} has none
(or it lives in another environment). Install torch first, then:

  pip install torch==2.11.0
  pip install "setuptools<82" cmake ninja
  pip install --no-build-isolation .
"""


def require_torch() -> None:
    probe = [sys.executable, "-I", "-c", "import torch"]
    if subprocess.run(probe, capture_output=True).returncode:
        raise SystemExit(NO_TORCH.format(python=sys.executable))


def build_wheel(*args, **kwargs):
    require_torch()
    return build_meta.build_wheel(*args, **kwargs)


def build_editable(*args, **kwargs):
    require_torch()
    return build_meta.build_editable(*args, **kwargs)


def build_sdist(*args, **kwargs):
    return build_meta.build_sdist(*args, **kwargs)
