"""Check that docstrings and comments begin with a verb, or a noun with its article, and not in the
middle of a clause."""

import ast
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).parent.parent
FOLDERS = ("python", "csrc", "tests", "benchmarks", "examples", "tools", "cmake")
WORDS = r"(Of|What|Whether|Those|As|Where)\b"
HOLDERS = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
COMMENTS = {".py": "#", ".h": "//", ".cpp": "//", ".cu": "//", ".cmake": "#", ".sh": "#"}


def openings(path: pathlib.Path) -> list[tuple[int, str]]:
    """Return the line and first word of each docstring and comment that begins in the middle. Later
    lines of a comment continue a sentence, so they are not checked."""
    text, mark = path.read_text(), COMMENTS[path.suffix]
    found = []
    before = ""
    for number, line in enumerate(text.splitlines(), 1):
        comment = re.match(rf"\s*{mark} {WORDS}", line)
        if comment and not before.startswith(mark):
            found.append((number, comment[1]))
        before = line.strip()
    if path.suffix == ".py":
        for node in ast.walk(ast.parse(text)):
            said = ast.get_docstring(node) if isinstance(node, HOLDERS) else None
            if said and (word := re.match(rf"\W*{WORDS}", said)):
                found.append((getattr(node, "lineno", 1), word[1]))
    return found


def main() -> int:
    files = [f for folder in FOLDERS for f in sorted((ROOT / folder).rglob("*"))]
    files = [f for f in files if f.suffix in COMMENTS]
    found = [
        f"{file.relative_to(ROOT).as_posix()}:{line}: it opens with '{word}'"
        for file in files
        for line, word in openings(file)
    ]
    print("\n".join(found) or f"language: {len(files)} files, openings are fine")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
