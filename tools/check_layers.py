"""Holds the direction of dependencies: integer models may include ops, ops kernels and math,
kernels only math, math nothing but itself; no torch below ops, no <cmath> in math and in files
compiled for several instruction sets; at most two macros in csrc."""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).parent.parent / "csrc"
ALLOWED = {
    "math": {"math"},
    "kernels": {"kernels", "math"},
    "ops": {"ops", "kernels", "math"},
    "integer": {"integer", "ops", "kernels", "math"},
}
SYSTEM = {
    "math": {"cstdint", "cuda_fp16.h"},
    "kernels": {"cstdint", "immintrin.h", "cuda_runtime.h"},
}
# Headers of no floor: the C++ interface, and the emulation that stands for CUDA in tests.
OWN = {"bitpare.h", "cuda_on_host.h"}
# Compiled once, for the host: they may use the standard library.
HOST_ONLY = {"kernels/cpu/capability.cpp", "kernels/cuda/launch.h"}


def problems(path: pathlib.Path) -> list[str]:
    name = path.relative_to(ROOT).as_posix()
    layer = name.split("/")[0]
    found = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        include = re.match(r'\s*#\s*include\s*(["<])(.+?)[">]', line)
        if not include or layer not in ALLOWED:
            continue
        quoted, target = include[1] == '"', include[2]
        if quoted:
            allowed = target.split("/")[0] in ALLOWED[layer] or target in OWN
        else:
            allowed = layer not in SYSTEM or name in HOST_ONLY or target in SYSTEM[layer]
        if not allowed:
            found.append(f"{name}:{number}: {layer} may not include {target}")
    return found


def macros(paths: list[pathlib.Path]) -> set[str]:
    pattern = re.compile(r"^\s*#\s*define\s+(\w+)", re.MULTILINE)
    return {m for path in paths for m in pattern.findall(path.read_text())}


def main() -> int:
    paths = [p for p in sorted(ROOT.rglob("*")) if p.suffix in (".h", ".cpp", ".cu")]
    found = [problem for path in paths for problem in problems(path)]
    names = macros(paths)
    if len(names) > 2:
        found.append(f"csrc defines more than two macros: {', '.join(sorted(names))}")
    print("\n".join(found) or f"layers: {len(paths)} files, dependencies point down")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
