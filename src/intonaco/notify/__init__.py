"""Notifiers: who tells people."""
