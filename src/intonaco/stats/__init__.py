"""Anytime-valid inference: evidence that may be looked at after every observation. NumPy only."""

from intonaco.stats.amounts import AmountTest
from intonaco.stats.bernstein import PairedBernstein, PropensityBernstein
from intonaco.stats.betting import BettingMean, difference_grid
from intonaco.stats.difference import PairedDifference, RandomizedDifference
from intonaco.stats.error_ratio import ErrorRatio
from intonaco.stats.latency import LatencyTest
from intonaco.stats.sample_ratio import SampleRatioTest

__all__ = [
    "AmountTest",
    "BettingMean",
    "ErrorRatio",
    "LatencyTest",
    "PairedBernstein",
    "PairedDifference",
    "PropensityBernstein",
    "RandomizedDifference",
    "SampleRatioTest",
    "difference_grid",
]
