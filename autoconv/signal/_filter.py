"""A filter bound for good: looked at once, then called on one image after the other."""

from __future__ import annotations

from typing import Any

import numpy as np

from autoconv import options
from autoconv.arrays import Array, like_caller
from autoconv.device import Device
from autoconv.errors import InvalidType
from autoconv.places import home_of, place_of
from autoconv.planning import BoundPlan
from autoconv.signal._geometry import Problem, arrange, boundary_of, fill_of
from autoconv.signal._running import MAX_RANK, as_array, bound_plan, check_pair, spec_of

__all__ = ["Filter", "bind"]


class Filter:
    """A filter with a mode and a boundary; made by `bind`, called on images.

    Each size of image is decided once, as a plan with the filter bound; a separable filter runs as passes along the
    axes where those are fastest. `plan_for` shows the decision.
    """

    def __init__(self, kernel: Array, mode: str, boundary: str, fill: float, convolution: bool) -> None:
        self._kernel = kernel
        self._mode = mode
        self._boundary = boundary
        self._fill = fill
        self._convolution = convolution
        self._ready: dict[Any, tuple[Problem, BoundPlan]] = {}

    def __call__(self, image: Any) -> Any:
        """Filter an image of the filter's rank, or a stack of them: one axis more, the first.

        Returns an array of the promoted dtype, sized as the mode says. Raises `InvalidType` for a wrong rank or
        dtype, `InvalidSpec` for an empty image or, in mode "valid", one that the filter does not fit.
        """
        array = as_array(image, "image")
        place = place_of(self._home(array))
        with place.current():
            problem, bound = self._find(array)
            stack = array.ndim > self._kernel.ndim
            dtype = bound.plan.spec.np_dtype
            array = array if array.dtype == dtype else array.astype(dtype)
            if problem.pixels is not None or problem.crop is not None:
                array = place.xp.stack([problem.see(one) for one in array]) if stack else problem.see(array)
            result = bound(array[:, None] if stack else array[None, None])
            result = result[:, 0] if stack else result[0, 0]
        return like_caller(result, image) if hasattr(image, "__dlpack__") else result

    def plan_for(self, image: Any) -> BoundPlan:
        """The bound plan that serves images like this one."""
        return self._find(as_array(image, "image"))[1]

    def _find(self, image: Array) -> tuple[Problem, BoundPlan]:
        key = (options.current_scope(), image.shape, image.dtype, self._home(image))
        found = self._ready.get(key)
        if found is None:
            found = self._ready[key] = self._decide(image)
        return found

    def _decide(self, image: Array) -> tuple[Problem, BoundPlan]:
        rank = self._kernel.ndim
        if image.ndim not in (rank, rank + 1):
            raise InvalidType(
                f"image needs {rank} dimensions, or {rank + 1} for a stack of images, got shape {image.shape}"
            )
        problem = arrange(
            image.shape[-rank:], self._kernel.shape, self._mode, convolution=self._convolution,
            late=not self._convolution, boundary=self._boundary, fill=self._fill, may_swap=False,
        )  # fmt: skip
        dtype = check_pair(image, self._kernel)
        batch = len(image) if image.ndim > rank else 1
        spec = spec_of(problem, dtype, convolution=self._convolution, batch=batch)
        return problem, bound_plan(spec, self._kernel[None, None], self._home(image))

    def _home(self, image: Array) -> Device:
        return home_of(image, options.current_scope().settings.threads)

    def __repr__(self) -> str:
        kind = "convolution" if self._convolution else "correlation"
        size = "x".join(map(str, self._kernel.shape))
        return f"<Filter {size} {kind} mode={self._mode!r} boundary={self._boundary!r}>"


def bind(
    kernel: Any, mode: str = "same", boundary: str = "fill", fillvalue: Any = 0, convolution: bool = True
) -> Filter:
    """Fix a filter, to be called on many images.

    Parameters
    ----------
    kernel : array, 1-D to 3-D
    mode, boundary, fillvalue
        As for `convolve2d`; the boundary is the image's along every axis.
    convolution : bool
        False correlates, centred as `correlate2d` is.

    Raises `InvalidType` for a wrong rank or dtype, `InvalidSpec` for an empty filter, `InvalidOption` for unknown
    words.

    >>> import autoconv.signal, numpy as np
    >>> blur = autoconv.signal.bind(np.ones((5, 5)) / 25, boundary="symm")
    >>> blur(np.ones((32, 48))).shape, blur(np.ones((3, 32, 48))).shape
    ((32, 48), (3, 32, 48))
    """
    given = as_array(kernel, "kernel")
    array = np.array(place_of(home_of(given)).to_host(given))  # the caller may change theirs
    if not 1 <= array.ndim <= MAX_RANK:
        raise InvalidType(f"kernel must have 1 to {MAX_RANK} dimensions, got shape {array.shape}")
    check_pair(array, np.ones(1))
    arrange(array.shape, array.shape, mode, convolution=convolution)  # an unknown mode is refused here and now
    return Filter(array, mode, boundary_of(boundary), fill_of(fillvalue), bool(convolution))
