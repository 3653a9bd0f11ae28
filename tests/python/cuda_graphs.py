"""Capture a test's step in a CUDA graph."""

from collections.abc import Callable
from typing import Any

import torch


def captured(
    step: Callable[[], Any], warm_up: Callable[[], Any] | None = None
) -> tuple[torch.cuda.CUDAGraph, Any]:
    """Return a graph of one step, not replayed yet, and the step's results. The step is warmed up
    first."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        (warm_up or step)()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step()
    return graph, result
