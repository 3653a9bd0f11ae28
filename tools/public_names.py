"""Read the public names from the sources: the names in __all__ of bitpare and its modules."""

import ast
import pathlib

PYTHON = pathlib.Path(__file__).parents[1] / "python"


def file_of(module: str) -> pathlib.Path:
    """Return the file of a module, or of a package; it need not exist."""
    path = PYTHON / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def exports(module: str) -> dict[str, str]:
    """Return the names in a package's __all__, each with the module that defines it."""
    sources, names = {}, []
    for node in ast.parse(file_of(module).read_text()).body:
        if isinstance(node, ast.ImportFrom):
            sources |= {alias.asname or alias.name: node.module or "" for alias in node.names}
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names = ast.literal_eval(node.value)
    ordered = sorted((name for name in names if name != "__version__"), key=str.lower)
    return {name: sources.get(name, module) for name in ordered}


def public_names() -> dict[str, dict[str, str]]:
    """Return the public modules, each with its public names and the modules that define them."""
    top = exports("bitpare")
    modules = sorted(name for name in top if file_of(f"bitpare.{name}").exists())
    found = {"bitpare": {name: source for name, source in top.items() if name not in modules}}
    return found | {f"bitpare.{name}": exports(f"bitpare.{name}") for name in modules}
