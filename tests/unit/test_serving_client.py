from __future__ import annotations

from intonaco.serving.client import merge
from intonaco.types import BreakerTrip, Observed


def seen(epoch: int, share: float, *tripped: str, busy: int = 0) -> Observed:
    trips = tuple(
        BreakerTrip(release=r, at=1.0, first_failure_at=0.0, failures=3, reason="") for r in tripped
    )
    return Observed(
        epoch=epoch,
        salt=f"s{epoch}",
        weights={"champion": 1 - share, "challenger:x": share},
        in_flight={"old": busy, "new": 1},
        trips=trips,
        requests=10,
        failed=busy,
    )


def test_several_gateways_are_one() -> None:
    one = seen(3, 0.5)
    assert merge([one]) == one
    both = merge([seen(4, 0.5, "a", busy=1), seen(3, 0.25, "b", busy=2)])
    assert (both.epoch, both.salt) == (3, "s3")  # what all of them follow at least
    assert both.weights == {"champion": 0.75, "challenger:x": 0.25}
    assert both.in_flight == {"old": 3, "new": 2}
    assert (both.requests, both.failed) == (20, 3)
    assert {t.release for t in both.trips} == {"a", "b"}


def test_a_trip_shows_in_the_weights_as_soon_as_one_knows_it() -> None:
    assert merge([seen(3, 0.25), seen(3, 0.0, "new")]).weights["challenger:x"] == 0.0
