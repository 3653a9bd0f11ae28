"""Holds docstrings to an opening that a stranger can read: a verb, or a noun with its article,
not a clause that begins in the middle."""

import ast
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).parent.parent
FOLDERS = ("python", "tests", "benchmarks", "examples", "tools", "cmake")
OPENINGS = re.compile(r"\W*(Of|What|Whether|Those|As|Where)\b")
HOLDERS = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def problems(path: pathlib.Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        text = ast.get_docstring(node) if isinstance(node, HOLDERS) else None
        if text and OPENINGS.match(text):
            name = path.relative_to(ROOT).as_posix()
            line = getattr(node, "lineno", 1)
            found.append(f"{name}:{line}: a docstring opens with {text.split()[0]!r}")
    return found


def main() -> int:
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    found = [problem for path in paths for problem in problems(path)]
    print("\n".join(found) or f"docstrings: {len(paths)} files, openings are fine")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
