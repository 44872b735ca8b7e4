"""The console: what the service does and why, to look at. It changes nothing."""

from intonaco.console.app import create_app

__all__ = ["create_app"]
