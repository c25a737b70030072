"""Fixtures of the tuner's tests."""

from __future__ import annotations

import pytest

from tests.tuner.fakes import World


@pytest.fixture
def world() -> World:
    """A clock that stands, an empty registry, an empty store."""
    return World()
