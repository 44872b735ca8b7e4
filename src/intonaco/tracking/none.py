"""The tracker for those who want none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from intonaco.types import Json


class NullTracker:
    """Exports nothing."""

    def log(
        self,
        run: str,
        *,
        params: Mapping[str, Json] | None = None,
        metrics: Mapping[str, float] | None = None,
        step: int | None = None,
        artifacts: Path | None = None,
    ) -> None:
        return
