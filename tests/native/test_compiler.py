"""A compiler that is missing, broken, slow or wrong is a reason, never a crash."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

import autoconv
from autoconv import ConvSpec
from autoconv.device import cpu
from autoconv.impls.native import _compile, _compiler
from autoconv.impls.native.direct import Direct
from autoconv.registry import default_registry
from tests.native.conftest import Log, SetCompiler, forget

SPEC = ConvSpec.parse("fprop n1c1 9x9 k1 3x3")
KERNEL = "void autoconv_run(const float *a, const float *b, float *out, void *scratch) { *out = *a + *b; }\n"


def reason() -> str:
    """What `native.*` says on this machine; every family the same, and nothing raises."""
    families = [one for one in default_registry() if one.name.startswith("native.")]
    reasons = {one.unavailable() for one in families}
    assert len(reasons) == 1
    said = reasons.pop()
    assert said is not None
    assert "\n" not in said
    assert Direct().why_not(SPEC, cpu()) == said
    assert Direct().environment(Direct().configs(SPEC, cpu())[0]) == {"cc": said}
    return said


def everything_else_works() -> None:
    x, w = np.ones((1, 1, 9, 9), "f"), np.ones((1, 1, 3, 3), "f")
    with autoconv.settings(on_miss="heuristic"):
        np.testing.assert_allclose(autoconv.conv2d(x, w), np.full((1, 1, 7, 7), 9, "f"), rtol=1e-5)  # whoever wins
        assert not autoconv.plan(SPEC).implementation.startswith("native.")


def test_no_compiler_on_the_path(objects: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    assert reason() == "needs a C compiler: cc is not on the path; gcc is not on the path; clang is not on the path"
    everything_else_works()
    with pytest.raises(_compile.CompileError, match="needs a C compiler"):
        _compile.build(KERNEL, openmp=False)


@pytest.mark.parametrize("name", ["no-such-cc", "/nowhere/cc", "/dev/null", "."])
def test_cc_names_nothing(name: str, objects: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", name)
    assert reason() == f"needs a C compiler: {name} is not on the path"


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("exit 1", "failed with status 1"),
        ("echo 'fatal: no such thing' >&2; exit 4", "failed with status 4: fatal: no such thing"),
        ("kill -9 $$", "failed with status -9"),
        ("cat > /dev/null", "wrote no object"),
        ("exit 0", "wrote no object"),
        ("for last; do :; done; head -c 20000 /dev/urandom", "wrote no object"),
        ("while [ $# -gt 1 ]; do [ $1 = -o ] && echo rubbish > $2; shift; done", "objects that do not load"),
        ("while [ $# -gt 1 ]; do [ $1 = -o ] && : > $2; shift; done", "wrote no object"),
    ],
)
def test_broken_compiler(script: str, said: str, compiler: SetCompiler) -> None:
    path = compiler(script)
    assert str(path) in reason()
    assert said in reason()
    everything_else_works()


def test_not_a_program(compiler: SetCompiler) -> None:
    path = compiler("")
    path.write_bytes(b"\x7fELF and then nothing of the kind")
    assert "cannot be started" in reason()


def test_wrong_code(compiler: SetCompiler, gcc: str) -> None:
    compiler(f'sed "s/x + 1/x + 7/" | {gcc} "$@"')
    assert "1 + 1 is 8" in reason()


@pytest.mark.parametrize("size", [20, 64, 4096, 9000])
def test_object_cut_short(size: int, compiler: SetCompiler, gcc: str, tmp_path: Path) -> None:
    """The loader would die of it: it believes the headers."""
    whole = tmp_path / "whole.so"
    copy = f"while [ $# -gt 1 ]; do [ $1 = -o ] && head -c {size} {whole} > $2; shift; done"
    compiler(f"[ $1 = --version ] && exit; {gcc} -shared -fPIC -x c - -o {whole}; {copy}")
    assert "wrote an object that ends early" in reason()


def test_compiler_that_hangs(compiler: SetCompiler, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_compiler, "PROBE_TIMEOUT_S", 0.5)
    compiler(f"sleep 600 & echo $! > {tmp_path}/child; wait")
    assert reason().endswith("somecc did not finish within 0.5 s")
    _is_gone(int((tmp_path / "child").read_text()))
    everything_else_works()


def test_compiler_that_hangs_over_a_kernel(
    compiler: SetCompiler, gcc: str, objects: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(_compiler, "TIMEOUT_S", 0.5)
    compiler(f'case "$*" in *{objects}*) sleep 600 & echo $! > {tmp_path}/child; wait;; esac; exec {gcc} "$@"')
    for _ in range(2):
        with pytest.raises(_compile.CompileError, match="did not finish within"):
            _compile.build(KERNEL, openmp=False)
    _is_gone(int((tmp_path / "child").read_text()))
    assert not list(objects.glob("*.so"))
    assert not list(objects.glob(".*"))


def _is_gone(pid: int) -> None:
    """The compiler's own children end with it."""
    for _ in range(200):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return
        if state == "Z":
            return
        time.sleep(0.05)
    os.kill(pid, 9)
    pytest.fail("a child of the compiler runs on")


def test_a_kernel_it_cannot_compile_is_tried_once(counted: Log) -> None:
    for _ in range(2):
        with pytest.raises(_compile.CompileError, match=r"failed with status 1: .*error"):
            _compile.build("void nonsense( {", openmp=False)
    assert len(counted.kernels) == 1


def test_cc_may_have_words(objects: Path, tmp_path: Path, gcc: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in CC="ccache gcc"."""
    launcher = tmp_path / "launcher"
    launcher.write_text('#!/bin/sh\nexec "$@"\n')
    launcher.chmod(0o700)
    monkeypatch.setenv("CC", f"{launcher} {gcc}")
    forget()
    assert Direct().unavailable() is None
    assert _compile.build(KERNEL, openmp=False).exists()


def test_no_temporary_directory(counted: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryDirectory", full)
    assert "No space left on device" in reason()


def test_without_openmp_one_thread_serves(compiler: SetCompiler, gcc: str) -> None:
    compiler(f'case "$*" in *-fopenmp*) exit 1;; esac; exec {gcc} "$@"')
    big = ConvSpec.parse("fprop n1c1 300x300 k1 7x7")
    device = cpu(2)
    configs = Direct().configs(big, device)
    assert {config["threads"] for config in configs} == {1}
    two = type(configs[0])({**configs[0], "threads": 2})
    assert "needs OpenMP for 2 threads" in str(Direct().why_not(big, device, two))


def test_without_native_tuning_it_still_compiles(compiler: SetCompiler, gcc: str) -> None:
    compiler(f'case "$*" in *=native*) exit 1;; esac; exec {gcc} "$@"')
    found = _compiler.find_compiler()
    assert isinstance(found, _compiler.Compiler)
    assert found.tuning == ()
    assert _compile.build(KERNEL, openmp=False).exists()


# What was found out is kept ----------------------------------------------------------------------


def test_a_compiler_is_tried_out_once_per_machine(counted: Log) -> None:
    first = _compiler.find_compiler()
    starts = counted.starts
    assert starts
    forget()
    assert _compiler.find_compiler() == first
    assert counted.starts == starts


def test_a_changed_compiler_is_tried_out_again(counted: Log, compiler: SetCompiler, gcc: str) -> None:
    first = _compiler.find_compiler()
    compiler(f'[ "$1" = --version ] && echo other 2.0 && exit; exec {gcc} "$@" # replaced')
    second = _compiler.find_compiler()
    assert isinstance(second, _compiler.Compiler)
    assert second.version == "other 2.0"
    assert second != first


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"null", b"\xff\xfe", b'{"version": 1, "tuning": 2}'])
def test_rubbish_for_findings_is_ignored(content: bytes, counted: Log, objects: Path) -> None:
    first = _compiler.find_compiler()
    (kept,) = objects.glob("compiler-*.json")
    kept.write_bytes(content)
    forget()
    assert _compiler.find_compiler() == first


def test_findings_that_others_may_write_are_ignored(counted: Log, objects: Path) -> None:
    first = _compiler.find_compiler()
    (kept,) = objects.glob("compiler-*.json")
    kept.write_text('{"version": "planted", "tuning": ["-fplugin=evil.so"], "openmp": true}')
    kept.chmod(0o666)
    forget()
    assert _compiler.find_compiler() == first
