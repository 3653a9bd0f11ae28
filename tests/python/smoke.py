"""Run a few steps through every op, forward and backward, for `make asan`."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import torch
from ops import CASES, WITH_GRADIENT
from test_ops import gradients

for case in CASES:
    case.run()
for case in WITH_GRADIENT:
    gradients(case)
print(f"{len(CASES)} cases, torch {torch.__version__}: no errors")
