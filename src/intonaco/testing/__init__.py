"""In-memory twins of the seams, and conformance checks for authors of plug-ins.

A twin behaves as its protocol says and is driven by hand, so that tests of what uses it need no
engine. A check (``check_registry``, ``check_tracker``, ...) runs one adapter through everything
that its protocol promises and raises AssertionError with a sentence on what it broke. Nothing here
needs pytest::

    from intonaco.testing.registry import check_registry, sample_release

    def test_my_registry(tmp_path):
        check_registry(MyRegistry(...), sample_release(tmp_path / "p"), tmp_path / "p")
"""

from __future__ import annotations


def require(condition: object, message: str) -> None:
    """Raises AssertionError with the message unless the condition holds."""
    if not condition:
        raise AssertionError(message)
