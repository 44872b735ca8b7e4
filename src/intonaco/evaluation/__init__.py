"""Proving a candidate against the champion: features, metrics of features, comparison, gate."""
