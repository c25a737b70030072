"""`theano_flags`: the flags of old as settings."""

from __future__ import annotations

import numpy as np
import pytest

import autoconv
from autoconv.compat.theano import theano_flags
from autoconv.errors import BackendMissing, InvalidOption
from autoconv.registry import default_registry

X, W = np.ones((1, 8, 16, 16), np.float32), np.ones((8, 8, 5, 5), np.float32)


def first(flags: str) -> frozenset[str]:
    """Tags of what an untuned call runs under `flags`."""
    spec = autoconv.ConvSpec.fprop(X.shape, W.shape)
    with theano_flags(flags):
        return default_registry().get(autoconv.plan(spec).implementation).tags


def test_conv_meta_races() -> None:
    with theano_flags(
        "optimizer_including=conv_meta:conv_fft,optimizer_excluding=conv_dnn,metaopt.verbose=1"
    ) as settings:
        assert settings.on_miss == "tune"
        assert settings.verbose == 1
        assert "fft" not in settings.exclude
    with theano_flags("") as settings:
        assert settings.on_miss == "heuristic"


def test_precedence_when_nothing_is_tuned() -> None:
    """FFT when it is included, then cuDNN, then GEMM, then legacy."""
    assert "fft" in first("optimizer_including=conv_fft_valid:conv_fft_full")
    assert "gemm" in first("")
    assert "legacy" in first("optimizer_excluding=conv_gemm")


def test_a_measurement_beats_the_precedence() -> None:
    spec = autoconv.ConvSpec.fprop(X.shape, W.shape)
    with autoconv.settings(require=("numpy.direct",), tune_budget_s=0.05):
        autoconv.plan(spec)
    with theano_flags(""):
        assert autoconv.plan(spec).implementation == "numpy.direct"


def test_cudnn_is_demanded_with_a_reason() -> None:
    with pytest.raises(BackendMissing, match=r"optimizer_including=cudnn, but cuDNN cannot be used: .+"):
        theano_flags("optimizer_including=cudnn")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("device=gpu", "no flag of convolution is called 'device'"),
        ("optimizer_including=fusion", "optimizer_including knows conv_meta, conv_fft"),
        ("optimizer_including", "a flag is name=value"),
        ("metaopt.verbose=loud", "metaopt.verbose must be an integer"),
        ("metaopt.verbose=7", "verbose"),
    ],
)
def test_refuses(flags: str, message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        theano_flags(flags)
