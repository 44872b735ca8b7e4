"""Trackers: where runs are exported to for people who compare them."""
