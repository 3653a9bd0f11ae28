import os

# A graph kept on disk does not know that an op was built anew.
os.environ["TORCHINDUCTOR_FX_GRAPH_CACHE"] = "0"
os.environ["TORCHINDUCTOR_AUTOGRAD_CACHE"] = "0"

import pytest
import torch


@pytest.fixture(autouse=True)
def fixed_threads():
    torch.set_num_threads(2)
    torch.manual_seed(0)


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    no_gpu = pytest.mark.skip(reason="needs a GPU, and this machine has none")
    for item in items:
        if "cuda" in item.keywords:
            item.add_marker(no_gpu)
