"""Test the installed package: docstrings, command line, instruction sets, and its parts."""

import doctest
import importlib
import inspect
import pathlib
import re
import shutil
import subprocess
import sys

import bitpare as bp
import pytest
import torch
from bitpare import _build_info, functional
from ops import TABLE
from test_errors import run_python

ROOT = pathlib.Path(__file__).parents[2]


PACKAGE = pathlib.Path(bp.__file__).parent
WITH_EXAMPLES = [
    ".".join(("bitpare", *path.relative_to(PACKAGE).with_suffix("").parts))
    for path in sorted(PACKAGE.rglob("*.py"))
    if ">>> " in path.read_text()
]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_doctests(name):
    module = importlib.import_module(name.removesuffix(".__init__"))
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    ran = doctest.testmod(module, optionflags=flags)
    assert ran.attempted > 0 and ran.failed == 0


def public_functions():
    return [f for n, f in inspect.getmembers(functional, inspect.isfunction) if n[0] != "_"]


@pytest.mark.parametrize("function", public_functions(), ids=lambda f: f.__name__)
def test_every_function_is_documented_and_has_cases(function):
    assert ">>> " in inspect.getdoc(function)
    assert f"`{function.__name__}`" in (ROOT / "README.md").read_text()
    assert TABLE[function.__name__].cases


def test_every_op_has_its_files():
    """Each op has one stem, and every floor has the same families."""

    def stems(folder, suffix):
        return {p.stem for p in (ROOT / "csrc" / folder).glob(f"*{suffix}")}

    cpu = stems("kernels/cpu", ".cpp") - {"capability"}
    assert cpu == stems("kernels/cuda", ".cu")
    no_op = {"arguments", "register", "version", "masked_weights"}
    on_bytes = {s for s in cpu if s.startswith("int_")}  # called by integer models, not ops
    assert cpu - on_bytes == stems("ops", ".cpp") - no_op
    assert cpu <= stems("kernels", ".h")
    tests = "".join(p.read_text() for p in (ROOT / "tests" / "cpp").iterdir() if p.suffix != ".txt")
    assert cpu <= set(re.findall(r'#include "kernels/(\w+).h"', tests))


def test_doctor():
    ran = subprocess.run(
        [sys.executable, "-m", "bitpare", "doctor"], capture_output=True, text=True, check=True
    )
    for line in ("torch", "cpu ops    works", "cuda", bp.__version__):
        assert line in ran.stdout


@pytest.mark.parametrize("words", [["--version"], ["--help"], ["report", "--help"]])
def test_the_command_answers_without_torch(words):
    code = (
        "import sys, bitpare_cli\n"
        f"try: bitpare_cli.main({words})\n"
        "except SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'bitpare'} & set(sys.modules)"
    )
    ran = run_python(code)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith(
        f"bitpare {bp.__version__}" if words[0] == "--version" else "usage"
    )


def test_the_command_is_installed():
    command = pathlib.Path(sys.executable).with_name("bitpare")
    ran = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert ran.stdout == f"bitpare {bp.__version__}\n"
    ran = subprocess.run([command, "doctor", "--brief"], capture_output=True, text=True, check=True)
    assert bp.__version__ in ran.stdout


def test_version_is_everywhere_the_same():
    from bitpare import _C

    written = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.M)[1]
    assert bp.__version__ == _C.version() == _build_info.version == written


HASH = """
import hashlib, sys, torch
sys.path.insert(0, {path!r})
from ops import CASES, WITH_GRADIENT
from test_ops import gradients
digest = hashlib.sha256()
for case in CASES:
    for value in case.run():
        digest.update(value.nan_to_num(7.0).contiguous().flatten().view(torch.uint8).numpy().tobytes())
for case in WITH_GRADIENT:
    for value in gradients(case)[2]:
        digest.update(value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
from bitpare import _C
print(_C.cpu_capability(), digest.hexdigest())
"""


def test_instruction_sets_give_the_same_bits():
    from bitpare import _C

    names = ["default", "avx2", "avx512"]
    names = names[: names.index(_C.machine_cpu_capability()) + 1]
    code = HASH.format(path=str(pathlib.Path(__file__).parent))
    printed = {}
    for name in names:
        ran = run_python(code, BITPARE_CPU_CAPABILITY=name)
        assert ran.returncode == 0, ran.stderr
        used, printed[name] = ran.stdout.split()
        assert used == name
    assert len(set(printed.values())) == 1


def test_import_compiles_and_downloads_nothing():
    code = (
        "import subprocess, socket\n"
        "def no(*a, **k): raise AssertionError('import ran a process or opened a socket')\n"
        "import torch\n"
        "subprocess.Popen.__init__ = no; socket.socket.connect = no\n"
        "import bitpare\n"
        "assert not any(m.startswith(('torch.ao.', 'torchao')) for m in __import__('sys').modules\n"
        "               if m not in before)\n"
    )
    code = code.replace("import torch\n", "import torch, sys\nbefore = set(sys.modules)\n", 1)
    ran = run_python(code)
    assert ran.returncode == 0, ran.stderr


def test_cuda_code_for_every_architecture():
    if not _build_info.with_cuda:
        pytest.skip("this build has no CUDA")
    triton = pathlib.Path(torch.__file__).parents[1] / "triton/backends/nvidia/bin/cuobjdump"
    cuobjdump = shutil.which("cuobjdump") or triton  # triton includes it
    library = pathlib.Path(bp.__file__).parent / "libbitpare.so"
    listed = subprocess.run(
        [cuobjdump, "--list-elf", "--list-ptx", library], capture_output=True, text=True, check=True
    ).stdout
    archs = _build_info.cuda_archs.split(";")
    for arch in archs:
        assert f"sm_{arch}" in listed
    assert re.search(rf"sm_{archs[-1]}\S*\.ptx", listed)


def test_layers():
    subprocess.run([sys.executable, ROOT / "tools" / "check_layers.py"], check=True)


def test_no_torch_ao():
    sources = list((ROOT / "python").rglob("*.py")) + list((ROOT / "csrc").rglob("*.*"))
    assert not [p for p in sources if re.search(r"torch\.ao|torchao", p.read_text())]
