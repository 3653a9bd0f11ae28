"""Hooks of mkdocs.yml. They choose the pages, and write the reference of all public names."""

import pathlib
import re

import griffe
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from public_names import public_names

ROOT = pathlib.Path(__file__).parents[1]
PAGES = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "examples/README.md"]
PUBLIC = public_names()


def on_config(config):
    """Add the pages of the reference to the navigation."""
    for section in config.nav:
        if "Reference" in section:
            section["Reference"] += [{name: f"reference/{name}.md"} for name in PUBLIC]


def on_files(files, config):
    """Arrange the pages as in the repository, so that their links work in both. Add the sources
    that they link to, and the reference."""
    paths = [*PAGES, *(file.relative_to(ROOT).as_posix() for file in (ROOT / "docs").rglob("*.*"))]
    for page in [path for path in paths if path.endswith(".md")]:
        for target in re.findall(r"\]\(([^)#\s:]+)", (ROOT / page).read_text()):
            linked = (ROOT / page).parent.joinpath(target).resolve()
            if linked.is_file() and ROOT in linked.parents:
                paths.append(linked.relative_to(ROOT).as_posix())
    theme = [file for file in files if file.src_dir != config.docs_dir]
    made = [File.generated(config, p, abs_src_path=str(ROOT / p)) for p in dict.fromkeys(paths)]
    index = ["# Reference", "", "Everything that is public, from its docstrings.", ""]
    for module, names in PUBLIC.items():
        made.append(File.generated(config, f"reference/{module}.md", content=reference(module)))
        links = ", ".join(f"[`{name}`][{source}.{name}]" for name, source in names.items())
        index += [f"## [{module}]({module}.md)", "", links, ""]
    made.append(File.generated(config, "reference/index.md", content="\n".join(index)))
    return Files([*theme, *made])


def reference(module):
    """Return the page of a module: its docstring, and an entry for each of its public names."""
    lines = [f"# {module}", "", f"::: {module}", "    options: {members: false}", ""]
    for name, source in PUBLIC[module].items():
        if module != "bitpare" and name in PUBLIC["bitpare"]:
            lines += [f"## {name}", "", f"The same as [`bitpare.{name}`][{source}.{name}].", ""]
            continue
        shown = f"{{heading: {name}, show_root_heading: true, show_root_toc_entry: true}}"
        lines += [f"::: {source}.{name}", f"    options: {shown}", ""]
    return "\n".join(lines)


def on_page_markdown(markdown, page, config, files):
    """Link code such as `bp.prune.Pruner` to the reference."""

    def linked(match):
        module, _, name = f"bitpare.{match[1]}".rpartition(".")
        source = PUBLIC.get(module, {}).get(name)
        return f"[{match[0]}][{source}.{name}]" if source else match[0]

    return re.sub(r"(?<!\[)`bp\.([A-Za-z_.]+)(?:\([^`]*\))?`", linked, markdown)


def on_page_content(html, page, config, files):
    """Refuse a page of the reference that lacks an entry."""
    for name, source in PUBLIC.get(page.file.name, {}).items():
        if not any(f'<h2 id="{anchor}"' in html for anchor in (f"{source}.{name}", name.lower())):
            raise PluginError(f"{page.file.src_uri} has no entry for {name}")


# Methods that behave as documented in torch.nn.Module.
OF_MODULES = {"forward", "train", "extra_repr", "get_extra_state", "set_extra_state"}


class Docstrings(griffe.Extension):
    """Converts the docstrings of the package: examples begin with >>>, and options are lines of the
    form `name: meaning`."""

    def on_package(self, *, pkg, loader, **_):
        """Rewrite all docstrings, and hide attributes without one and methods that torch calls."""
        for obj in members(pkg):
            if obj.docstring is not None:
                obj.docstring.value = markdown_of(obj.docstring.value)
            elif obj.is_attribute and "property" not in obj.labels:
                obj.public = False
            if obj.name in OF_MODULES or re.match("__(?!init__)", obj.name):
                obj.public = False


def members(obj):
    """Yield an object of the package and everything inside it."""
    yield obj
    for member in obj.members.values():
        if not member.is_alias:
            yield from members(member)


OPTION = re.compile(r"(    )?[a-z_\d]+(, [a-z_\d]+)*: \S")
SECTION = re.compile(r"(Args|Returns|Yields|Raises|Attributes):$")


def markdown_of(docstring: str) -> str:
    """Fence the examples, and turn the options into list items. Sections such as Args stay."""
    made: list[str] = []
    inside = ""  # an example, a list or a section
    for line in docstring.splitlines():
        if inside == "section" and (not line or line.startswith(" ")):
            made.append(line)
        elif not line.strip():
            made += ["```", ""] if inside == "example" else [""]
            inside = ""
        elif inside == "example":
            made.append(line)
        elif line.startswith(">>>"):
            made += ["```pycon", line]
            inside = "example"
        elif OPTION.match(line) and (inside == "list" or not made or made[-1][-1:] in ("", ":")):
            made += [""] if made and made[-1] and inside != "list" else []
            made.append(f"- {line.strip()}")
            inside = "list"
        elif SECTION.match(line):
            made.append(line)
            inside = "section"
        else:
            made.append(f"  {line.strip()}" if inside == "list" else line)
            inside = inside if inside == "list" else ""
    return "\n".join([*made, "```"] if inside == "example" else made)
