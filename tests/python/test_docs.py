"""Test README and docs: their code runs, and everything they name exists."""

import ast
import functools
import importlib
import inspect
import pathlib
import re
import subprocess
import sys

import bitpare as bp
import pytest
import torch

ROOT = pathlib.Path(__file__).parents[2]
DOCS = ["README.md", *(f"docs/{p.name}" for p in sorted((ROOT / "docs").glob("*.md")))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def text_of(name: str) -> str:
    return (ROOT / name).read_text()


def blocks(name: str, *languages: str) -> list[str]:
    return [code for language, code in FENCE.findall(text_of(name)) if language in languages]


@pytest.mark.parametrize("name", [n for n in DOCS if blocks(n, "python")])
def test_code_in_the_docs_runs(name, tmp_path, monkeypatch):
    """Run block after block, as a reader who copies all of them."""
    monkeypatch.chdir(tmp_path)  # some blocks write files
    monkeypatch.syspath_prepend(ROOT / "examples")
    torch.set_num_threads(1)  # the networks are tiny
    torch.manual_seed(1234)  # a reader has another seed
    scope: dict = {"__name__": "docs"}
    for number, block in enumerate(blocks(name, "python"), 1):
        exec(compile(block, f"{name}, block {number}", "exec"), scope)


def test_the_training_script_of_the_readme_is_short():
    lines = [line for line in blocks("README.md", "python")[0].splitlines() if line]
    assert len(lines) <= 30, len(lines)


def anchors(text: str) -> set[str]:
    """Return the anchors that Markdown generates from headings."""
    prose = FENCE.sub("", text)
    headings = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("name", [*DOCS, "CONTRIBUTING.md"])
def test_links_lead_somewhere(name):
    folder, broken = (ROOT / name).parent, []
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", text_of(name))):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = folder / path if path else ROOT / name
        if not file.exists() or (anchor and anchor not in anchors(file.read_text())):
            broken.append(target)
    assert not broken


@functools.cache
def resolves(name: str) -> bool:
    value = bp
    for part in name.split(".")[1:]:
        if not hasattr(value, part):
            return False
        value = getattr(value, part)
    return True


@pytest.mark.parametrize("name", DOCS)
def test_names_of_the_package_are_there(name):
    named = set(re.findall(r"\bbp(?:\.[A-Za-z]\w*)+", text_of(name)))
    assert not [n for n in sorted(named) if not resolves(n)]


def commands(name: str) -> list[str]:
    """Return the lines of shell blocks, and the code within sentences."""
    text = text_of(name)
    lines = [line.strip() for block in blocks(name, "", "sh", "bash") for line in block.split("\n")]
    return lines + re.findall(r"`([^`\n]+)`", FENCE.sub("", text))


@pytest.fixture(scope="module")
def subcommands():
    said = subprocess.run(
        [sys.executable, "-m", "bitpare", "--help"], capture_output=True, text=True, check=True
    ).stdout
    return re.search(r"\{([\w,]+)\}", said)[1].split(",")


@pytest.mark.parametrize("name", DOCS)
def test_commands_are_there(name, subcommands):
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for command in commands(name):
        for make in re.findall(r"^(?:\w+=\S+ )*make ([\w-]+)", command):
            assert make in targets, command
        for sub in re.findall(r"python -m bitpare (\w+)", command):
            assert sub in subcommands, command
        for script in re.findall(r"\bpython ((?:examples|benchmarks|tools)/\S+)", command):
            assert (ROOT / script).exists(), command


# -- messages that docs/troubleshooting.md quotes


VALUE = "(.+?)"


def _said(node: ast.AST) -> str | None:
    """Return a pattern for the text of a Python literal, where any text matches a placeholder."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.escape(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_said(v) or VALUE for v in node.values)
    return None


@functools.cache
def sayings() -> list[str]:
    """Return patterns for all texts of the package: Python, C++, CMake and the set-up script."""
    found = set()
    folders = [ROOT / "python" / "bitpare", ROOT / "csrc", ROOT / "cmake"]
    for path in [*(p for f in folders for p in f.rglob("*")), ROOT / "tools" / "setup.sh"]:
        if path.suffix == ".py":
            found |= {_said(node) for node in ast.walk(ast.parse(path.read_text()))}
        elif path.suffix in (".h", ".cpp", ".cmake", ".sh"):
            text = re.sub(r'"\s*\n?\s*"', "", path.read_text())  # join adjacent literals
            for literal in re.findall(r'"((?:[^"\\\n]|\\.)*)"', text):
                plain = re.escape(literal.replace('\\"', '"'))
                found.add(re.sub(r"\\\$\\\{\w+\\\}", VALUE, plain))
    return [s for s in found if s and len(s.replace(VALUE, "").replace("\\", "")) >= 12]


def is_said(fragment: str) -> bool:
    """Return whether the package has a text with this fragment, or a text that matches inside
    it."""
    literal = re.escape(fragment)
    return any(literal in s for s in sayings()) or any(
        re.search(s, fragment, re.DOTALL) for s in sayings()
    )


QUOTED = [
    line for b in blocks("docs/troubleshooting.md", "text") for line in b.splitlines() if line
]


@pytest.mark.parametrize("message", QUOTED)
def test_messages_in_troubleshooting_are_those_of_the_package(message):
    fragments = [f.strip() for f in message.split("...")]
    long = [f for f in fragments if len(f) >= 10]
    assert long and all(is_said(f) for f in long)


def test_other_messages_are_not():
    assert is_said("prepare: the model is prepared already")
    assert not is_said("prepare: the model was prepared already")


# -- the API reference, tables and plots


def test_every_public_name_is_in_the_reference(monkeypatch):
    """`make docs` makes an entry for each name that public_names finds in the sources."""
    monkeypatch.syspath_prepend(ROOT / "tools")
    found = importlib.import_module("public_names").public_names()
    inside = [v for v in vars(bp).values() if inspect.ismodule(v) and v.__name__[8:] in bp.__all__]
    assert set(found) == {"bitpare", *(module.__name__ for module in inside)}
    for module in (bp, *inside):
        names = {n for n in module.__all__ if not inspect.ismodule(getattr(module, n))}
        assert set(found[module.__name__]) == names - {"__version__"}
        for public, source in found[module.__name__].items():
            value = getattr(module, public)
            assert getattr(importlib.import_module(source), public) is value
            assert inspect.getdoc(value), f"{module.__name__}.{public} has no docstring"
            if inspect.isclass(value):
                assert value.__doc__ and not value.__doc__.startswith(f"{public}("), public


def test_tables_and_plots_are_the_stored_results():
    command = [sys.executable, ROOT / "benchmarks" / "tables.py", "--check"]
    subprocess.run(command, check=True)
