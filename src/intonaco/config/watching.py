"""``extractor`` and ``monitoring``: what is noticed."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator, model_validator

from intonaco.config.base import Count, Positive, Section, Share
from intonaco.config.signals import DEFAULT_SIGNALS, Signal


class Extractor(Section):
    """The pinned model that embeds prompts and images. Never part of a release. ``path``: a folder
    or file, or hf://ORG/NAME@COMMIT. ``options`` are the type's own."""

    type: str = "clip"
    path: str
    digest: str | None = None  # sha256; refuse anything else
    options: dict[str, str | int | float | bool] = Field(default_factory=dict)


class Head(Section):
    """A scorer that gives each picture a number. ``type``: "sharpness", "noise", "linear" (of the
    extractor's embedding), an entry point of ``intonaco.scorers`` or ``module:attribute``.
    ``path`` and ``digest`` (sha256): its weights in safetensors, refused if they are others."""

    type: str
    path: str | None = None
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None

    @model_validator(mode="after")
    def _weights_are_pinned(self) -> Head:
        if self.path is not None and self.digest is None:
            raise ValueError("a head with weights (path) needs the digest (sha256) of that file")
        return self


class Scoring(Section):
    """What the scorer notes of pictures. ``sample``: share of them that is looked at, chosen by
    request id. ``images``: keep their embeddings. ``heads``: more scores, by name."""

    sample: Share = 1.0
    images: bool = True
    heads: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")], Head] = Field(default={})

    @field_validator("heads")
    @classmethod
    def _clip_is_taken(cls, heads: dict[str, Head]) -> dict[str, Head]:
        if "clip" in heads:
            raise ValueError("clip is the score of the extractor: give the head another name")
        return heads


class Maturity(Section):
    """How feedback is counted: for images that are ``mature_after_s`` old, so that slow and quick
    voters count alike. ``per_unit``: votes, and images, of one unit that count in a cohort (the
    images made in a stretch of ``mature_after_s``). ``kept``: images that wait for their maturity;
    where there are more, a sample of them is followed."""

    mature_after_s: Positive = 86_400.0
    per_unit: Count = 20
    kept: Annotated[int, Field(ge=100, le=200_000)] = 20_000


class Monitoring(Section):
    """``requests_between_false_alarms``, or ``false_alarms_per_week`` in its place: over all
    signals of the service together."""

    requests_between_false_alarms: Positive = 50_000
    false_alarms_per_week: Positive | None = None
    signals: dict[str, Signal] = DEFAULT_SIGNALS
    probes: tuple[str, ...] = ()  # prompts generated with fixed seeds to tell model from users
    probe_every_s: Annotated[float, Field(ge=0)] = 3600.0  # 0: only at findings and new champions
    # Between a finding and its diagnosis: a topic of 5 % of the requests is then seen five times.
    settle_requests: Annotated[int, Field(ge=0)] = 100
    # Requests are answered and no record of them comes, or records wait and none is scored.
    silent_after_s: Positive = 60.0
    scoring: Scoring = Scoring()
    feedback: Maturity = Maturity()
    # Whether findings, and what the monitors remember for them, hold prompts that records keep.
    show_prompts: bool = True

    @model_validator(mode="after")
    def _one_budget(self) -> Monitoring:
        both = {"requests_between_false_alarms", "false_alarms_per_week"} <= self.model_fields_set
        if both and self.false_alarms_per_week is not None:
            raise ValueError(
                "give requests_between_false_alarms or false_alarms_per_week, not both"
            )
        return self

    @model_validator(mode="after")
    def _scores_exist(self) -> Monitoring:
        for name, signal in self.signals.items():
            if signal.score not in (None, "clip", *self.scoring.heads):
                known = ", ".join(["clip", *sorted(self.scoring.heads)])
                raise ValueError(
                    f"signals.{name}.score names the head {signal.score!r}; scoring.heads and the "
                    f"extractor give: {known}"
                )
        return self
