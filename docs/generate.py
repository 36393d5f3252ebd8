"""Writes docs/reference/ from the source: the commands from their help, the Python names from their docstrings.

    python docs/generate.py           writes the pages
    python docs/generate.py --check   says which pages are not current, with exit code 1

The Python page follows the `__init__` of each public module: its comments are the chapters, its imports their content.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, get_args, get_origin, get_overloads, is_typeddict

import click

from durable_streams.cli import failures
from durable_streams.cli.program import NAME, program

REFERENCE = Path(__file__).parent / "reference"
NOTE = "<!-- Written by docs/generate.py. Change the source, then run it again. -->"
WIDTH = 96

CLI_INTRODUCTION = """\
Comes with `pip install "durable-streams-anyio[cli,server]"`. Data goes to standard output, words to standard error, and
`-` is standard input: commands compose in a pipe. The same things in Python are in [its reference](api.md)."""
API_INTRODUCTION = """\
Durations are seconds as floats, sizes are bytes. How the names work together is told in [the guides](../index.md); the
command line has [a page of its own](cli.md). The names of the first part are those of the package itself:"""

#: Public modules, what they are called, and what stands below the title.
MODULES = {
    "durable_streams": "The client",
    "durable_streams.server": "The server",
    "durable_streams.s2": "S2",
    "durable_streams.s2.patterns": "Messages on S2",
    "durable_streams.testing": "For tests",
}
#: Docstring sections, and what they are called on the page.
SECTIONS = {
    "Args": "Arguments",
    "Attributes": "Attributes",
    "Returns": "Returns",
    "Yields": "Yields",
    "Raises": "Raises",
}


# -- Commands ---------------------------------------------------------------------------------------------


def cli_page() -> str:
    """The page on the commands."""
    parts = [
        NOTE,
        f"# `{NAME}`",
        CLI_INTRODUCTION,
        _help_of([], program),
    ]
    for names, command in _commands([], program):
        parts += [f"{'#' * min(len(names) + 1, 4)} {' '.join(names)}", _help_of(names, command)]
    parts += [
        "## Exit codes",
        "Errors are one line on standard error, with the next step.",
        _table(inspect.cleandoc(failures.__doc__ or "")),
        "## Completion",
        "Your shell completes commands and options once it has read this (`zsh_source`, `fish_source` for others):",
        f'```sh\neval "$(_{NAME.upper().replace("-", "_")}_COMPLETE=bash_source {NAME})"\n```',
    ]
    return "\n\n".join(parts) + "\n"


def _commands(names: list[str], group: click.Group) -> Iterator[tuple[list[str], click.Command]]:
    """The commands of a group, those of its groups included, each with the words that lead to it."""
    for name, command in group.commands.items():
        yield [*names, name], command
        if isinstance(command, click.Group):
            yield from _commands([*names, name], command)


def _help_of(names: list[str], command: click.Command) -> str:
    context = click.Context(command, info_name=" ".join([NAME, *names]), terminal_width=WIDTH, max_content_width=WIDTH)
    context.help_option_names = ["-h", "--help"]
    return f"```console\n$ {' '.join([NAME, *names, '--help'])}\n{command.get_help(context)}\n```"


def _table(text: str) -> str:
    """A table of the form that docstrings have, as Markdown."""
    rows = text.split("====  ")[-2].split("\n", 1)[1] if text.count("====  ") > 2 else ""
    lines = ["| code | meaning |", "| --- | --- |"]
    for row in rows.strip().splitlines():
        code, meaning = row.split(maxsplit=1)
        lines.append(f"| {code} | {meaning} |")
    return "\n".join(lines)


# -- Python -----------------------------------------------------------------------------------------------


def api_page() -> str:
    """The page on the Python names."""
    chapters = [(module, list(_chapters(importlib.import_module(module)))) for module in MODULES]
    parts = [
        NOTE,
        "# Python",
        API_INTRODUCTION,
        "```python\nimport durable_streams\n```",
    ]
    for module, found in chapters:
        parts.append(f"# {MODULES[module]}: `{module}`")
        for title, names in found:
            parts.append(f"## {title}")
            if title == "Errors":
                tree = inspect.cleandoc(importlib.import_module("durable_streams.errors").__doc__ or "")
                parts.append("```text\n" + tree.split("\n\n")[1].replace("\n    ", "\n").lstrip() + "\n```")
            parts += [_name(module, name) for name in names]
    return "\n\n".join(parts) + "\n"


def _chapters(module: ModuleType) -> Iterator[tuple[str, list[str]]]:
    """The comments above the imports of a module, and the names imported below each."""
    title, names = "", list[str]()
    for line in map(str.strip, inspect.getsource(module).splitlines()):
        if line.startswith("# ") and not line.endswith("."):
            if names:
                yield title, names
            title, names = line.removeprefix("# ").partition(":")[0], []
        elif found := re.match(r"from \.[\w.]* import \w+ as (\w+)", line):
            names.append(found.group(1))
        elif line.startswith("__all__") or line == "else:":
            break
    if names:
        yield title, names


def _name(module: str, name: str) -> str:
    value = getattr(importlib.import_module(module), name)
    if inspect.isclass(value) and value.__module__.startswith("durable_streams") and not is_typeddict(value):
        return _class(name, value)
    if inspect.isfunction(value):
        return f"### {name}\n\n{_signature(name, value)}\n\n{_docstring(value)}"
    if is_typeddict(value):
        fields = "\n".join(f"    {field}: {_shown(kind)}" for field, kind in value.__annotations__.items())
        return f"### {name}\n\n```text\nclass {name}(TypedDict):\n{fields}\n```\n\n{_docstring(value)}"
    return f"### {name}\n\n{_alias(module, name)}"


def _class(name: str, value: type) -> str:
    documented = inspect.getdoc(value) or ""
    made_by_us = "made by" in documented.split("\n\n")[0] or documented.startswith("What `")
    made_by_users = not (made_by_us or getattr(value, "_is_protocol", False) or issubclass(value, BaseException))
    ours = [base for base in value.__bases__ if base.__module__.startswith("durable_streams")]
    private = [base for base in ours if "._" in base.__module__]  # what they have is shown as the class's own
    bases = [base.__name__ for base in ours if base not in private]
    head = f"### {name}" + (f"\n\nA `{'`, `'.join(bases)}`." if bases else "")
    parts = [head]
    if made_by_users:
        parts.append(_signature(name, value))
    parts.append(_docstring(value))
    members = dict(vars(value))
    for base in private:
        members = members | {member: each for member, each in vars(base).items() if member not in members}
    known = {  # what a type variable of a base stands for in this class
        variable.__name__: argument.__name__
        for generic in getattr(value, "__orig_bases__", ())
        if get_origin(generic) in private
        for variable, argument in zip(get_origin(generic).__parameters__, get_args(generic), strict=True)
    }
    for member, function in members.items():
        if member.startswith("_") or member in {field.name for field in _fields(value)}:
            continue
        raw = inspect.unwrap(function.__func__ if isinstance(function, classmethod | staticmethod) else function)
        if isinstance(function, property):
            parts.append(f"#### {name}.{member}\n\n{_docstring(function)}")
        elif inspect.isfunction(raw):
            signatures = get_overloads(raw) or [raw]
            shown = "\n".join(_plain_signature(f"{name}.{member}", each, method=True) for each in signatures)
            if member not in vars(value):
                shown = re.sub(r"\b[A-Z]\b", lambda found: known.get(found.group(), found.group()), shown)
            parts.append(f"#### {name}.{member}\n\n```text\n{shown}\n```\n\n{_docstring(raw)}")
    return "\n\n".join(parts)


def _fields(value: type) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(value) if dataclasses.is_dataclass(value) else ()


def _alias(module: str, name: str) -> str:
    """A type alias: its definition, and the `#:` comment above it, from the source."""
    package = importlib.import_module(module).__name__
    found = re.search(rf"from (\.[\w.]+) import \w+ as {name}\b", inspect.getsource(importlib.import_module(module)))
    assert found is not None, f"{name} is imported nowhere"
    source = inspect.getsource(importlib.import_module(found.group(1), package))
    match = re.search(rf"((?:^#: .*\n)*)^({name}(?:: [^=\n]+)? = (?:.+?))(?=\n\S|\n\n|\Z)", source, re.M | re.S)
    assert match is not None, f"{name} is defined nowhere"
    comment = " ".join(line.removeprefix("#: ") for line in match.group(1).splitlines())
    return f"```text\n{match.group(2).strip()}\n```\n\n{comment}".strip()


def _signature(name: str, function: Callable[..., Any]) -> str:
    return f"```text\n{_plain_signature(name, function)}\n```"


def _plain_signature(name: str, function: Callable[..., Any], *, method: bool = False) -> str:
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())
    if method and parameters and parameters[0].name in ("self", "cls"):
        parameters = parameters[1:]
    words: list[str] = []
    previous: inspect.Parameter | None = None
    for parameter in parameters:
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and (
            previous is None or previous.kind not in (parameter.kind, inspect.Parameter.VAR_POSITIONAL)
        ):
            words.append("*")
        words.append(_parameter(parameter))
        previous = parameter
        if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
            words.append("/")
    prefix = "await " if inspect.iscoroutinefunction(function) else ""
    returns = signature.return_annotation
    arrow = "" if returns in (signature.empty, None, "None") or inspect.isclass(function) else f" -> {_shown(returns)}"
    line = f"{prefix}{name}({', '.join(words)}){arrow}"
    if len(line) <= WIDTH:
        return line
    return f"{prefix}{name}(\n" + "".join(f"    {word},\n" for word in words) + f"){arrow}"


def _parameter(parameter: inspect.Parameter) -> str:
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    text = f"{stars}{parameter.name}"
    if parameter.annotation is not parameter.empty:
        text += f": {_shown(parameter.annotation)}"
    if parameter.default is not parameter.empty:
        text += f" = {_default(parameter.default)}"
    return text


def _default(value: object) -> str:
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}".removeprefix("builtins.")
    for constant, other in vars(type(value)).items():
        if other is value and constant.isupper():
            return f"{type(value).__name__}.{constant}"
    text = repr(value)
    return "..." if text.startswith("<") else text


def _shown(annotation: object) -> str:
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _docstring(value: object) -> str:
    """A Google-style docstring as Markdown."""
    lines = (inspect.getdoc(value) or "").splitlines()
    done: list[str] = []
    inside = False
    for line in lines:
        section = line.removesuffix(":")
        if line.endswith(":") and section in SECTIONS:
            inside = True
            done += [f"**{SECTIONS[section]}**", ""]
        elif inside and line and not line.startswith(" "):
            inside = False
            done.append(line)
        elif inside and (entry := re.match(r"    (\*{0,2}\w+): (.*)", line)):
            done.append(f"- `{entry.group(1)}`: {entry.group(2)}")
        elif inside and line.startswith("        "):
            done.append("  " + line.strip())
        elif inside:
            done.append(line.strip())
        else:
            done.append(line)
    return "\n".join(done).strip()


# -- Files ------------------------------------------------------------------------------------------------


def pages() -> dict[Path, str]:
    """The pages as they should be."""
    return {REFERENCE / "cli.md": cli_page(), REFERENCE / "api.md": api_page()}


def main() -> None:
    """Write the pages, or check them."""
    outdated = [path for path, text in pages().items() if not path.exists() or path.read_text() != text]
    if "--check" in sys.argv[1:]:
        if outdated:
            sys.exit(f"not current: {', '.join(path.name for path in outdated)}; run python docs/generate.py")
        return
    REFERENCE.mkdir(exist_ok=True)
    for path in outdated:
        path.write_text(pages()[path])
        print(f"wrote {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")


if __name__ == "__main__":
    main()
