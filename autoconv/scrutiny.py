"""A row from outside, checked field by field: types, ranges, and what the registry knows of its choice.

Raises `ValueError` or `TypeError` with a sentence for anything else than a row that this autoconv could have
written. Nothing here runs, compiles or unpickles anything.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from typing import Any

from autoconv.cache.records import ADDED, COLUMNS, STATUSES, decode
from autoconv.device import Device
from autoconv.evidence import USABLE, Measurement
from autoconv.impls import RETIRED
from autoconv.registry import MAX_DEPTH, Registry
from autoconv.spec import ConvSpec

__all__ = ["MAX_LINE", "fields", "integer", "measurement", "plain_object"]

MAX_LINE = 1 << 20  # characters; a row of 2,000 samples has 50,000
MAX_TEXT = 10_000  # characters of a reason: a compiler's message is cut at less
MAX_KEY = 255  # as the columns of the database
MAX_ITEMS = 64  # of an environment, of tags, of a config
MAX_SAMPLES = 100_000
MAX_SECONDS = 1e6
MAX_TUNABLE = 2**31
TEXTS = {"spec": MAX_KEY, "device": MAX_KEY, "race": MAX_KEY, "host": MAX_KEY, "reason": MAX_TEXT}

_WORD = re.compile(r"[A-Za-z0-9_.+:-]{0,64}")  # ids, tags, tunables: nothing that could mean anything in C or SQL
_FINGERPRINT = re.compile(r"(\w{1,16}) (.{1,160}) / ([\w.+-]{1,32}) / ([1-9]\d{0,4}) cores / ([1-9]\d{0,4}) threads")
_GPU = re.compile(r"cuda (.{1,160}) / (sm_\d{2,3}) / ([1-9]\d{0,4}) multiprocessors / (\d{1,5}) GiB")


def plain_object(line: str) -> dict[str, Any]:
    """The JSON object in `line`, without names given twice or numbers that JSON does not have."""
    if len(line) > MAX_LINE:
        raise ValueError(f"longer than {MAX_LINE} characters")
    try:
        value = json.loads(line, object_pairs_hook=_without_repeats, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON: {error.msg} at column {error.colno}") from None
    return fields(value)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name appears twice in one object")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def fields(value: Any, names: Iterable[str] | None = None, optional: Iterable[str] = ()) -> dict[str, Any]:
    """`value`, an object with the fields `names` and perhaps some `optional` ones."""
    if not isinstance(value, dict):
        raise TypeError(f"expected an object, got {type(value).__name__}")
    if names is not None:
        wanted = set(names)
        lacking, odd = sorted(wanted - value.keys()), sorted(value.keys() - wanted - set(optional))
        if lacking or odd:
            raise ValueError(f"lacks {lacking[0]!r}" if lacking else f"has an unknown field {odd[0]!r}")
    return value


def measurement(value: dict[str, Any], registry: Registry, newest: float) -> tuple[Measurement, str]:
    """The row that `value` says, and the first id in it that the registry does not know, or ''.

    `newest` is the latest time, in seconds since 1970, at which it may have been measured.
    """
    fields(value, [name for name in COLUMNS if name not in ADDED], ADDED)
    value = {**dict.fromkeys(ADDED), **value}
    for name, longest in TEXTS.items():
        _text(value[name], name, longest)
    spec = ConvSpec.parse(value["spec"])
    if str(spec) != value["spec"]:
        raise ValueError(f"spec is not in its canonical form, which is {str(spec)!r}")
    device = _device(value["device"])
    if not isinstance(value["status"], str) or value["status"] not in STATUSES:
        raise ValueError(f"status must be one of {', '.join(sorted(STATUSES))}, got {value['status']!r}")
    may_win = value["status"] in USABLE
    unknown = _choice(value["choice"], registry, spec if may_win else None, device)
    for name, text in fields(value["environment"]).items():
        _text(name, "a name in environment", MAX_KEY)
        _text(text, f"environment {name!r}", MAX_TEXT)
    tags = [_word(tag, "tags") for tag in _items(value["tags"], "tags", MAX_ITEMS)]
    samples = [
        _number(sample, "samples", 0.0, MAX_SECONDS) for sample in _items(value["samples"], "samples", MAX_SAMPLES)
    ]
    if len(value["environment"]) > MAX_ITEMS:
        raise ValueError(f"environment has more than {MAX_ITEMS} entries")
    for name, least, most in (
        ("median_s", 0.0, MAX_SECONDS),
        ("spread", 0.0, math.inf),
        ("enqueue_s", 0.0, MAX_SECONDS),
    ):
        if value[name] is not None:
            _number(value[name], name, least, most)
    if value["error"] is not None and value["error"] != "inf":
        _number(value["error"], "error", 0.0, math.inf)
    for name in ("deterministic", "strict_nan"):
        if not isinstance(value[name], bool):
            raise TypeError(f"{name} must be true or false, got {value[name]!r}")
    _number(value["measured_at"], "measured_at", 0.0, newest)
    stored = {
        **value,
        "choice": json.dumps(value["choice"]),
        "environment": json.dumps(value["environment"]),
        "samples": json.dumps(samples),
        "tags": json.dumps(tags),
        "error": math.inf if value["error"] == "inf" else value["error"],
        "workspace_bytes": integer(value["workspace_bytes"], "workspace_bytes", 0, 2**63 - 1),
    }
    return decode([stored[name] for name in COLUMNS]), unknown


def _device(text: str) -> Device:
    if gpu := _GPU.fullmatch(text):
        return Device("cuda", gpu[1], gpu[2], int(gpu[3]), 1, int(gpu[4]) << 30)
    match = _FINGERPRINT.fullmatch(text)
    if match is None:
        raise ValueError(f"device is no fingerprint: {text[:80]!r}")
    return Device(match[1], match[2], match[3], int(match[4]), int(match[5]))


# Choices -----------------------------------------------------------------------------------------


def _choice(value: Any, registry: Registry, spec: ConvSpec | None, device: Device, depth: int = 0) -> str:
    """Check a choice and its children; gives the first id that the registry does not know, or ''.

    For a row that may win (`spec` is given) an implementation of the same version must be able to say what the
    row says of it: that it does this operation, and has tunables of these names and types.
    """
    fields(value, ("id", "version", "config"), ("child",))
    if depth > MAX_DEPTH:
        raise ValueError("choice nests too deeply")
    name = _word(value["id"], "choice id")
    version = integer(value["version"], "choice version", 0, MAX_TUNABLE)
    config = fields(value["config"])
    if len(config) > MAX_ITEMS:
        raise ValueError(f"config has more than {MAX_ITEMS} entries")
    for key, tunable in config.items():
        _word(key, "a name in config")
        if isinstance(tunable, str):
            _word(tunable, f"config {key!r}")
        elif not isinstance(tunable, bool):
            integer(tunable, f"config {key!r}", -MAX_TUNABLE, MAX_TUNABLE)
    known = name in registry.ids()
    unknown = "" if known or name in RETIRED else name
    lower = None
    if known and spec is not None and registry.get(name).version == version:
        one = registry.get(name)
        reach = (spec.op in one.ops, spec.rank in one.ranks, spec.dtype in one.dtypes, device.kind in one.devices)
        if not all(reach):
            raise ValueError(f"{name} does not compute {spec}")
        try:
            offered = {_kinds(offer) for offer in one.configs(spec, device)}
        except Exception as error:  # configs of a problem that it refuses need not make sense
            raise ValueError(f"{name} does not compute {spec}: {type(error).__name__}") from error
        if offered and _kinds(config) not in offered:
            raise ValueError(f"{name} has no config {config!r}")
        lower = one.child_spec(spec)
        if "child" in value and lower is None:
            raise ValueError(f"{name} has no child")
    below = _choice(value["child"], registry, lower, device, depth + 1) if "child" in value else ""
    return unknown or below


def _kinds(config: Any) -> frozenset[tuple[str, type]]:
    return frozenset((key, type(value)) for key, value in config.items())


# Values ------------------------------------------------------------------------------------------


def _text(value: Any, name: str, longest: int) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a text, got {value!r}")
    if len(value) > longest or "\0" in value:
        raise ValueError(f"{name} is longer than {longest} characters, or holds a NUL")
    return value


def _word(value: Any, name: str) -> str:
    if not isinstance(value, str) or not _WORD.fullmatch(value):
        raise ValueError(f"{name} must be a word of letters, digits and _.+:-, got {value!r}")
    return value


def integer(value: Any, name: str, least: int, most: int) -> int:
    """`value`, an integer from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"{name} must be an integer from {least} to {most}, got {value!r}")
    return value


def _number(value: Any, name: str, least: float, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise ValueError(f"{name} must be a number from {least:g} to {most:g}, got {value!r}")
    return float(value)


def _items(value: Any, name: str, most: int) -> list[Any]:
    if not isinstance(value, list) or len(value) > most:
        raise ValueError(f"{name} must be a list of at most {most}")
    return value
