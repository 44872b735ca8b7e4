"""Datasets: curation, validation, versions."""
