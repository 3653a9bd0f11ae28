"""Make one measurement and write its row: one.py PART JSON-ARGUMENTS FILE.

It runs in its own process, because some tools change torch when imported, and some crash."""

import importlib
import json
import pathlib
import sys
import traceback
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))


def row(part: str, arguments: dict[str, Any]) -> dict[str, Any]:
    import torch

    from peers import reason

    torch.set_num_threads(arguments.pop("threads"))
    module, function = part.split(".")
    try:
        return getattr(importlib.import_module(f"peers.{module}"), function)(**arguments)
    except Exception as error:
        traceback.print_exc()
        return {"reason": reason(error)}


if __name__ == "__main__":
    found = row(sys.argv[1], json.loads(sys.argv[2]))
    pathlib.Path(sys.argv[3]).write_text(json.dumps(found))
