"""``data``: what candidates are made of and measured against."""

from __future__ import annotations

from typing import Literal

from intonaco.config.base import Section


class Data(Section):
    """``train``: folder of the first training set. ``pool``: folder of labelled items that a
    fine-tune may draw on. ``reference``: held-out real images, never trained on."""

    train: str | None = None
    pool: str | None = None
    reference: str | None = None
    on_invalid: Literal["fail", "drop"] = "fail"
