"""The three operations of one convolution, a plan for a loop, and what was decided.

    python examples/quickstart.py

The first run races the implementations for each problem (about a second each); the second finds the
winners in the cache.
"""

from __future__ import annotations

import numpy as np

import autoconv


def main() -> None:
    """Convolve, differentiate, plan, explain."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((2, 8, 32, 32), dtype=np.float32)
    filters = rng.standard_normal((16, 8, 3, 3), dtype=np.float32)

    with autoconv.settings(verbose=1):  # one line per decision, on standard error
        output = autoconv.conv2d(images, filters, border_mode="half")
        gradient = np.ones_like(output)
        d_images = autoconv.conv2d_grad_wrt_inputs(gradient, filters, images.shape, border_mode="half")
        d_filters = autoconv.conv2d_grad_wrt_weights(images, gradient, filters.shape, border_mode="half")
    print("output", output.shape, "gradients", d_images.shape, d_filters.shape)

    # the gradients are adjoint to the forward operation: <dx, x> = <dy, y> = <dw, w>
    products = [float(np.vdot(a, b)) for a, b in ((d_images, images), (gradient, output), (d_filters, filters))]
    print("adjoint:", ", ".join(f"{value:.3f}" for value in products))

    # in a loop: decide once, bind the filters so that they are packed once, write into the same array
    spec = autoconv.ConvSpec.fprop(images.shape, filters.shape, padding="half")
    smooth = autoconv.plan(spec).bind(filters)
    result = np.empty(spec.output_shape, np.float32)
    for batch in (images, images[::-1]):
        smooth(batch, out=result)

    print()
    print(autoconv.explain(spec))


if __name__ == "__main__":
    main()
