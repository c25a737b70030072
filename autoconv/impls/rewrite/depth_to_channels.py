"""3-D convolution by a 2-D one whose channels are those of all frames that a result sees.

Source: the definition: the sum over taps in time is a sum over channels if the T frames under the filter are put
        side by side as T times as many channels; im2col, in time alone (Chellapilla, Puri & Simard, "High
        performance convolutional neural networks for document processing", 2006).
Wins:   few input channels and many filters, a stride in time, where a fast 2-D engine has no 3-D twin.
Loses:  many input channels and few filters; its scratch is up to T times the input.
Error:  the child's.

The data gradient sums along the diagonal where the forward pass gathers. The child has a lower rank, and no
rewrite raises one, so the recursion ends.
"""

from __future__ import annotations

from autoconv.impls._frames import Frames

__all__ = ["DepthToChannels"]


class DepthToChannels(Frames):
    """All three operations with any padding, stride, dilation and groups, convolution and cross-correlation alike."""

    name = "rewrite.depth_to_channels"
    taps_on_output = False
