"""Writes the API reference from the docstrings, a page for each public module:

python tools/api_reference.py build/docs
"""

import dataclasses
import functools
import inspect
import pathlib
import re
import sys
import types
from collections.abc import Iterator
from typing import Any

import bitpare
from torch import nn

# Methods that say nothing beyond what torch.nn.Module says of them.
_OF_MODULES = {"forward", "train", "extra_repr", "get_extra_state", "set_extra_state"}


def modules() -> dict[str, types.ModuleType]:
    """The public modules by name: bitpare, and those among its names."""
    found = {"bitpare": bitpare}
    for name in sorted(bitpare.__all__):
        value = getattr(bitpare, name)
        if isinstance(value, types.ModuleType):
            found[value.__name__] = value
    return found


def public_names(module: types.ModuleType) -> list[str]:
    """Return what a module exports besides other modules and the version."""
    names = [n for n in module.__all__ if not n.startswith("__")]
    return [n for n in names if not isinstance(getattr(module, n), types.ModuleType)]


@functools.cache
def _public() -> set[Any]:
    found = (getattr(m, name) for m in modules().values() for name in public_names(m))
    return {value for value in found if inspect.isclass(value)}


def signature_of(name: str, value: Any) -> str:
    """One line, or one argument a line where that would be long."""
    found = inspect.signature(value)
    if inspect.isclass(value):
        found = found.replace(return_annotation=inspect.Signature.empty)
    first = next(iter(found.parameters), "")
    if first in ("self", "cls"):
        found = found.replace(parameters=list(found.parameters.values())[1:])
    line = _plain(f"{name}{found}")
    if len(line) <= 90:
        return line
    returns = found.replace(parameters=[])
    lines, kinds = [], inspect.Parameter
    keyword_only = False
    for parameter in found.parameters.values():
        if parameter.kind is kinds.KEYWORD_ONLY and not keyword_only:
            lines.append("    *,")
            keyword_only = True
        keyword_only |= parameter.kind is kinds.VAR_POSITIONAL
        lines.append(_plain(f"    {parameter},"))
    result = _plain(str(returns))
    return "\n".join([f"{name}(", *lines, result[1:]])


def _plain(text: str) -> str:
    """Annotations as one would write them."""
    text = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text)
    text = re.sub(r"<function (\w+) at 0x[0-9a-f]+>", r"\1", text)
    text = re.sub(r"-> '(\w+)'", r"-> \1", text)
    for module in ("torch.optim.optimizer.", "torch.nn.modules.module.", "collections.abc."):
        text = text.replace(module, "")
    text = re.sub(r"\bbitpare\.(\w+\.)*", "", text)
    return text.replace("torch.Tensor", "Tensor").replace("typing.", "").replace("os.", "")


_ITEM = re.compile(r"(    )?[a-z_\d]+(, [a-z_\d]+)*: \S")


def text_of(docstring: str | None) -> list[str]:
    """A docstring as Markdown: examples keep their lines, options become items of a list."""
    made: list[str] = []
    in_example = in_list = False
    for line in (docstring or "").splitlines():
        if not line.strip():
            if in_example:
                made.append("```")
            in_example = in_list = False
            made.append("")
        elif in_example or line.startswith(">>>"):
            if not in_example:
                made.append("```pycon")
            in_example = True
            made.append(line)
        elif _ITEM.match(line) and (in_list or not made or made[-1][-1:] in ("", ":")):
            in_list = True
            made.append(f"- {line.strip()}")
        else:
            made.append(f"  {line.strip()}" if in_list else line)
    return [*made, "```"] if in_example else made


def methods_of(kind: type) -> Iterator[tuple[str, Any, bool]]:
    """Name, function and whether it is a property, of what a class says of itself, and of what it
    has from classes that are not public."""
    said: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        if base is kind or (base.__module__.startswith("bitpare.") and base not in _public()):
            said |= vars(base)
    for name, value in said.items():
        skipped = name in _OF_MODULES and issubclass(kind, nn.Module)
        if name.startswith("_") or skipped:
            continue
        if isinstance(value, property) and value.fget is not None:
            yield name, value.fget, True
        elif inspect.isfunction(getattr(value, "__func__", value)):
            yield name, getattr(value, "__func__", value), False


def entry(name: str, value: Any) -> list[str]:
    """The section of one public name."""
    lines = [f"## {name}", ""]
    error = inspect.isclass(value) and issubclass(value, Exception)
    if error or not (inspect.isclass(value) or inspect.isfunction(value)):
        return [*lines, *text_of(inspect.getdoc(value)), ""]
    lines += ["```python", signature_of(name, value), "```", ""]
    lines += [*text_of(inspect.getdoc(value)), ""]
    if not inspect.isclass(value):
        return lines
    if dataclasses.is_dataclass(value):
        fields = ", ".join(f"`{f.name}`" for f in dataclasses.fields(value))
        lines += [f"Fields: {fields}.", ""]
    for method, function, is_property in methods_of(value):
        shown = method if is_property else signature_of(method, function)
        if "\n" in shown:
            lines += [f"### {name}.{method}", "", "```python", shown, "```", ""]
        else:
            lines += [f"### {name}.{method}", "", f"`{shown}`", ""]
        lines += [*text_of(inspect.getdoc(function)), ""]
    return lines


def anchors(names: list[str]) -> dict[str, str]:
    """Return where each name's section is: Markdown's anchors are in lower case, and numbered."""
    found: dict[str, str] = {}
    for name in names:
        earlier = sum(other.lower() == name.lower() for other in found)
        found[name] = name.lower() + (f"-{earlier}" if earlier else "")
    return found


def page(name: str, module: types.ModuleType) -> str:
    lines = [f"# {name}", "", *text_of(inspect.getdoc(module)), ""]
    names = public_names(module)
    lines += [", ".join(f"[{n}](#{anchor})" for n, anchor in anchors(names).items()), ""]
    for public in names:
        lines += entry(public, getattr(module, public))
    return "\n".join(lines).replace("\n\n\n", "\n\n")


def contents(found: dict[str, types.ModuleType]) -> str:
    """The page that leads to the others."""
    lines = [f"# bitpare {bitpare.__version__}: API reference", ""]
    for name, module in found.items():
        said = (inspect.getdoc(module) or "").splitlines()[0]
        lines += [f"## [{name}]({name}.md)", "", said, ""]
        for public, anchor in anchors(public_names(module)).items():
            value = getattr(module, public)
            first = (inspect.getdoc(value) or "").split("\n\n")[0].replace("\n", " ")
            lines.append(f"- [{public}]({name}.md#{anchor}): {first}")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    out = pathlib.Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    found = modules()
    for name, module in found.items():
        (out / f"{name}.md").write_text(page(name, module))
    (out / "index.md").write_text(contents(found))
    print(f"written to {out}/index.md and {len(found)} pages beside it")


if __name__ == "__main__":
    main()
