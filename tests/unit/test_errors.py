"""The tree of errors is what the module's docstring draws."""

from __future__ import annotations

import re

from autoconv import errors
from autoconv.errors import NoImplementation

BUILTINS = {"ValueError": ValueError, "TypeError": TypeError, "ImportError": ImportError}


def test_tree_matches_its_drawing() -> None:
    assert errors.__doc__
    drawn: dict[str, tuple[str, str | None]] = {}
    path: dict[int, str] = {}
    for line in errors.__doc__.splitlines():
        found = re.match(r"^([ │├└─]*)(\w+)(?: \((\w+)\))?(?:  .*)?$", line)
        if not found or not isinstance(getattr(errors, found[2], None), type):
            continue
        depth = len(found[1])
        parent = max((d for d in path if d < depth), default=None)
        path = {d: name for d, name in path.items() if d < depth} | {depth: found[2]}
        drawn[found[2]] = ("" if parent is None else path[parent], found[3])
    assert sorted(drawn) == sorted(errors.__all__)
    for name, (parent, builtin) in drawn.items():
        error = getattr(errors, name)
        bases = [base.__name__ for base in error.__bases__]
        assert bases[0] == (parent or "Exception"), name
        if builtin:
            assert issubclass(error, BUILTINS[builtin]), name


def test_everything_is_an_autoconv_error() -> None:
    assert all(issubclass(getattr(errors, name), errors.AutoconvError) for name in errors.__all__)


def test_no_implementation_lists_its_refusals() -> None:
    error = NoImplementation("nothing can run it", {"a.b": "needs stride 1, got 2", "c.d": "does rank 2, got 3"})
    assert error.refusals == {"a.b": "needs stride 1, got 2", "c.d": "does rank 2, got 3"}
    lines = str(error).splitlines()
    assert lines[0] == "nothing can run it"
    assert [line.split(maxsplit=1) for line in lines[1:]] == [list(item) for item in error.refusals.items()]
    assert NoImplementation("nothing").refusals == {}
