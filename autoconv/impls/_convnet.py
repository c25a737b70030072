"""What cuda-convnet's kernels can do: restrictions of every implementation that keeps its layout, images innermost.

Source: Krizhevsky, cuda-convnet (2012); they are what lets every block of channels and filters be whole.
"""

from __future__ import annotations

from collections.abc import Iterator

from autoconv.spec import ConvSpec, Op

__all__ = ["FEW_CHANNELS", "restrictions"]

FEW_CHANNELS = 3  # up to here any number of channels will do
FILTERS_MULTIPLE = 16


def restrictions(spec: ConvSpec) -> Iterator[tuple[bool, str]]:
    """(holds, what is needed and what came) pairs, for rank 2."""
    multiple = 4 if spec.op is Op.WGRAD else 2
    pads = {pad for pair in spec.padding for pad in pair}
    yield (
        spec.in_channels <= FEW_CHANNELS or spec.in_channels % multiple == 0,
        f"{spec.op} needs {FEW_CHANNELS} channels or fewer, or a multiple of {multiple}, got {spec.in_channels}",
    )
    yield (
        spec.out_channels % FILTERS_MULTIPLE == 0,
        f"needs a multiple of {FILTERS_MULTIPLE} filters, got {spec.out_channels}",
    )
    yield len(set(spec.kernel)) == 1, f"needs square filters, got {spec.kernel}"
    yield len(set(spec.stride)) == 1, f"needs one stride for both axes, got {spec.stride}"
    yield set(spec.dilation) == {1}, f"needs dilation 1, got {spec.dilation}"
    yield spec.groups == 1, f"does not do groups, got {spec.groups}"
    yield len(pads) == 1, f"needs the same padding on every side, got {spec.padding}"
    yield (
        min(spec.batch, *spec.output_spatial, *spec.in_spatial) > 0,
        f"needs a non-empty problem, got {spec.batch} images of {spec.in_spatial}",
    )
