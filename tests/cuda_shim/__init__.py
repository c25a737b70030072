"""Runs the CUDA C of the package on a machine without a GPU: see `shim`."""

from tests.cuda_shim.shim import Kernel, Program, ShimError, compiler, load, thread_order

__all__ = ["Kernel", "Program", "ShimError", "compiler", "load", "thread_order"]
