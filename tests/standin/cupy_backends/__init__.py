"""Stand-in for CuPy's bindings: the few functions that autoconv calls, on host memory."""
