"""autoconv: every convolution engine of a machine, raced once per exact shape, the winner remembered.

>>> import autoconv, numpy as np
>>> y = autoconv.conv2d(np.ones((1, 3, 8, 8), "f"), np.ones((4, 3, 3, 3), "f"), border_mode="half")
>>> y.shape
(1, 4, 8, 8)

`plan` decides once for many calls, `tune` races beforehand, `explain` says what was chosen and why, `regress` times
again what is doubtful, `verify` checks that winners are still right, `settings` steers, `implementations` lists what
there is and `register` adds to it.
"""

from types import ModuleType as _ModuleType

from autoconv.api import (
    ImplementationRecord,
    explain,
    export_measurements,
    implementations,
    import_measurements,
    plan,
    register,
    regress,
    tune,
    verify,
)
from autoconv.convolving import (
    conv1d,
    conv1d_grad_wrt_inputs,
    conv1d_grad_wrt_weights,
    conv2d,
    conv2d_grad_wrt_inputs,
    conv2d_grad_wrt_weights,
    conv3d,
    conv3d_grad_wrt_inputs,
    conv3d_grad_wrt_weights,
)
from autoconv.derived import (
    causal_conv1d,
    conv1d_transpose,
    conv2d_transpose,
    conv3d_transpose,
    separable_conv2d,
)
from autoconv.errors import (
    AutoconvError,
    BackendMissing,
    BadExport,
    CacheError,
    InvalidOption,
    InvalidSpec,
    InvalidType,
    NoImplementation,
    RegistryError,
    SchemaTooNew,
    WrongAnswer,
)
from autoconv.explaining import Explanation
from autoconv.implementation import Implementation
from autoconv.options import Settings, settings
from autoconv.planning import BoundPlan, Plan
from autoconv.spec import ConvSpec, Op

__version__ = "0.1.0.dev0"

__all__ = [
    "AutoconvError",
    "BackendMissing",
    "BadExport",
    "BoundPlan",
    "CacheError",
    "ConvSpec",
    "Explanation",
    "Implementation",
    "ImplementationRecord",
    "InvalidOption",
    "InvalidSpec",
    "InvalidType",
    "NoImplementation",
    "Op",
    "Plan",
    "RegistryError",
    "SchemaTooNew",
    "Settings",
    "WrongAnswer",
    "causal_conv1d",
    "conv1d",
    "conv1d_grad_wrt_inputs",
    "conv1d_grad_wrt_weights",
    "conv1d_transpose",
    "conv2d",
    "conv2d_grad_wrt_inputs",
    "conv2d_grad_wrt_weights",
    "conv2d_transpose",
    "conv3d",
    "conv3d_grad_wrt_inputs",
    "conv3d_grad_wrt_weights",
    "conv3d_transpose",
    "explain",
    "export_measurements",
    "implementations",
    "import_measurements",
    "plan",
    "register",
    "regress",
    "separable_conv2d",
    "settings",
    "tune",
    "verify",
]


def __getattr__(name: str) -> _ModuleType:
    """`autoconv.signal` is imported when it is first asked for."""
    if name == "signal":
        from importlib import import_module

        return import_module("autoconv.signal")
    raise AttributeError(f"module 'autoconv' has no attribute {name!r}")
