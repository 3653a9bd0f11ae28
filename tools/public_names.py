"""Read the public names from the sources: the names in __all__ of bitpare and its modules."""

import ast
import pathlib

PYTHON = pathlib.Path(__file__).parents[1] / "python"


def exports(module: str) -> dict[str, str]:
    """Return the names in a package's __all__, each with the module that defines it."""
    sources, names = {}, []
    for node in ast.parse((PYTHON / module.replace(".", "/") / "__init__.py").read_text()).body:
        if isinstance(node, ast.ImportFrom):
            sources |= {alias.asname or alias.name: node.module or "" for alias in node.names}
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names = ast.literal_eval(node.value)
    ordered = sorted((name for name in names if name != "__version__"), key=str.lower)
    return {name: sources.get(name, module) for name in ordered}


def public_names() -> dict[str, dict[str, str]]:
    """Return the public modules, each with its public names and the modules that define them."""
    top = exports("bitpare")
    modules = sorted(name for name in top if (PYTHON / "bitpare" / name / "__init__.py").exists())
    found = {"bitpare": {name: source for name, source in top.items() if name not in modules}}
    return found | {f"bitpare.{name}": exports(f"bitpare.{name}") for name in modules}
