"""Test tools/progress.py: the output during a build or an installation."""

import json
import pathlib
import re
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "tools"))

import progress


@pytest.fixture(autouse=True)
def without_waiting(monkeypatch):
    """Write each state to the log at once."""
    monkeypatch.setattr(progress.Display, "every", 0.0)


def test_a_command_says_what_it_is_at(capsys):
    command = "echo Collecting x; echo ' Downloading x (3 MB)'; echo Installing packages: x, y"
    assert progress.main("run", "installing x", "sh", "-c", command) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "installing x"
    assert said[1].startswith("  Downloading x (3 MB) (0 s so far)")
    assert said[-1].startswith("  unpacking 2 packages (")


def test_a_command_that_fails_shows_what_it_printed(capsys):
    assert progress.main("run", "installing x", "sh", "-c", "echo no such version; exit 3") == 3
    assert capsys.readouterr().out == "installing x\nno such version\n\n"


@pytest.fixture
def build(tmp_path, capsys):
    """Run a build of ten objects with a script instead of CMake; return its status and output."""
    names = [f"CMakeFiles/bitpare.dir/csrc/ops/op{i}.cpp.o" for i in range(10)]
    commands = [{"directory": str(tmp_path), "output": name} for name in names]
    (tmp_path / "compile_commands.json").write_text(json.dumps(commands))

    def run(*lines):
        cmake = tmp_path / "cmake"
        cmake.write_text("\n".join(["#!/bin/sh", *lines]))
        cmake.chmod(0o755)
        return progress.build(str(cmake), tmp_path, 2), capsys.readouterr().out.splitlines()

    return run


def test_a_build_says_how_many_files_and_how_long(build):
    steps = [
        f"[{i + 1}/10] Building CMakeFiles/bitpare.dir/csrc/ops/op{i}.cpp.o" for i in range(10)
    ]
    first = "echo '[0/2] Re-checking globbed directories...'"
    status, said = build(first, *(f"echo '{step}'; sleep 0.1" for step in steps))
    assert status == 0
    assert said[0].startswith("compiling 10 files, 2 at a time: about 55 s")
    assert re.fullmatch(r"compiled 1 of 10 files, about \d+ s left \(ops/op0.cpp\)", said[1])
    assert said[-2].startswith("compiled 10 of 10 files") and said[-1].startswith("compiled in ")


def test_a_build_that_fails_shows_errors_and_its_status(build):
    status, said = build("echo '[1/10] Building a.cpp.o'; echo 'a.cpp:1: error: no'; exit 4")
    assert status == 4 and "a.cpp:1: error: no" in said
    assert not said[-1].startswith("compiled in")


def test_nothing_to_compile(build, tmp_path):
    (tmp_path / "compile_commands.json").write_text("[]")
    assert build("echo 'ninja: no work to do.'") == (0, [])
