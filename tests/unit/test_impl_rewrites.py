"""What the conformance suite cannot know of the rewrites: the child they ask for, and that none asks in circles."""

from __future__ import annotations

import numpy as np
import pytest

from autoconv import testing
from autoconv.device import cpu
from autoconv.impls.rewrite.conv3d2d import Conv3d2d
from autoconv.impls.rewrite.depth_to_channels import DepthToChannels
from autoconv.impls.rewrite.dgrad_as_fprop import DgradAsFprop
from autoconv.impls.rewrite.gemm_1x1 import Gemm1x1
from autoconv.impls.rewrite.groups import Groups
from autoconv.impls.rewrite.wgrad_as_fprop import WgradAsFprop
from autoconv.planning import BoundPlan, Plan
from autoconv.spec import ConvSpec, Op

REWRITES = (DgradAsFprop(), WgradAsFprop(), Groups(), Gemm1x1(), Conv3d2d(), DepthToChannels())
TEXTS = [
    "n2c6 9x8 k4 3x2 p1:0,2 s2,1 d1,2 g2 conv nchw f64",
    "n3c4 7x9 k2 2x3 p5,4 s1 d1 g2 corr nhwc f64",
    "n1c2 6x6 k4 1x1 p3 s2 d1 g1 conv nchw f64",
    "n2c4 5x6x4 k2 3x2x2 p1:0,1,0 s2,1,1 d1,2,1 g2 conv nhwc f64",
]


@pytest.mark.parametrize("text", TEXTS)
def test_every_chain_of_children_ends(text: str) -> None:
    pending = [ConvSpec.parse(f"{op} {text}") for op in Op]
    seen = 0
    while pending:
        spec = pending.pop()
        seen += 1
        assert seen < 100
        for rewrite in REWRITES:
            if rewrite.why_not(spec, cpu()) is None and (child := rewrite.child_spec(spec)) is not None:
                # lower: fewer axes, fewer groups, or an fprop instead of a gradient; never the other way round
                ranked = [(one.rank, one.groups, one.op is not Op.FPROP) for one in (child, spec)]
                assert ranked[0] < ranked[1]
                pending.append(child)


def test_dgrad_at_stride_one_hands_the_gradient_on_as_it_is() -> None:
    spec = ConvSpec.parse("dgrad n2c3 9x8 k4 3x3 p1 conv")
    child = DgradAsFprop().child_spec(spec)
    assert str(child) == "fprop n2c4 9x8 k3 3x3 p1 s1 d1 g1 corr nchw f32"
    assert DgradAsFprop().workspace_bytes(spec, cpu(), DgradAsFprop().configs(spec, cpu())[0]) < 64 + 4 * 3 * 4 * 9


def test_dgrad_spreads_by_the_stride_and_crops_what_lies_in_the_padding() -> None:
    spread = DgradAsFprop().child_spec(ConvSpec.parse("dgrad n1c1 9x9 k1 3x3 p0 s2"))
    cropped = DgradAsFprop().child_spec(ConvSpec.parse("dgrad n1c1 4x4 k1 1x1 p3"))
    assert spread.in_spatial == (7, 7)
    assert spread.padding == ((2, 2), (2, 2))
    assert cropped.in_spatial == (4, 4)
    assert cropped.padding == ((0, 0), (0, 0))


def test_wgrad_swaps_stride_and_dilation_and_ends_with_as_many_results_as_taps() -> None:
    child = WgradAsFprop().child_spec(ConvSpec.parse("wgrad n5c4 12x11 k6 3x2 p1 s2,3 d1,2 g2"))
    assert (child.stride, child.dilation) == ((1, 2), (2, 3))
    assert (child.batch, child.in_channels, child.out_channels, child.groups) == (2, 10, 6, 2)
    assert child.output_spatial == (3, 2)


def test_gradients_that_see_padding_alone_are_refused() -> None:
    spec = ConvSpec.parse("dgrad n1c1 2 k1 1 p10:0 s20")
    assert "padding (10, 0) along axis 0" in str(DgradAsFprop().why_not(spec, cpu()))
    assert "padding (10, 0) along axis 0" in str(
        WgradAsFprop().why_not(ConvSpec.parse("wgrad n1c1 2 k1 1 p10:0 s20"), cpu())
    )


def test_refusals_say_what_came() -> None:
    assert Groups().why_not(ConvSpec.parse("fprop n1c2 5x5 k2 3x3"), cpu()) == "needs two groups or more, got 1"
    assert Gemm1x1().why_not(ConvSpec.parse("fprop n1c2 5x5 k2 1x3"), cpu()) == "needs a filter of one tap, got (1, 3)"


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("op", list(Op))
def test_bound_filters_may_be_used_again_and_again(op: Op, text: str) -> None:
    spec = ConvSpec.parse(f"{op} {text}")
    rng = np.random.default_rng(4)
    for rewrite in REWRITES:
        if op is Op.WGRAD or rewrite.why_not(spec, cpu()) is not None:
            continue
        built = testing.build(rewrite, spec)
        plan = Plan(spec, cpu(), built.choice, built.runner)
        _, filters = testing.operands(spec, rng)
        bound = BoundPlan(plan, built.runner.bind(filters))
        for _ in range(2):
            data, _ = testing.operands(spec, rng)
            assert testing.relative_error(bound(data), testing.reference(spec, data, filters)) < 1e-13
