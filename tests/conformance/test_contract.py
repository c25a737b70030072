"""What an implementation owes beside the right answer: buffers, memory, repeatability, honesty."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autoconv import testing
from autoconv.device import cpu
from autoconv.impls import BUILTIN
from autoconv.registry import default_registry
from autoconv.spec import ConvSpec
from tests.cases import refusal

CASES = {
    name: text
    for name, text in testing.CASES.items()
    if name in testing.SMOKE
    or name
    in (
        "one_pixel", "full", "padded_beyond_kernel", "stride_skips_pixels", "dilated_strided", "depthwise_multiplied",
        "grouped_unevenly", "tile_seams", "five_by_five", "pointwise_strided", "long_filter", "double_strided",
        "half_precision", "no_batch", "separable", "volume_strided",
    )
}  # fmt: skip
OTHER_CHECKS = tuple(name for name in testing.CHECKS if name != "values")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", BUILTIN)
def test_keeps_its_promises(name: str, case: str) -> None:
    reason = refusal(name, case, CASES[case], OTHER_CHECKS)
    if reason:
        pytest.skip(f"refused: {reason}")


@pytest.mark.parametrize("name", BUILTIN)
def test_refuses_other_devices_ranks_and_dtypes_with_a_sentence(name: str) -> None:
    one = default_registry().get(name)
    gpu = replace(cpu(), kind="cuda", model="a GPU", isa="sm_90")
    deep = ConvSpec.parse("fprop n1c1 1x1x1x1x1x1x1x1x1 k1 1x1x1x1x1x1x1x1x1")
    for spec, device, word in ((ConvSpec.parse(testing.SMOKE["plain"]), gpu, "cuda"), (deep, cpu(), "9")):
        if device.kind not in one.devices:
            word = f"not on {device.kind}"
        elif device is gpu:
            continue
        reason = one.why_not(replace(spec, op=min(one.ops)), device)
        assert word in str(reason)
