"""Writes the API reference from the docstrings: api_reference.py OUT.md"""

import inspect
import pathlib
import sys

from bitpare import functional


def main() -> None:
    parts = ["# API reference", "", "## bitpare.functional", "", inspect.getdoc(functional), ""]
    for name, function in inspect.getmembers(functional, inspect.isfunction):
        signature = str(inspect.signature(function)).replace("torch.Tensor", "Tensor")
        parts += [f"### {name}", "", "```python", f"{name}{signature}", "```", ""]
        parts += [inspect.getdoc(function).replace(">>>", "    >>>"), ""]
    out = pathlib.Path(sys.argv[1])
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(parts))
    print(f"written to {out}")


if __name__ == "__main__":
    main()
