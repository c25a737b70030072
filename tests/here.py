"""A world of fakes behind the public functions: its registry, store and clock stand for the process's own."""

from __future__ import annotations

from types import ModuleType

import pytest

from autoconv import api, dispatch, explaining, options, regressing, showing, verifying
from autoconv.device import cpu
from autoconv.evidence import Measurement
from autoconv.spec import ConvSpec
from autoconv.tuner import Tuner
from tests.tuner.fakes import SPEC, World

MODULES: tuple[ModuleType, ...] = (api, dispatch, explaining, regressing, showing, verifying)


class Here(World):
    """`World`, asked through `autoconv.plan`, `tune`, `explain`, ...; counts the races of calls and tunings."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.races = 0
        for module in MODULES:
            monkeypatch.setattr(module, "default_registry", lambda: self.registry)
        monkeypatch.setattr(dispatch, "make_tuner", self._tuner)
        dispatch.use_store(self.store, options.current_scope().settings.cache)

    def _tuner(self) -> Tuner:
        self.races += 1
        return Tuner(self.registry, self.store, clock=self.clock, sleep=self.clock.sleep, seed=self.seed)

    def stored(self, spec: ConvSpec = SPEC) -> list[Measurement]:
        """Every row of `spec`, oldest first."""
        return self.store.rows(str(spec), cpu().fingerprint)
