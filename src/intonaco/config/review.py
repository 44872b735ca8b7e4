"""``evaluation.review``: people's look at a candidate."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from intonaco.config.base import Count, Positive, Section, Share

Question = Literal["overall", "quality", "style", "adherence"]


class ReviewConfig(Section):
    """``required``: no candidate goes on without. The candidate passes once the share of
    preferences for it (a tie counts half) is shown to be above one half less ``margin``, in every
    one of ``questions``; with a margin of 0 it must be preferred. ``prompts``: at most so many are
    shown, one picture of each release; each pair is judged by ``votes_per_pair`` reviewers.
    ``reviewers``: so many different people must have counted votes. Nothing is decided before
    ``min_prompts``. ``checks``: about this share of what is shown are attention checks. After
    ``timeout_s`` a review that is not decided is inconclusive. ``guide`` is shown to reviewers."""

    required: bool = False
    questions: Annotated[tuple[Question, ...], Field(min_length=1)] = ("overall",)
    prompts: Count = 200
    votes_per_pair: Count = 2
    reviewers: Count = 2
    min_prompts: Count = 20
    margin: Annotated[float, Field(ge=0, lt=0.5)] = 0.1
    checks: Annotated[Share, Field(le=0.5)] = 0.15
    timeout_s: Positive = 7 * 86_400.0
    guide: Annotated[str, Field(max_length=2000)] = ""

    @field_validator("questions")
    @classmethod
    def _asked_once(cls, questions: tuple[Question, ...]) -> tuple[Question, ...]:
        if len(set(questions)) < len(questions):
            raise ValueError("every question is asked once")
        return questions
