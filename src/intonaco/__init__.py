"""Intonaco keeps a deployed image-generation model fresh."""

__version__ = "0.1.0"
