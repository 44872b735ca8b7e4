"""Requests that are refused for what they are."""

from __future__ import annotations

from collections.abc import Iterable

from intonaco.monitoring.sources.base import Reading, Source
from intonaco.types import Finding, Tally

# Codes that say that the request itself is broken. Others are of keys, rates and the service.
FORMAT = frozenset(
    {
        "body_too_large",
        "invalid_json",
        "invalid_value",
        "missing_required_parameter",
        "model_not_found",
        "unknown_parameter",
        "unsupported_media_type",
    }
)


class Refused(Source):
    """Share of a second's requests that the gateway refused for their format or values: broken
    input. ``kinds``: codes to count in place of these. One reading for each second with requests,
    from the gateways' tallies."""

    direction = "up"
    stream = "rate"
    per_request = True  # a second with a reading has a request

    def of_tally(self, tally: Tally) -> Iterable[Reading]:
        kinds = self.signal.kinds or FORMAT
        refused = sum(n for code, n in tally.refused.items() if code in kinds)
        requests = max(tally.requests, refused)
        return (Reading(value=refused / requests, at=tally.at),) if requests else ()

    def text(self, finding: Finding) -> str:
        return (
            f"{finding.value_now:.1%} of requests are now refused for their format or values "
            f"(before: {finding.value_before:.1%})"
        )
