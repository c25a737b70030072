"""Adding an implementation: the page quotes one that was really added, and the suite catches it when broken."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

from autoconv import testing
from autoconv.implementation import Implementation
from autoconv.impls import BUILTIN

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/how-to/add-an-implementation.md"
ID = "numpy.kn2row"
FILE = ROOT / "autoconv/impls/cpu/kn2row.py"
TABLE = ROOT / "autoconv/impls/__init__.py"

CASES = {name: testing.CASES[name] for name in ("plain", "dilated_strided")}
LARGE = {"large": "fprop n1c16 48x48 k16 3x3 p1"}  # scratch beyond what the suite lets pass as NumPy's own


class Fault(NamedTuple):
    """One change to the file, the check that must notice, and the cases it is noticed on."""

    old: str
    new: str
    check: str
    cases: Mapping[str, str] = CASES


ADD = "    target += product.reshape(target.shape)\n\n\ndef {}"
BROKEN = {
    "the result keeps rubbish": Fault("        out[...] = 0\n", "", "values"),
    "a tap is subtracted": Fault(ADD.format("_dgrad"), ADD.format("_dgrad").replace("+=", "-="), "values"),
    "dgrad keeps the last tap": Fault(ADD.format("_wgrad"), ADD.format("_wgrad").replace("+=", "[...] ="), "values"),
    "wgrad keeps the last image": Fault("    dw[tap] += product", "    dw[tap] = product", "values"),
    "only the first image is done": Fault("range(self._spec.batch)", "range(1)", "values"),
    "groups are taken for one": Fault(
        "spec.groups == 1", "spec.groups >= 1", "values", {"grouped": testing.CASES["grouped"]}
    ),
    "scratch is understated": Fault(
        "-(-prod(shape) * spec.itemsize // 64) * 64", "prod(shape) // 64", "workspace", LARGE
    ),
    "its estimate is nothing": Fault(
        "return product + moved / BYTES_PER_S + calls * TAP_S", "return 0.0", "declarations"
    ),
    "it writes on its operand": Fault(
        "    np.copyto(flat.reshape(view.shape), view)\n",
        "    np.copyto(flat.reshape(view.shape), view)\n    view += 0\n",
        "values",
    ),
}


def source() -> str:
    return FILE.read_text(encoding="utf-8")


def load(text: str) -> Implementation:
    """The implementation in a copy of the file."""
    module = ModuleType("mutated")
    module.__file__ = "mutated"
    sys.modules["mutated"] = module  # typing looks the module up
    try:
        exec(compile(text, "mutated", "exec"), module.__dict__)
    finally:
        del sys.modules["mutated"]
    made: Implementation = module.Kn2row()
    return made


def quoted() -> list[tuple[str, str]]:
    text = PAGE.read_text(encoding="utf-8")
    return re.findall(r"^```python file=(\S+)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def test_the_page_quotes_the_files() -> None:
    assert {file for file, _ in quoted()} == {str(FILE.relative_to(ROOT)), str(TABLE.relative_to(ROOT))}
    for file, text in quoted():
        assert text in (ROOT / file).read_text(encoding="utf-8"), f"{file} has changed: quote it anew\n{text}"


def test_it_was_added_as_one_file_and_one_line() -> None:
    mentions = [line for line in TABLE.read_text(encoding="utf-8").splitlines() if "kn2row" in line]
    assert mentions == [f'    "{ID}": "{BUILTIN[ID]}",']
    package = ROOT / "autoconv"
    users = [f for f in package.rglob("*.py") if f not in (FILE, TABLE) and "kn2row" in f.read_text(encoding="utf-8")]
    assert not users, "code elsewhere knows of it"


def test_it_has_no_test_of_its_own() -> None:
    tests = (ROOT / "tests").rglob("*.py")
    assert [f.name for f in tests if "kn2row" in f.read_text(encoding="utf-8").lower()] == [Path(__file__).name]


def test_the_suite_passes_an_unbroken_copy() -> None:
    copy = load(source())
    assert copy.name == ID
    refusals = testing.check_implementation(copy, {**CASES, **LARGE, "grouped": testing.CASES["grouped"]})
    assert set(refusals.values()) == {"does not do groups, got 2", "does nchw or nhwc, got chwn"}


@pytest.mark.parametrize("name", BROKEN)
def test_the_suite_catches_a_broken_copy(name: str) -> None:
    fault = BROKEN[name]
    assert source().count(fault.old) == 1, f"{FILE.name} has changed: choose another line"
    broken = load(source().replace(fault.old, fault.new))
    with pytest.raises(AssertionError, match=f"{fault.check}: |raises "):
        testing.check_implementation(broken, fault.cases, checks=(fault.check,))
