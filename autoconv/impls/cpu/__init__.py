"""Algorithms on NumPy and installed CPU libraries, one per file."""
