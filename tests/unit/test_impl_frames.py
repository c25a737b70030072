"""3-D by 2-D: the children asked for, the diagonal worked by hand, and memory that needs no copy."""

from __future__ import annotations

import numpy as np
import pytest

from autoconv import testing
from autoconv.device import cpu
from autoconv.evidence import Config
from autoconv.impls._frames import Frames
from autoconv.impls.rewrite.conv3d2d import Conv3d2d
from autoconv.impls.rewrite.depth_to_channels import DepthToChannels
from autoconv.spec import ConvSpec, Op

BOTH = (Conv3d2d(), DepthToChannels())


@pytest.mark.parametrize("rewrite", BOTH, ids=lambda one: one.name)
@pytest.mark.parametrize(("flip", "expected"), [(False, [4312, 6534]), (True, [1243, 3465])])
def test_time_and_space_are_flipped_together_or_not_at_all(rewrite: Frames, flip: bool, expected: list[float]) -> None:
    """Worked on paper. Theano's conv3d2d flipped in space alone what was asked for as a correlation."""
    x = np.arange(1.0, 7.0).reshape(1, 1, 3, 1, 2)
    w = np.array([[10.0, 1.0], [100.0, 1000.0]]).reshape(1, 1, 2, 1, 2)
    spec = ConvSpec.fprop(x.shape, w.shape, flip=flip, dtype="f64")
    assert testing.run(testing.build(rewrite, spec), x, w).ravel().tolist() == expected


def test_taps_in_time_become_filters_or_channels() -> None:
    spec = ConvSpec.parse("fprop n2c6 9x8x7 k4 3x5x2 p1,2,0 s2,1,1 d1,1,3 g2 corr nhwc f64")
    assert str(Conv3d2d().child_spec(spec)) == "fprop n18c6 8x7 k12 5x2 p2,0 s1 d1,3 g2 corr nhwc f64"
    assert str(DepthToChannels().child_spec(spec)) == "fprop n10c18 8x7 k4 5x2 p2,0 s1 d1,3 g2 corr nhwc f64"


@pytest.mark.parametrize("op", Op)
@pytest.mark.parametrize("rewrite", BOTH, ids=lambda one: one.name)
def test_one_tap_in_time_copies_nothing_where_frames_lie_one_after_another(rewrite: Frames, op: Op) -> None:
    frames = ConvSpec.parse(f"{op} n2c3 4x8x8 k5 1x3x3 p0,1,1 nhwc")
    assert rewrite.workspace_bytes(frames, cpu(), Config()) == 0
    assert testing.check_case(rewrite, frames) is None
    planes = ConvSpec.parse(f"{op} n2c3 4x8x8 k5 1x3x3 p0,1,1 nchw")
    assert rewrite.workspace_bytes(planes, cpu(), Config()) == 4 * 2 * 4 * 64 * (3 + 5)


def test_a_stride_in_time_leaves_out_frames_that_nobody_sees() -> None:
    spec = ConvSpec.parse("fprop n1c2 9x4x4 k3 1x3x3 s4,1,1")
    assert Conv3d2d().child_spec(spec).batch == 9
    assert DepthToChannels().child_spec(spec).batch == 3


@pytest.mark.parametrize("rewrite", BOTH, ids=lambda one: one.name)
def test_refusals_say_what_came(rewrite: Frames) -> None:
    assert rewrite.why_not(ConvSpec.parse("fprop n1c2 5x5 k2 3x3"), cpu()) == "does rank 3, got 2"
    assert rewrite.why_not(ConvSpec.parse("fprop n0c2 5x5x5 k2 3x3x3"), cpu()) == "needs a batch, got 0 volumes"
    blind = ConvSpec.parse("fprop n1c1 2x2x2 k1 1x1x1 p10:0,0,0 s20,1,1")
    assert "padding ((10, 0), (0, 0), (0, 0))" in str(rewrite.why_not(blind, cpu()))
