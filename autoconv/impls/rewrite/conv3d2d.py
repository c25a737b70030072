"""3-D convolution by a 2-D one of every frame with every tap in time, summed along the diagonal.

Source: Theano's conv3d2d: time is folded into the batch, the T taps in time become T times as many filters, and
        y[o] sums, over the taps t, what tap t made of frame o stride + t dilation - before.
Wins:   many input channels and few filters, where a fast 2-D engine (Winograd) has no 3-D twin.
Loses:  a stride in time (every tap still sees every frame); its scratch is T times the output.
Error:  the child's, and T - 1 additions.

The data gradient gathers along the diagonal where the forward pass sums. The child has a lower rank, and no
rewrite raises one, so the recursion ends.
"""

from __future__ import annotations

from autoconv.impls._frames import Frames

__all__ = ["Conv3d2d"]


class Conv3d2d(Frames):
    """All three operations with any padding, stride, dilation and groups, convolution and cross-correlation alike."""

    name = "rewrite.conv3d2d"
    strict_nan = False  # wgrad multiplies frames that a tap does not see by zeros
    taps_on_output = True
