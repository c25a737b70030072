"""Problems whose sizes are partly unknown: what an untuned call would choose, told by the order of a stand-in.

In a spec's text a `?` stands for a size that is not known. Such a problem cannot be tuned, since another size is
another problem; but who would refuse it, and the order of the rest, seldom depend on the size.
"""

from __future__ import annotations

import re

from autoconv import dispatch, options
from autoconv.device import Device
from autoconv.errors import InvalidSpec
from autoconv.explaining import Explanation
from autoconv.spec import ConvSpec

__all__ = ["explain_unknown", "stand_in"]

CHANNELS = 64  # of a layer in the middle of a network, with an image and a filter to match
SIZES = (56, 224, 896, 3584)  # the first that the filter fits into
TAPS = 3


def stand_in(text: str) -> ConvSpec:
    """A spec like `text` with sizes of a common layer for every `?`. Raises `InvalidSpec` when nothing would fit."""
    words = text.split()
    groups = next((int(word[1:]) for word in words[5:] if re.fullmatch("g[1-9][0-9]{0,11}", word)), 1)
    channels = str(-(-CHANNELS // groups) * groups)
    head, rest = words[:5], words[5:]
    failure = InvalidSpec(f"cannot read spec {text!r}")
    for size in map(str, SIZES):
        known = [
            word.replace("n?", "n1").replace("c?", f"c{channels}").replace("k?", f"k{channels}").replace("?", fill)
            for word, fill in zip(head, ("?", "?", size, "?", str(TAPS)), strict=False)
        ]
        try:
            return ConvSpec.parse(" ".join(known + rest))
        except InvalidSpec as error:
            failure = error
    raise failure


def explain_unknown(text: str, device: Device) -> Explanation:
    """The untuned order for a text with a `?`, and what keeps it from being tuned. Raises `InvalidSpec` as `parse`."""
    spec = stand_in(text)
    try:
        ConvSpec.parse(text)
    except InvalidSpec as error:
        unknown = str(error)
    order, refusals = dispatch.untuned_order(spec, device, options.current_scope().settings)
    return Explanation(
        spec=spec,
        device=device,
        state="unknown",
        chosen=order[0][0] if order else None,
        decision=None,
        rows=(),
        stale={},
        estimates=order,
        refusals=refusals,
        unknown=unknown,
    )
