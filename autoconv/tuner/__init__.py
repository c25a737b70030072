"""The meta-optimiser: verifies and times every applicable implementation, and says who wins and why."""

from autoconv.tuner.tuner import Tuner, TuningResult

__all__ = ["Tuner", "TuningResult"]
