"""Objects on disk: built once, kept privately, and never loaded when anything about them is odd."""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
import sys
import tempfile
import textwrap
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import autoconv
from autoconv import ConvSpec, dispatch, options, testing
from autoconv.device import cpu
from autoconv.evidence import Choice, Measurement
from autoconv.impls.native import _call, _compile, _compiler, _private
from autoconv.impls.native._compile import CompileError
from autoconv.impls.native.direct import Direct
from autoconv.registry import default_registry
from tests.native.conftest import Log, forget

NOBODY = 65534
SOURCE = """
int autoconv_threads = 1;
void autoconv_run(const float *a, const float *b, float *out, void *scratch) { *out = *a + 2 * *b; }
"""
as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away")


def build() -> Path:
    return _compile.build(SOURCE, openmp=False)


def computes(path: Path) -> bool:
    a, b, out = np.float32([3]), np.float32([4]), np.float32([0])
    _call.kernel_call(_compile.load(path), "autoconv_run")(a, b, out, 0)
    return bool(out[0] == 11)


# Built once --------------------------------------------------------------------------------------


def test_nothing_is_compiled_twice(counted: Log) -> None:
    path = build()
    assert computes(path)
    assert len(counted.kernels) == 1
    assert build() == path
    forget()  # as another process would
    assert build() == path
    assert _compile.stored_object(SOURCE, openmp=False) == path
    assert len(counted.kernels) == 1


def test_another_source_or_flag_is_another_object(counted: Log) -> None:
    paths = {build(), _compile.build(SOURCE + "\n", openmp=False), _compile.build(SOURCE, openmp=True)}
    assert len(paths) == len(counted.kernels) == 3


def test_threads_that_build_the_same_at_once(counted: Log) -> None:
    paths: list[Path] = []
    threads = [threading.Thread(target=lambda: paths.append(build())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(paths)) == 1
    assert len(paths) == 4
    assert len(counted.kernels) == 1


def test_processes_that_build_the_same_at_once(counted: Log, objects: Path) -> None:
    _compiler.find_compiler()
    script = f"""
        from autoconv.impls.native import _compile
        path = _compile.build({SOURCE!r}, openmp=False)
        _compile.load(path)
        print(path)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = [process.communicate(timeout=100)[0].strip() for process in running]
    assert len(set(said)) == 1
    assert computes(Path(said[0]))
    assert len(counted.kernels) == 1
    assert {path.suffix for path in objects.iterdir()} == {".so", ".json"}  # neither locks nor halves are left


def test_a_dead_builder_holds_nobody_up(counted: Log, objects: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock that is not given back is waited for as long as a compiler may take, no longer."""
    import fcntl

    monkeypatch.setattr(_compiler, "TIMEOUT_S", 5.0)
    compiler = _compiler.find_compiler()
    assert isinstance(compiler, _compiler.Compiler)
    with open(objects / f".lock-{_compile._key(SOURCE, False, compiler)}", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        ticks = iter(range(0, 1000, 3))
        monkeypatch.setattr(_compile.time, "monotonic", lambda: next(ticks))
        assert computes(build())


# Kept privately ----------------------------------------------------------------------------------


def test_directory_and_objects_are_private(objects: Path, gcc: str) -> None:
    old = os.umask(0)
    try:
        path = build()
    finally:
        os.umask(old)
    assert objects.stat().st_mode & 0o777 == 0o700
    assert path.stat().st_mode & 0o777 == 0o700
    assert not [one for one in objects.iterdir() if one.stat().st_mode & 0o022]


def refused(message: str) -> None:
    """No object is taken or made, and the families say why."""
    assert _compile.stored_object(SOURCE, openmp=False) is None
    with pytest.raises(CompileError, match=message):
        build()
    refusal = Direct().why_not(ConvSpec.parse("fprop n1c1 9x9 k1 3x3"), cpu())
    assert message in str(refusal)


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777, 0o1777])
def test_directory_that_others_may_write(mode: int, objects: Path, gcc: str) -> None:
    build()
    objects.chmod(mode)
    refused("which is not this user's alone")


@as_root
def test_directory_of_another_user(objects: Path, gcc: str) -> None:
    build()
    os.chown(objects, NOBODY, NOBODY)
    refused("which is not this user's alone")


def test_directory_that_is_a_link(objects: Path, gcc: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build()
    (tmp_path / "link").symlink_to(objects)
    monkeypatch.setenv("AUTOCONV_NATIVE", str(tmp_path / "link"))
    refused("which is not this user's alone")


def test_directory_that_is_a_file(objects: Path, gcc: str) -> None:
    objects.write_text("")
    refused("compiled objects cannot be kept")
    x, w = np.ones((1, 1, 5, 5), "f"), np.ones((1, 1, 3, 3), "f")
    with autoconv.settings(tune_budget_s=0.05):
        np.testing.assert_allclose(autoconv.conv2d(x, w), np.full((1, 1, 3, 3), 9, "f"), rtol=1e-5)  # whoever wins


def test_directory_below_a_file(objects: Path, gcc: str, monkeypatch: pytest.MonkeyPatch) -> None:
    objects.write_text("")
    monkeypatch.setenv("AUTOCONV_NATIVE", str(objects / "deeper"))
    refused("compiled objects cannot be kept")


@pytest.mark.skipif(os.getuid() == 0, reason="root writes wherever it likes")
def test_read_only_directory_serves_what_it_holds(objects: Path, gcc: str) -> None:
    path = build()
    objects.chmod(0o500)
    assert _compile.stored_object(SOURCE, openmp=False) == path
    with pytest.raises(CompileError, match="cannot be kept"):
        _compile.build(SOURCE + "\n", openmp=False)


@pytest.mark.parametrize("fails", ["mkstemp", "chmod", "replace"])
def test_full_or_read_only_disk(fails: str, objects: Path, gcc: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _compiler.find_compiler()

    def full(*_: object, **__: object) -> Any:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(*((tempfile, fails) if fails == "mkstemp" else (Path, fails)), full)
        with pytest.raises(CompileError, match=r"cannot be kept: .*No space left"):
            build()
    assert not [path.name for path in objects.iterdir() if path.suffix != ".json"]
    assert computes(build()), "there is space again"


# Loaded only when nothing is odd -----------------------------------------------------------------


def replaced(path: Path) -> None:
    """The object at `path` is not taken; a new one is built and works."""
    odd = path.lstat()
    assert _compile.stored_object(SOURCE, openmp=False) is None
    fresh = build()
    assert fresh.lstat().st_ino != odd.st_ino or fresh != path
    assert computes(fresh)
    assert _compile.stored_object(SOURCE, openmp=False) == fresh


def test_planted_object(objects: Path, gcc: str, tmp_path: Path) -> None:
    """Wrong bytes under the right name: an object that would leave a mark if it were loaded."""
    path = build()
    mark = tmp_path / "mark"
    evil = tmp_path / "evil.so"
    text = f"""
        #include <stdio.h>
        __attribute__((constructor)) static void leave(void) {{ fclose(fopen("{mark}", "w")); }}
    """
    subprocess.run([gcc, "-shared", "-fPIC", "-x", "c", "-", "-o", evil], input=text, text=True, check=True)
    path.unlink()
    path.write_bytes(evil.read_bytes())
    path.chmod(0o700)
    replaced(path)
    assert not mark.exists()
    ctypes.CDLL(str(evil))
    assert mark.exists(), "the planted object would have shown"


def test_a_second_object_of_the_same_key(objects: Path, gcc: str) -> None:
    """Whatever sorts before the true object does not hide it."""
    path = build()
    (objects / f"{path.name[:33]}{'0' * 32}.so").write_bytes(b"rubbish")
    assert _compile.stored_object(SOURCE, openmp=False) == path


@pytest.mark.parametrize("size", [0, 1, 4096, -1])
def test_truncated_object(size: int, objects: Path, gcc: str) -> None:
    path = build()
    content = path.read_bytes()
    path.unlink()  # what is loaded must not lose its pages
    path.write_bytes(content[:size])
    path.chmod(0o700)
    replaced(path)


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777])
def test_object_that_others_may_write(mode: int, objects: Path, gcc: str) -> None:
    path = build()
    path.chmod(mode)
    replaced(path)


@as_root
def test_object_of_another_user(objects: Path, gcc: str) -> None:
    path = build()
    os.chown(path, NOBODY, NOBODY)
    replaced(path)


def test_object_that_is_a_link(objects: Path, gcc: str, tmp_path: Path) -> None:
    path = build()
    path.rename(tmp_path / "elsewhere.so")
    path.symlink_to(tmp_path / "elsewhere.so")
    replaced(path)


def test_object_that_is_a_pipe(objects: Path, gcc: str) -> None:
    path = build()
    path.unlink()
    os.mkfifo(path, 0o700)
    replaced(path)


def test_object_that_is_a_directory(objects: Path, gcc: str) -> None:
    path = build()
    path.unlink()
    path.mkdir(0o700)
    assert _compile.stored_object(SOURCE, openmp=False) is None
    with pytest.raises(CompileError, match="cannot be kept"):
        build()


def test_object_that_was_written_badly(objects: Path, gcc: str, counted: Log) -> None:
    """Its bytes match its name, but nobody can load them: built anew where that is allowed."""
    path = build()
    content = b"rubbish"
    path.unlink()
    bad = objects / f"{path.name[:33]}{hashlib.sha256(content).hexdigest()[:32]}.so"
    bad.write_bytes(content)
    bad.chmod(0o700)
    with pytest.raises(CompileError, match="cannot be loaded"):
        _compile.library(SOURCE, openmp=False, may_compile=False)
    assert bad.exists()
    _compile.library(SOURCE, openmp=False, may_compile=True)
    assert not bad.exists()
    assert len(counted.kernels) == 2


@pytest.mark.parametrize("changed", ["model", "isa", "feature"])
def test_object_of_another_cpu(changed: str, objects: Path, gcc: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home directory that two machines share: each has its own objects."""
    path = build()
    machine, model, isa, features = _compiler.processor()
    other = {
        "model": (machine, "another CPU", isa, features),
        "isa": (machine, model, "sse", features),
        "feature": (machine, model, isa, features.replace(" sse2", "") + " more"),
    }[changed]
    monkeypatch.setattr(_compiler, "processor", lambda: other)
    forget()
    assert _compile.stored_object(SOURCE, openmp=False) is None
    assert build() != path


def test_another_compiler_version_is_another_object(objects: Path, gcc: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = build()
    found = _compiler.find_compiler()
    assert isinstance(found, _compiler.Compiler)
    newer = _compiler.Compiler(found.command, "cc 99.1", found.tuning, found.openmp)
    monkeypatch.setattr(_compile, "find_compiler", lambda: newer)
    assert _compile.stored_object(SOURCE, openmp=False) is None
    assert build() != path


# Nothing is compiled inside a call ---------------------------------------------------------------

SPEC = ConvSpec.parse("fprop n1c1 24x24 k1 5x5 corr f32")


def remember_a_native_winner() -> None:
    """Rows for `SPEC` that a native config won before `numpy.direct`."""
    registry, device = default_registry(), cpu()
    config = Direct().configs(SPEC, device)[0]
    native = Choice(Direct.name, Direct.version, config)
    plain = Choice("numpy.direct", registry.get("numpy.direct").version)
    registry.build(SPEC, device, native)
    rows = [
        Measurement(str(SPEC), device.fingerprint, choice, "ok", median_s=median_s, samples=(median_s,) * 5)
        for choice, median_s in ((native, 1e-6), (plain, 1e-3))
    ]
    dispatch.current_store().add(rows)
    decision, built = dispatch.recall(SPEC, device, options.current_scope().settings)[1:]
    assert decision is not None
    assert built is not None
    assert built.choice == native


def test_a_winner_whose_object_is_gone_gives_way(counted: Log, objects: Path) -> None:
    remember_a_native_winner()
    for path in objects.glob("*.so"):
        path.unlink()
    starts = counted.starts
    options.forget_calls()
    forget()
    x, w = testing.operands(SPEC, np.random.default_rng(0))
    result = autoconv.conv2d(x, w, filter_flip=False)
    np.testing.assert_allclose(result, testing.reference(SPEC, x, w), rtol=0, atol=1e-4)
    assert autoconv.plan(SPEC).implementation == "numpy.direct"
    (miss,) = dispatch.current_store().misses()
    assert miss.spec == str(SPEC)
    assert "its compiled object is gone" in miss.reason
    assert counted.starts == starts, "a call started the compiler"


def test_a_cached_native_call_starts_no_compiler(counted: Log) -> None:
    remember_a_native_winner()
    starts = counted.starts
    options.forget_calls()
    forget()
    x, w = testing.operands(SPEC, np.random.default_rng(0))
    expected = testing.reference(SPEC, x, w)
    with autoconv.settings(on_miss="heuristic"):  # nothing is remembered for bound filters
        plan = autoconv.plan(SPEC)
        assert plan.implementation == Direct.name
        np.testing.assert_allclose(plan(x, w), expected, rtol=0, atol=1e-4)
        np.testing.assert_allclose(plan.bind(w)(x), expected, rtol=0, atol=1e-4)
    assert counted.starts == starts


def test_without_its_extension_a_cached_call_goes_through_ctypes(counted: Log, objects: Path) -> None:
    remember_a_native_winner()
    for path in objects.glob("*.so"):
        if not hasattr(ctypes.CDLL(str(path)), "autoconv_run"):
            path.unlink()  # the extension: a new Python needs its own, say
    kernels = counted.kernels
    options.forget_calls()
    forget()
    x, w = testing.operands(SPEC, np.random.default_rng(0))
    plan = autoconv.plan(SPEC)
    assert plan.implementation == Direct.name
    np.testing.assert_allclose(plan(x, w), testing.reference(SPEC, x, w), rtol=0, atol=1e-4)
    assert counted.kernels == kernels
    assert _call.trampoline_problem() is None  # compiles it
    assert len(counted.kernels) == len(kernels) + 1


def test_private_files_are_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 1000)
    path.chmod(0o600)
    assert _private.read_private(path) == path.read_bytes()
    assert _private.read_private(tmp_path / "none") is None
