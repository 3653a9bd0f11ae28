"""Run a short part of `make fuzz`, with fixed seeds."""

import pathlib
import re
import subprocess
import sys

import pytest

FUZZER = pathlib.Path(__file__).with_name("fuzz.py")


@pytest.mark.parametrize("kind, least", [("ops", 500), ("specs", 200)])
def test_nothing_crashes(kind, least):
    command = [sys.executable, FUZZER, "--kinds", kind, "--seconds", "20", "--cases", "600"]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout
    tried, accepted = map(int, re.findall(rf"{kind}: (\d+) cases, (\d+) accepted", ran.stdout)[0])
    assert tried > least and accepted > least / 50


def test_a_case_runs_again():
    ran = [
        subprocess.run(
            [sys.executable, FUZZER, "--replay", "ops", "3", "41"], capture_output=True, check=True
        ).stdout
        for _ in range(2)
    ]
    assert ran[0] == ran[1] and ran[0].split(b"(")[0]
