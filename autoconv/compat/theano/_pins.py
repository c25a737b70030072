"""What the named functions share: pinning an algorithm, and checking operands in their own words."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from autoconv import calling, options
from autoconv.arrays import Array
from autoconv.errors import InvalidSpec, InvalidType
from autoconv.places import home_of, place_of
from autoconv.registry import default_registry

__all__ = ["check_shapes", "operand", "per_axis", "pinned", "say"]


@contextmanager
def pinned(caller: str, *names: str) -> Iterator[None]:
    """Settings under which nothing but the implementations `names` runs; said once per settings in verbose mode.

    An untuned call runs nothing that has to be compiled. Where the algorithm is generated C alone, to call it by name
    is to ask for it: then it is tuned, even if the policy is "heuristic".
    """
    changes: dict[str, Any] = {"require": names}
    if options.current_scope().settings.on_miss == "heuristic" and all(
        default_registry().get(name).compiled for name in names
    ):
        changes["on_miss"] = "tune"
    with options.settings(**changes) as values:
        if values.verbose:
            said = options.current_scope().calls
            if not said.get(("pinned", caller)):
                said["pinned", caller] = True
                say(f"{caller} is {' or '.join(names)} and nothing else")
        yield


def say(text: str) -> None:
    """A line of verbose mode."""
    print(f"autoconv: {text}", file=sys.stderr, flush=True)


def operand(value: Any, name: str, axes: str) -> Array:
    """`value` as an array with one dimension per word of `axes`; raises `InvalidType` otherwise."""
    array = place_of(home_of(value)).array(value, name)
    count = len(axes.split(", "))
    if array.ndim != count:
        raise InvalidType(f"{name} needs {count} dimensions ({axes}), got {array.ndim}: shape {array.shape}")
    return array


def check_shapes(input: Any, filters: Any, image_shape: Any, filter_shape: Any) -> None:
    """Raise unless the declared shapes, where they are, agree with the arrays."""
    if image_shape is not None:
        calling.check_declared("image_shape", image_shape, "input", input)
    if filter_shape is not None:
        calling.check_declared("filter_shape", filter_shape, "filters", filters)


def per_axis(value: Any, name: str, count: int, least: int = 1) -> tuple[int, ...]:
    """`count` integers of at least `least`, from as many or from one for all; raises `InvalidSpec` otherwise."""
    entries = tuple(value) if hasattr(value, "__iter__") else (value,) * count
    if len(entries) != count or any(int(entry) != entry or entry < least for entry in entries):
        wanted = f"{count} integers" if count > 1 else "an integer"
        raise InvalidSpec(f"{name} must be {wanted} of {least} or more, got {value!r}")
    return tuple(map(int, entries))
