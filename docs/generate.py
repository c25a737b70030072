"""Write the pages of docs/reference that are made from the code: `make docs`.

`pages()` gives every such page as text; a test compares them with the files. What is written must not
depend on the machine: implementations are asked about a made-up CPU or GPU, with their libraries taken as
installed, and nothing is measured.

    python docs/generate.py            write
    python docs/generate.py --check    only say what is out of date
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

import click

import autoconv
import autoconv.signal
from autoconv import errors, options
from autoconv.cache import migrations, reader, schema
from autoconv.cli import cli
from autoconv.device import Device
from autoconv.evidence import Config
from autoconv.implementation import Implementation
from autoconv.impls import BUILTIN, RETIRED
from autoconv.impls.cpu._blas import NATURAL_THREADS
from autoconv.registry import Registry
from autoconv.spec import DTYPES, LAYOUTS, ConvSpec, Op

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = Path("docs/reference")
NOTE = "<!-- Made by docs/generate.py (make docs) from the code; edit that, not this. -->"

# What the feature matrix asks: a plain problem in each operation, then problems with one property each, asked in
# the first operation that the implementation does.
PLAIN = "n2c8 16x16 k8 3x3 p1"
PROBES: dict[str, str] = {
    "fprop": f"fprop {PLAIN}",
    "dgrad": f"dgrad {PLAIN}",
    "wgrad": f"wgrad {PLAIN}",
    "1x1": "fprop n2c8 16x16 k8 1x1",
    "5x5": "fprop n2c8 16x16 k8 5x5 p2",
    "25x25": "fprop n1c1 64x64 k1 25x25 p12",
    "1x7": "fprop n2c8 16x16 k8 1x7 p0,3",
    "stride 2": f"fprop {PLAIN} s2",
    "dilation 2": f"fprop {PLAIN} d2",
    "groups": f"fprop {PLAIN} g2",
    "depthwise": f"fprop {PLAIN} g8",
    "uneven padding": "fprop n2c8 16x16 k8 3x3 p0:1,1:2",
    "corr": f"fprop {PLAIN} corr",
    "nhwc": f"fprop {PLAIN} nhwc",
    "f64": f"fprop {PLAIN} f64",
    "f16": f"fprop {PLAIN} f16",
    "1-D": "fprop n2c8 64 k8 3 p1",
    "3-D": "fprop n1c4 8x8x8 k4 3x3x3 p1",
}
ASKS_ITS_LIBRARY = {"onednn.conv", "cudnn.graph"}  # the library's own list, another on every machine, says what it does
OPERATIONS = [text for name, text in PROBES.items() if name in list(Op)]
CPU = Device("cpu", "any", "avx2", NATURAL_THREADS, NATURAL_THREADS)  # BLAS need not be held to fewer threads
GPU = Device("cuda", "any", "sm_90", 132, 1, 80 << 30)


def pages() -> dict[str, str]:
    """Every generated page: path from the repository's root -> text."""
    made = {
        "api.md": _api(),
        "cache-schema.md": _cache_schema(),
        "cli.md": _cli(),
        "errors.md": _errors(),
        "implementations.md": _implementations(),
        "settings.md": _settings(),
    }
    return {str(REFERENCE / name): text for name, text in made.items()}


def _page(title: str, *parts: str) -> str:
    return "\n\n".join((NOTE, f"# {title}", *(part.strip("\n") for part in parts if part.strip()))) + "\n"


def _table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    columns = list(head)
    lines = [columns, ["---"] * len(columns), *([str(cell).replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _doc(thing: Any) -> str:
    return inspect.cleandoc(thing.__doc__ or "")


def _sentence(thing: Any) -> str:
    """A docstring's first paragraph on one line."""
    return " ".join(_doc(thing).split("\n\n")[0].split())


# Command line ------------------------------------------------------------------------------------


def _cli() -> str:
    # rendered from click's objects, not from its --help text, whose layout differs between its releases
    intro, status = _help(cli).split("Exit status:")
    commands = [f"- [`autoconv {name}`](#autoconv-{name}): {_first_line(command)}" for name, command in _commands()]
    parts = [
        "Everything here is also said by `autoconv --help` and `autoconv COMMAND --help`.",
        intro,
        "\n".join(commands),
        "## Exit status",
        _table(("status", "meaning"), (line.split(maxsplit=1) for line in status.strip().splitlines())),
    ]
    shared = _shared_options()
    for name, command in _commands():
        arguments = [p for p in command.params if isinstance(p, click.Argument)]
        own = [p for p in command.params if isinstance(p, click.Option) and p.name not in shared]
        usage = " ".join([f"autoconv {name} [OPTIONS]", *(_argument(a) for a in arguments)])
        parts += [f"## autoconv {name}", f"```text\n{usage}\n```", _help(command)]
        if own:
            parts.append(_option_table(own))
    parts += ["## Options of every command", _option_table(shared.values())]
    return _page("Command line", *parts)


def _commands() -> list[tuple[str, click.Command]]:
    return list(cli.commands.items())


def _shared_options() -> dict[str | None, click.Option]:
    """Options that every command has."""
    everywhere = set.intersection(*({p.name for p in command.params} for _, command in _commands()))
    _, first = _commands()[0]
    return {p.name: p for p in first.params if isinstance(p, click.Option) and p.name in everywhere}


def _argument(argument: click.Argument) -> str:
    word = (argument.metavar or (argument.name or "").upper()).strip("[].")
    word = word if argument.required else f"[{word}]"
    return f"{word}..." if argument.nargs != 1 else word


def _option_table(given: Iterable[click.Option]) -> str:
    return _table(("option", "meaning"), ((_option(one), one.help or "") for one in given))


def _option(option: click.Option) -> str:
    names = ", ".join(f"`{name}`" for name in option.opts)
    if option.is_flag or option.count:
        return names
    if isinstance(option.type, click.Choice):
        return f"{names} {' or '.join(f'`{choice}`' for choice in option.type.choices)}"
    return f"{names} {option.metavar or 'N'}"


def _help(command: click.Command) -> str:
    """A command's docstring as Markdown: click's `\\b` paragraphs become code or plain text."""
    paragraphs = []
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        if "\b" not in paragraph:
            paragraphs.append(" ".join(paragraph.split()))
            continue
        lines = paragraph.replace("\b", "").strip("\n").splitlines()
        verbatim = "\n".join(line.strip() for line in lines)
        paragraphs.append(verbatim if "Exit status" in paragraph else f"```text\n{verbatim}\n```")
    return "\n\n".join(paragraphs)


def _first_line(command: click.Command) -> str:
    return _help(command).split("\n\n")[0].partition(". ")[0].rstrip(".") + "."


# Implementations ---------------------------------------------------------------------------------


def _implementations() -> str:
    registry = Registry(BUILTIN)
    known = [_as_if_installed(registry.get(name)) for name in BUILTIN]
    matrix = [[_link(one.name), *(_mark(_refusal(one, text)) for text in PROBES.values())] for one in known]
    probes = ((f"`{name}`", f"`{ConvSpec.parse(text)}`") for name, text in PROBES.items())
    parts = [
        "The registry in the order that serves when nothing is known: `autoconv impls` prints it with what is "
        "available on your machine, `autoconv explain SPEC` says who refuses a spec and why.",
        "## What each one does",
        "Asked on small problems that differ from a plain one in one property ([the problems](#the-problems)). "
        "The properties are asked in the first operation it does. A dot is a refusal; its sentence is below. "
        "What a rewrite does, it does through another implementation. "
        "Libraries that an implementation needs are taken as installed; what "
        f"{', '.join(f'`{name}`' for name in BUILTIN if name in ASKS_ITS_LIBRARY) or 'none'} "
        "does beyond its reach, its library decides on your machine.",
        _table(("", *PROBES), matrix),
        *(_section(one) for one in known),
        "## The problems",
        _table(("property", "spec"), probes),
    ]
    if RETIRED:
        parts += ["## Retired", _table(("id", "why"), ((f"`{name}`", why) for name, why in RETIRED.items()))]
    return _page("Implementations", *parts)


def _as_if_installed(one: Implementation) -> Implementation:
    fresh = type(one)()  # the registry's own stays untouched
    fresh.unavailable = lambda: None  # type: ignore[method-assign]
    if one.name in ASKS_ITS_LIBRARY:
        fresh.restrictions = lambda spec, device, config: ()  # type: ignore[method-assign]
        fresh.configs = lambda spec, device: (Config(),)  # type: ignore[method-assign]
    return fresh


def _refusal(one: Implementation, text: str) -> str | None:
    """Why `one` cannot run a problem with any of its configs."""
    spec = ConvSpec.parse(text)
    if text not in OPERATIONS and spec.op not in one.ops:
        spec = replace(spec, op=next(op for op in Op if op in one.ops))
    device = CPU if "cpu" in one.devices else GPU
    reason = one.why_not(spec, device)
    if reason is not None:
        return reason
    reasons = [one.why_not(spec, device, config) for config in one.configs(spec, device)]
    return None if None in reasons else "; ".join(dict.fromkeys(filter(None, reasons)))


def _mark(refusal: str | None) -> str:
    return "yes" if refusal is None else "·"


def _link(name: str) -> str:
    return f"[`{name}`](#{name.replace('.', '')})"


def _section(one: Implementation) -> str:
    reach = (
        f"{', '.join(op for op in Op if op in one.ops)}; rank {_span(one.ranks)}; "
        f"{', '.join(code for code in DTYPES if code in one.dtypes)}; "
        f"{', '.join(layout for layout in LAYOUTS if layout in one.layouts)}"
    )
    rows = [
        ("what", _sentence(type(one))),
        *_labels(one),
        ("reach", reach),
        ("cost", _method(one, "estimate_s")),
        ("memory", _method(one, "workspace_bytes")),
        ("tunables", _method(one, "configs")),
        ("deterministic", _yes(one.deterministic)),
        ("NaN and infinity as in the direct sum", _yes(one.strict_nan)),
        ("tags", ", ".join(f"`{tag}`" for tag in sorted(one.tags)) or "none"),
        ("version", one.version),
        ("file", f"`{type(one).__module__.replace('.', '/')}.py`"),
    ]
    refusals: dict[str, list[str]] = {}
    for name, text in PROBES.items():
        reason = _refusal(one, text)
        if reason is not None:
            refusals.setdefault(reason, []).append(name)
    said = "\n".join(f"- {', '.join(names)}: {reason}" for reason, names in refusals.items())
    return f"## {one.name}\n\n{_table(('', ''), rows)}" + (f"\n\nRefuses\n\n{said}" if said else "")


def _span(ranks: Iterable[int]) -> str:
    found = sorted(ranks)
    whole = found == list(range(found[0], found[-1] + 1))
    return f"{found[0]} to {found[-1]}" if whole and len(found) > 2 else ", ".join(map(str, found))


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"


HOOKS = {"estimate_s": "seconds", "workspace_bytes": "scratch_bytes", "configs": "tunables"}
"""What the generated kernels state in place of an `Implementation`'s method."""


def _method(one: Implementation, name: str) -> str:
    hook = getattr(type(one), HOOKS[name], None)
    own = hook if hook is not None and hook.__doc__ else getattr(type(one), name)
    if own is getattr(Implementation, name):
        return {"workspace_bytes": "No scratch.", "configs": "None."}[name]
    return _sentence(own)


def _labels(one: Implementation) -> list[tuple[str, str]]:
    """The Source, Wins, Loses and Error lines at the head of an implementation's file."""
    text = _doc(sys.modules[type(one).__module__])
    found: dict[str, str] = {}
    parts = re.split(r"\b(Source|Wins|Loses|Error):", text.split("\n\n", 1)[-1])
    for label, said in zip(parts[1::2], parts[2::2], strict=True):
        found[label.lower()] = " ".join(said.split("\n\n")[0].split())
    return list(found.items())


# Public names ------------------------------------------------------------------------------------


def _api() -> str:
    public = {name: getattr(autoconv, name) for name in autoconv.__all__}
    functions = {name: thing for name, thing in public.items() if inspect.isfunction(thing)}
    failures = {name for name, thing in public.items() if inspect.isclass(thing) and issubclass(thing, Exception)}
    classes = {name: thing for name, thing in public.items() if name not in functions and name not in failures}
    parts = [
        "Everything that `autoconv` exports. Errors have [a page of their own](errors.md), so have the "
        "[settings](settings.md) and the [text form of a spec](spec-text.md).",
        _contents({**functions, **classes}),
        *(f"## {name}\n\n{_signature(name, thing)}\n\n{_prose(_doc(thing))}" for name, thing in functions.items()),
        *(_class(name, thing) for name, thing in classes.items()),
        *_signal(),
    ]
    return _page("Python interface", *parts)


def _signal() -> list[str]:
    """The functions and the class of `autoconv.signal`, under their full names."""
    public = {f"autoconv.signal.{name}": getattr(autoconv.signal, name) for name in autoconv.signal.__all__}
    entries = [
        _class(name, thing)
        if inspect.isclass(thing)
        else f"## {name}\n\n{_signature(name, thing)}\n\n{_prose(_doc(thing))}"
        for name, thing in public.items()
    ]
    return ["## autoconv.signal", _prose(_doc(autoconv.signal)), *entries]


def _contents(things: Mapping[str, Any]) -> str:
    """A list of links; of headings that differ only in case the second gets a number."""
    lines, seen = [], set()
    for name, thing in things.items():
        anchor = name.lower()
        lines.append(f"- [`{name}`](#{anchor}{'-1' * (anchor in seen)}): {_sentence(thing)}")
        seen.add(anchor)
    return "\n".join(lines)


def _class(name: str, cls: type) -> str:
    text = [f"## {name}", _prose(_doc(cls))]
    if issubclass(cls, Enum):
        text.append(", ".join(f"`{member.name}` (`{member.value}`)" for member in cls))
    elif is_dataclass(cls) and name != "Settings":
        text.append(_table(("field", "type"), ((f"`{f.name}`", f"`{f.type}`") for f in fields(cls))))
    for key, member in vars(cls).items():
        if key.startswith("_") and key != "__call__":
            continue
        if isinstance(member, property):
            text.append(f"**`{name}.{key}`**: {_sentence(member.fget)}")
        elif isinstance(member, classmethod | staticmethod):
            text.append(f"{_signature(f'{name}.{key}', member.__func__)}\n\n{_prose(_doc(member))}")
        elif inspect.isfunction(member):
            text.append(f"{_signature(f'{name}.{key}', member)}\n\n{_prose(_doc(member))}")
    return "\n\n".join(text)


def _signature(name: str, function: Callable[..., Any]) -> str:
    """A Python signature, one parameter per line when it is long."""
    words: list[str] = []
    starred = False
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name in ("self", "cls"):
            continue
        if parameter.kind is parameter.VAR_POSITIONAL or (parameter.kind is parameter.KEYWORD_ONLY and not starred):
            words.append("*" if parameter.kind is parameter.KEYWORD_ONLY else f"*{parameter.name}")
            starred = True
            if words[-1] != "*":
                continue
        stars = "**" if parameter.kind is parameter.VAR_KEYWORD else ""
        annotation = "" if parameter.annotation is parameter.empty else f": {parameter.annotation}"
        default = "" if parameter.default is parameter.empty else f" = {_default(parameter.default)}"
        words.append(f"{stars}{parameter.name}{annotation}{default}")
    returns = inspect.signature(function).return_annotation
    arrow = "" if returns is inspect.Signature.empty else f" -> {returns}"
    line = f"{name}({', '.join(words)}){arrow}"
    if len(line) > 100:
        line = f"{name}(\n" + "".join(f"    {word},\n" for word in words) + f"){arrow}"
    return f"```text\n{line}\n```"


def _default(value: Any) -> str:
    """A default as code; an object that is not plain data (the environment, say) is no text to print."""
    return repr(value) if value is None or isinstance(value, str | int | float | tuple) else "..."


def _prose(doc: str) -> str:
    """A docstring as Markdown: literal blocks and examples fenced, sections as bold words."""
    paragraphs = []
    for paragraph in re.split(r"\n\n+", doc):
        lines = paragraph.splitlines()
        if len(lines) > 1 and set(lines[1]) == {"-"}:
            paragraphs += [f"**{lines[0]}**", f"```text\n{chr(10).join(lines[2:])}\n```"]
        elif lines and (lines[0].startswith(("    ", ">>>"))):
            paragraphs.append(f"```text\n{inspect.cleandoc(paragraph)}\n```")
        elif paragraph.strip() != "::":
            paragraphs.append(paragraph.removesuffix("::"))
    return "\n\n".join(paragraphs)


# Settings ----------------------------------------------------------------------------------------


def _settings() -> str:
    meanings = _meanings(options.Settings)
    rows = []
    for field in fields(options.Settings):
        default = "" if field.default is MISSING else repr(field.default)
        rows.append((f"`{field.name}`", f"`AUTOCONV_{field.name.upper()}`", f"`{default}`", meanings[field.name]))
    errors_by_dtype = ((f"`{code}`", f"`{limit:g}`") for code, limit in options.DEFAULT_REL_ERROR.items())
    parts = [
        "One frozen dataclass, `autoconv.Settings`. Each field is a keyword of `autoconv.settings(...)`, which is a "
        "context manager and a decorator, and of `autoconv.settings.set_default(...)`, which holds for the process; "
        "and it is read from the environment once, when the first setting is needed. "
        "`autoconv.settings.current()` gives what is in force.",
        _table(("field", "environment", "default", "meaning"), rows),
        "In the environment, lists are separated by commas or spaces, and a flag is `1`, `true`, `yes`, `on` "
        "or `0`, `false`, `no`, `off`. A value without meaning raises `InvalidOption` naming the field or variable.",
        "## Words of `prefer`, `require` and `exclude`",
        "A word is an id (`numpy.fft`), the part before the dot (`numpy`), or a tag (`gemm`). A rewrite is matched by "
        "its own id and its child's. An unknown word raises `RegistryError` with the nearest known one.",
        "## Largest error when `max_rel_error` is not set",
        _table(("dtype", "max abs(y - reference) / max abs(reference)"), errors_by_dtype),
        *_other_variables(),
    ]
    return _page("Settings", *parts)


def _meanings(cls: type) -> dict[str, str]:
    """`name, name: what it means.` entries of a docstring, by name."""
    names = "|".join(field.name for field in fields(cls))
    text = " ".join(_doc(cls).split())
    parts = re.split(rf"\b((?:{names})(?:, (?:{names}))*): ", text)
    found: dict[str, str] = {}
    for label, said in zip(parts[1::2], parts[2::2], strict=True):
        found |= dict.fromkeys(label.split(", "), said.strip())
    return found


OTHER_VARIABLES: Mapping[str, tuple[str, str]] = {  # variable -> (which ids read it, what it is)
    "AUTOCONV_DNNL": ("onednn.", "Path of the oneDNN library (`libdnnl.so.3`) to load in place of the one installed."),
    "AUTOCONV_NATIVE": ("native.", "Directory of compiled kernels; by default `native` in the user's cache directory."),
    "CC": ("native.", "The C compiler to try first; then `cc`, `gcc`, `clang`."),
}


def _other_variables() -> list[str]:
    rows = [
        (f"`{variable}`", meaning)
        for variable, (prefix, meaning) in OTHER_VARIABLES.items()
        if any(name.startswith(prefix) for name in BUILTIN)
    ]
    return ["## Other variables", _table(("variable", "meaning"), rows)] if rows else []


# Cache -------------------------------------------------------------------------------------------


def _cache_schema() -> str:
    by_table = re.split(r"^`(\w+)`: ", _doc(schema), flags=re.MULTILINE)
    told = dict(zip(by_table[1::2], by_table[2::2], strict=True))
    parts = [
        "The database is SQLite in the user's cache directory unless `AUTOCONV_CACHE` says otherwise "
        "([where it is](../how-to/where-the-cache-is.md)). Every measurement is a row; rows are never changed.",
    ]
    for table in schema.metadata.sorted_tables:
        meanings = dict(re.findall(r"^ *\d+\. (\w+) +(.*)$", told[table.name], flags=re.MULTILINE))
        kind = (
            (f"`{c.name}`", str(c.type), "key" if c.primary_key else ("yes" if c.nullable else "no"), meanings[c.name])
            for c in table.columns
        )
        indexes = "".join(
            f"\n\nIndex `{index.name}` on {', '.join(f'`{c.name}`' for c in index.columns)}."
            for index in sorted(table.indexes, key=lambda index: str(index.name))
        )
        parts += [
            f"## {table.name}",
            told[table.name].split("\n\n")[0].capitalize() + ".",
            _table(("column", "type", "may be NULL", "meaning"), kind) + indexes,
        ]
    steps = (step.__doc__ or "" for step in migrations.STEPS.values())
    parts += [
        "## Steps",
        "The schema grows by numbered steps, each taken once and in order:",
        _table(("step", "what"), (map(str.strip, step.split(":", 1)) for step in steps)),
        "## What a call reads",
        f"The one question on the path of a call, by the `sqlite3` module on a read-only connection:\n\n"
        f"```sql\n{reader.SELECT}\n```",
    ]
    return _page("The cache's schema", *parts)


# Errors ------------------------------------------------------------------------------------------


def _errors() -> str:
    tree = re.split(r"\n\n+", _doc(errors))
    rows = []
    for name in errors.__all__:
        cls = getattr(errors, name)
        bases = ", ".join(f"`{base.__name__}`" for base in cls.__bases__)
        rows.append((f"`{name}`", bases, _sentence(cls)))
    parts = [
        tree[0],
        f"```text\n{inspect.cleandoc(tree[2])}\n```",
        *tree[3:],
        _table(("error", "is a", "when"), rows),
        "A refusal is not an error: `why_not` returns a sentence, `autoconv explain` prints all of them, and "
        "`NoImplementation.refusals` maps each id to its reason. A cache that cannot be used is a `CacheWarning`, "
        "once; calls go on. On the command line an error is one message and an [exit status](cli.md#exit-status).",
    ]
    return _page("Errors", *parts)


def main(check: bool) -> int:
    """Write what differs from the files; with `check` only name it. The exit status."""
    stale = 0
    for path, text in pages().items():
        file = ROOT / path
        if file.exists() and file.read_text(encoding="utf-8") == text:
            continue
        stale += 1
        print(f"{'out of date' if check else 'written'}: {path}")
        if not check:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
