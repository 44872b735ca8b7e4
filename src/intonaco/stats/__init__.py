"""Anytime-valid inference: evidence that may be looked at after every observation. NumPy only."""

from intonaco.stats.betting import BettingMean, difference_grid
from intonaco.stats.difference import PairedDifference, RandomizedDifference
from intonaco.stats.sample_ratio import SampleRatioTest

__all__ = [
    "BettingMean",
    "PairedDifference",
    "RandomizedDifference",
    "SampleRatioTest",
    "difference_grid",
]
