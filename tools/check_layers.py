"""Check that dependencies point down, in C++ and in Python.

C++: integer models may include ops, ops may include kernels and math, kernels may include only
math, and math only itself. No torch below ops. No <cmath> in math and in files compiled for several
instruction sets. At most two macros in csrc. Python: a package imports only from the floors below
its own, imports form no circle, and no function imports from bitpare.
"""

import ast
import pathlib
import re
import sys

REPOSITORY = pathlib.Path(__file__).parent.parent
ROOT = REPOSITORY / "csrc"
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
# Headers that belong to no floor: the C++ interface, and the CUDA emulation for tests.
OWN = {"bitpare.h", "cuda_on_host.h"}
# Files compiled once, for the host, which may use the standard library.
HOST_ONLY = {"kernels/cpu/capability.cpp", "kernels/cuda/launch.h"}


# The floors of python/bitpare from the ground up. Packages on one floor do not import each other.
GROUND = {
    "errors",
    "files",
    "text",
    "steps",
    "distributed",
    "models",
    "batches",
    "_build_info",
    "_C",
}
FLOORS = (
    GROUND,
    {"functional", "spec", "graph"},
    {"nn"},
    {"quant", "prune"},
    {"distill"},
    {"deploy"},
    {"report"},
    {"bitpare", "_load", "__main__", "extend"},
)


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


def floor_of(module: str) -> int:
    """Return the floor number of the module bitpare.NAME.anything; 0 is the ground."""
    parts = module.split(".")
    name = parts[1] if len(parts) > 1 else parts[0]
    return next((i for i, names in enumerate(FLOORS) if name in names), -1)


def imports_of(tree: ast.AST, modules: set[str]) -> list[tuple[ast.stmt, str]]:
    """Return each import of a module of bitpare, with its statement."""
    found: list[tuple[ast.stmt, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node, a.name) for a in node.names if a.name.split(".")[0] == "bitpare"]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "bitpare":
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                below = full in modules or floor_of(full) == 0
                found.append((node, full if below else str(node.module)))
    return found


def python_problems(root: pathlib.Path) -> list[str]:
    """Return the problems with imports of the package in a folder."""
    names = {}
    for path in sorted((root / "bitpare").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    found, edges = [], {}
    for module, path in names.items():
        tree = ast.parse(path.read_text())
        where = path.relative_to(REPOSITORY)
        inside = {
            id(statement)
            for function in ast.walk(tree)
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
            for statement in ast.walk(function)
        }
        edges[module] = set()
        for statement, target in imports_of(tree, set(names)):
            at = f"{where}:{statement.lineno}"
            edges[module].add(target)
            if id(statement) in inside:
                found.append(f"{at}: a function imports {target}; import it at the top")
            here, there = floor_of(module), floor_of(target)
            same_package = module.split(".")[1:2] == target.split(".")[1:2]
            ground = here == there == 0
            beside = there == here and not same_package and not ground
            top = here == len(FLOORS) - 1
            if not top and (there < 0 or there > here or beside):
                found.append(f"{at}: {module} may not import {target}")
        for node in ast.walk(tree):
            dodges = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            dodges |= (
                isinstance(node, ast.FunctionDef)
                and node.name == "__getattr__"
                and (node in tree.body)
            )
            if dodges:
                found.append(f"{where}:{node.lineno}: an import that only seems to be absent")
    return found + [f"modules import each other: {' -> '.join(c)}" for c in circles(edges)]


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Return one path for each import circle that a depth-first walk finds."""
    found: list[list[str]] = []
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> None:
        if module in path:
            found.append([*path[path.index(module) :], module])
        elif module not in done:
            for target in sorted(edges.get(module, ())):
                visit(target, [*path, module])
            done.add(module)

    for module in sorted(edges):
        visit(module, [])
    return found


def main() -> int:
    paths = [p for p in sorted(ROOT.rglob("*")) if p.suffix in (".h", ".cpp", ".cu")]
    found = [problem for path in paths for problem in problems(path)]
    found += python_problems(REPOSITORY / "python")
    names = macros(paths)
    if len(names) > 2:
        found.append(f"csrc defines more than two macros: {', '.join(sorted(names))}")
    print("\n".join(found) or f"layers: {len(paths)} files, dependencies point down")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
