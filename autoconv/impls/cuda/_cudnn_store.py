"""Serialised cuDNN plans, kept beside the compiled objects under the same rules.

One file per plan in `plans/` of the object directory: the digest of the plan's bytes, then the bytes. It is read
only when it is this user's alone, and used only when the digest fits: cuDNN does not notice every damaged byte.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from autoconv.impls.native import _private

__all__ = ["keep", "kept", "plan_key"]

DIGEST_BYTES = 32


def plan_key(*parts: str) -> str:
    """The name under which what `parts` describe is kept."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def kept(key: str) -> bytes | None:
    """The plan kept under `key`; None when there is none that may be trusted."""
    folder = _folder()
    content = None if folder is None else _private.read_private(folder / f"{key}.plan")
    if content is None or _digest(content[DIGEST_BYTES:]) != content[:DIGEST_BYTES]:
        return None
    return content[DIGEST_BYTES:]


def keep(key: str, serialised: bytes) -> None:
    """Keep a plan. Where nothing can be kept nothing is: the heuristics can be asked again."""
    folder = _folder()
    if folder is None:
        return
    with suppress(OSError):
        descriptor, name = tempfile.mkstemp(prefix=".new-", dir=folder)  # readable and writable by this user alone
        try:
            with open(descriptor, "wb") as file:
                file.write(_digest(serialised) + serialised)
            os.replace(name, folder / f"{key}.plan")  # atomic: another process sees all of it or nothing
        except OSError:
            Path(name).unlink(missing_ok=True)
            raise


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def _folder() -> Path | None:
    """The directory of plans, made private when made; None when it is not this user's alone."""
    if _private.folder_problem():
        return None
    folder = _private.object_directory() / "plans"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder if _private.is_private(folder.lstat()) else None
    except OSError:
        return None
