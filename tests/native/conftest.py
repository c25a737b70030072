"""Compilers of every kind, and a process that has not met one yet."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from autoconv.impls.native import _call, _compile, _compiler

SetCompiler = Callable[[str], Path]


def forget() -> None:
    """What a process remembers of compilers and objects; what it has loaded stays loaded."""
    _compiler.find_compiler.cache_clear()
    _compile._failed.clear()
    _call._found.clear()


@pytest.fixture
def objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An object directory of the test's own, not made yet, and nothing remembered of any other."""
    folder = tmp_path / "objects"
    monkeypatch.setenv("AUTOCONV_NATIVE", str(folder))
    forget()
    yield folder
    forget()


@pytest.fixture(scope="session")
def _tried_out() -> _compiler.Compiler | str:
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("CC", raising=False)
        return _compiler.find_compiler.__wrapped__()


@pytest.fixture
def gcc(_tried_out: _compiler.Compiler | str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The path of a compiler that works; as itself, not through a script, it is not tried out again."""
    if isinstance(_tried_out, str):
        pytest.skip(_tried_out)
    known, recall = _tried_out, _compiler._recall
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(_compiler, "_recall", lambda command: known if command == known.command else recall(command))
    return known.command[0]


@pytest.fixture
def compiler(objects: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SetCompiler:
    """Makes a shell script the compiler of this process: `compiler("exit 1")`."""

    def set_compiler(script: str) -> Path:
        path = tmp_path / "somecc"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o700)
        monkeypatch.setenv("CC", str(path))
        forget()
        return path

    return set_compiler


class Log:
    """What a compiler was asked to do: one line for every start."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def starts(self) -> list[str]:
        return self.path.read_text().splitlines() if self.path.exists() else []

    @property
    def kernels(self) -> list[str]:
        """The starts that made an object to keep, not those that tried the compiler out."""
        return [line for line in self.starts if os.environ["AUTOCONV_NATIVE"] in line]


@pytest.fixture
def counted(compiler: SetCompiler, gcc: str, tmp_path: Path) -> Log:
    """A compiler that works and writes down every start."""
    log = tmp_path / "starts"
    compiler(f'echo "$*" >> {log}; exec {gcc} "$@"')
    return Log(log)
