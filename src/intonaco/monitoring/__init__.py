"""Watching a service: signals, detectors, findings and what explains them."""
