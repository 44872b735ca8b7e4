"""The course of a signal goes on where a new champion makes its count begin anew."""

from __future__ import annotations

from intonaco.readmodel.signals import signal_history
from intonaco.types import SignalStatus


def status(requests: int) -> SignalStatus:
    return SignalStatus(
        signal="prompts",
        detector="e",
        armed=True,
        armed_at=1,
        requests=requests,
        value=0.0,
        reference=0.0,
        evidence=0.0,
        threshold=1.0,
        firing=False,
    )


def test_requests_count_on_over_a_rebaseline() -> None:
    rows = [(float(i), [status(n)]) for i, n in enumerate([5, 9, 2, 4, 1])]
    assert signal_history(rows, 100)["prompts"]["requests"] == [5, 9, 11, 13, 14]
