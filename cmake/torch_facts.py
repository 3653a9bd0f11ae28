"""Prints what the build needs to know of the installed torch, as a CMake list."""

import pathlib
import sysconfig

import torch

root = pathlib.Path(torch.__file__).parent
cuda = torch.version.cuda or ""
wheel_lib = root.parent / "nvidia" / f"cu{cuda.split('.')[0]}" / "lib"
print(
    torch.__version__,
    root,
    int(torch._C._GLIBCXX_USE_CXX11_ABI),
    cuda or "none",
    wheel_lib,
    sysconfig.get_paths()["include"],
    sysconfig.get_config_var("EXT_SUFFIX"),
    sep=";",
)
