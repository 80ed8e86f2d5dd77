# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Writes `docs/api.md`, the API reference, from the docstrings: `make docs`.

`pdoc` reads the modules and the Google sections of docstrings; this script lays them out as one page of Markdown, which
is readable where the repository is browsed, and turns the docstrings' references into links.
"""

import dataclasses
import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

from pdoc import doc, docstrings

import modeling_aoarm


PACKAGE = modeling_aoarm.__name__
PAGE = Path(__file__).with_name("api.md")
HEAD = f"""# API reference

Made from the docstrings by `make docs`. Import from `{PACKAGE}`:

{{names}}

and everything else from its module:

{{modules}}
"""


def modules() -> list[doc.Module]:
    """The package's modules that have public names, by name."""
    names = (each.name for each in pkgutil.walk_packages(modeling_aoarm.__path__, f"{PACKAGE}."))
    found = (importlib.import_module(name) for name in names if not name.endswith("__main__"))
    return [doc.Module(module) for module in found if hasattr(module, "__all__")]


def public(module: doc.Module) -> list[doc.Doc]:
    """What a module's `__all__` names, in the order of the source."""
    return [member for member in module.members.values() if member.name in module.obj.__all__]


def methods(member: doc.Doc) -> list[doc.Function]:
    """The documented methods that a class adds."""
    if not isinstance(member, doc.Class):
        return []
    functions = (each for each in member.own_members if isinstance(each, doc.Function) and each.docstring)
    return [each for each in functions if each.obj.__module__.startswith(PACKAGE) and not each.name.startswith("_")]


def signature(member: doc.Doc) -> str:
    """How a name is called, or its value."""
    if isinstance(member, doc.Variable):
        # Functions print with their addresses.
        return member.name if " at 0x" in member.default_value_str else f"{member.name} = {member.default_value_str}"
    if isinstance(member, doc.Function):
        text = f"{member.funcdef} {member.name}{member.signature}"
    else:
        text = f"class {member.name}"
        constructor = member.members.get("__init__")
        # The library's classes have their arguments documented there.
        if constructor is not None and constructor.taken_from[0].startswith(PACKAGE):
            called = constructor.signature_without_self
            if dataclasses.is_dataclass(member.obj):
                own = [each for each in called.parameters.values() if each.name in member.obj.__annotations__]
                called = called.replace(parameters=own)
            text += str(called)
    return re.sub(r"\b(?:[a-z_]\w*\.)+(?=[A-Z])", "", text.replace("torch._C.", "torch."))


def markdown(docstring: str, anchors: set[str]) -> str:
    """A docstring as Markdown: sections in bold, arguments as a list, references as links."""
    text = docstrings.convert(docstring, "google", None)
    text = re.sub(r"^#+ (\w+):$", r"**\1**\n", text, flags=re.MULTILINE)
    text = re.sub(r"^ - \*\*(.+?)( \(.*?\))?:\*\*\s+", r"- `\1`\2: ", text, flags=re.MULTILINE)

    def link(reference: re.Match) -> str:
        name = reference[1].rpartition(f"{PACKAGE}.")[2]
        return f"[`{name}`](#{name})" if name in anchors else f"`{name}`"

    return re.sub(r"\[`~?([\w.]+)`\]", link, re.sub(r"\n{3,}", "\n\n", text)).strip()


def entry(member: doc.Doc, level: int, anchors: set[str]) -> Iterator[str]:
    """The parts of the page about one name, its methods after it."""
    yield f'{"#" * level} <a id="{member.qualname}"></a>`{member.qualname}`'
    yield f"```python\n{signature(member)}\n```"
    yield markdown(member.docstring, anchors)
    for method in methods(member):
        yield from entry(method, level + 1, anchors)


def page() -> str:
    """The whole reference."""
    contents = {module: public(module) for module in modules()}
    anchors = {
        each.qualname for members in contents.values() for member in members for each in (member, *methods(member))
    }
    parts = [
        HEAD.format(
            names=", ".join(f"[`{name}`](#{name})" for name in modeling_aoarm.__all__),
            modules=", ".join(f"[`{module.name}`](#{module.fullname})" for module in contents),
        ).strip()
    ]
    for module, members in contents.items():
        parts.append(f'## <a id="{module.fullname}"></a>`{module.fullname}`')
        parts.append(markdown(module.docstring, anchors))
        for member in members:
            parts.extend(entry(member, 3, anchors))
    return "\n\n".join(part for part in parts if part) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
