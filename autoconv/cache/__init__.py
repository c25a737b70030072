"""What autoconv remembers: every measurement, in a database that any process may read while others write.

`open_store` gives the store of a path or SQLAlchemy URL. Looking up a decision needs the standard
`sqlite3` module alone (`reader`); SQLAlchemy is imported by the first write, by the questions the command
line asks, and for databases that are not SQLite files. Nothing here raises for a database that cannot be
used: it degrades to memory with one `CacheWarning`.
"""

from __future__ import annotations

from autoconv.cache.location import is_memory, sqlite_path
from autoconv.cache.memory import MemoryStore
from autoconv.cache.store import SqlStore
from autoconv.cache.troubles import CacheWarning

__all__ = ["CacheWarning", "MemoryStore", "SqlStore", "open_store"]


def open_store(url: str | None = None) -> SqlStore | MemoryStore:
    """The store at `url`: a path, an SQLAlchemy URL, `":memory:"`, or None for the user's cache directory.

    Nothing is opened or created before it is needed. Raises `CacheError` for a URL whose dialect or
    driver is not there.
    """
    if url is not None and is_memory(url):
        return MemoryStore()
    path = sqlite_path(url)
    return SqlStore(path) if path is not None else SqlStore.at_url(str(url))
