"""Algorithms that turn a problem into a lower one and let the best implementation of that run it."""
