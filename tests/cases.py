"""Named problems for the whole suite: spec texts of forward problems, as `autoconv.testing.problems` expands them."""

from __future__ import annotations

from collections.abc import Sequence

from autoconv import testing
from autoconv.device import cpu
from autoconv.registry import default_registry
from autoconv.testing import EDGE, SMOKE

__all__ = ["COMPILED", "EDGE", "NETWORKS", "REGRESSION", "SMOKE", "refusal"]

COMPILED = ("plain", "sizeable", "depthwise", "double_strided", "no_batch", "separable_channels")
"""What generated kernels are tried on here: each costs a run of the compiler. tests/native has the others."""

REGRESSION: dict[str, str] = {
    # one for every bug that got past the other cases, named after what went wrong
}

NETWORKS: dict[str, str] = {
    # layers of published networks with their channels and images cut down; kernels, strides and groups are theirs
    "alexnet.conv1": "fprop n1c3 63x63 k8 11x11 p2 s4 corr",
    "alexnet.conv2": "fprop n1c8 13x13 k12 5x5 p2 corr",
    "vgg.conv1": "fprop n1c3 28x28 k8 3x3 p1 corr",
    "vgg.conv4": "fprop n2c16 14x14 k24 3x3 p1 corr",
    "googlenet.inception_5x5": "fprop n1c6 14x14 k8 5x5 p2 corr",
    "resnet.stem": "fprop n1c3 36x36 k8 7x7 p3 s2 corr",
    "resnet.reduce": "fprop n2c24 14x14 k8 1x1 corr",
    "resnet.expand": "fprop n2c8 14x14 k24 1x1 corr",
    "resnet.shortcut": "fprop n1c16 14x14 k32 1x1 s2 corr",
    "resnet.tail": "fprop n1c32 7x7 k32 3x3 p1 corr",
    "resnext.grouped": "fprop n1c16 12x12 k16 3x3 p1 g4 corr",
    "mobilenet.depthwise": "fprop n2c16 14x14 k16 3x3 p1 g16 corr",
    "mobilenet.depthwise_down": "fprop n1c12 15x15 k12 3x3 p1 s2 g12 corr",
    "efficientnet.same": "fprop n1c8 15x15 k8 5x5 p1:2 s2 g8 corr",
    "inception.row": "fprop n1c8 17x17 k8 1x7 p0,3 corr",
    "inception.column": "fprop n1c8 17x17 k8 7x1 p3,0 corr",
    "convnext.depthwise": "fprop n1c6 14x14 k6 7x7 p3 g6 corr nhwc",
    "replknet.large": "fprop n1c4 14x14 k4 13x13 p6 g4 corr",
    "deeplab.atrous": "fprop n1c6 17x17 k8 3x3 p6 d6 corr",
    "unet.double": "fprop n1c8 10x10 k8 3x3 p1 corr f64",
    "image.blur": "fprop n3c1 32x27 k1 9x9 p4 conv",
    "image.gabor_bank": "fprop n1c1 40x33 k6 11x11 conv",
}


def refusal(name: str, case: str, text: str, checks: Sequence[str]) -> str | None:
    """Check an implementation on the problems of a case; a reason when it refuses all of them.

    Where every config costs a compilation, one config per problem is tried, each in its turn.
    """
    one = default_registry().get(name)
    if one.compiled and case not in COMPILED:
        return "compiled: tests/native tries it on this and more"
    refusals = []
    for number, spec in enumerate(testing.problems(text)):
        configs = None
        if one.compiled and one.why_not(spec, cpu()) is None:
            offered = one.configs(spec, cpu())
            configs = [offered[number % len(offered)]]
        refusals.append(testing.check_case(one, spec, checks=checks, configs=configs))
    return None if None in refusals else refusals[0]
