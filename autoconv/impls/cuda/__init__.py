"""Implementations on CuPy arrays: CUDA C kernels of our own, NVIDIA's libraries, and CuPy's functions."""
