"""``data``: what candidates are made of and measured against."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from intonaco.config.base import Count, Positive, Section, Share

# What a check of an image folder can find; each is told in docs/concepts/curation.md.
Kind = Literal[
    "unreadable",  # truncated, damaged, or no PNG, JPEG or WebP
    "bomb",  # more pixels, or more bytes, than `bounds.max_pixels` allows
    "animated",
    "missing",  # named in the metadata, not there
    "outside",  # a path out of the folder
    "forbidden",  # pickles, scripts, archives, links: neither image nor metadata
    "metadata",  # a line that is no JSON object with a file name
    "encoding",  # a line that is not UTF-8, or a caption that cannot be written as it
    "caption",  # none, or an empty one
    "repeated",  # named twice
    "unlisted",  # an image that no line names
    "duplicate",  # the same bytes as another
    "leak",  # the same bytes as a held-out image
    "alpha",  # see-through pixels: what a trainer would see there was never meant to be seen
    "cmyk",
    "deep",  # 16 bits a channel
    "rotated",  # by its EXIF: a trainer would see it lying on its side
    "palette",
    "suffix",  # the name says another format than the bytes
    "small",
    "aspect",
    "caption_long",
    "near_duplicate",
    "near_leak",  # looks like a held-out image
    "prompt_leak",  # the caption is an evaluation prompt
]
Policy = Literal["drop", "fail", "warn"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# Nothing can be trained on these, so they cannot be let through with a warning.
UNUSABLE: frozenset[Kind] = frozenset(
    {
        *("unreadable", "bomb", "missing", "outside", "forbidden", "metadata", "encoding"),
        *("caption", "repeated"),
    }
)
# A matter of judgement, and of the data: a person is told of them unless `checks` says more.
JUDGED: frozenset[Kind] = frozenset(
    {
        *("palette", "suffix", "small", "aspect", "caption_long"),
        *("near_duplicate", "near_leak", "prompt_leak"),
    }
)


class CheckBounds(Section):
    """From where on a check finds something. ``min_side``: pixels of the shorter side; none: a
    quarter of the shorter side of ``model.generation``. ``max_aspect``: longer side over shorter.
    ``caption_tokens``: none: as many as the longest tokenizer of the pipeline takes; where no
    tokenizer is known, ``caption_chars`` counts. ``near_bits``: bits of 64 in which the perceptual
    hashes of two images that look alike may differ."""

    min_side: Count | None = None
    max_aspect: Annotated[float, Field(ge=1)] = 4.0
    max_pixels: Count = 2**26
    caption_chars: Count = 2000
    caption_tokens: Count | None = None
    near_bits: Annotated[int, Field(ge=0, le=12)] = 4


class Curation(Section):
    """Proposing live traffic as training data. ``consent``: "required" takes only units that
    ``consents`` says agreed, "assumed" all but those that it says did not; it is a jsonl file of
    ``{"unit", "consent"}``, of which a unit's last line counts. ``labels``: a jsonl file of
    reviewers' words, ``{"image", "prompt", "label", "reviewer"}``. ``min_score`` of ``score``;
    none: the upper quarter of what was served. ``review``: whether a person has to look through it
    first."""

    enabled: bool = False
    review: Literal["required", "none"] = "required"
    consent: Literal["required", "assumed"] = "required"
    consents: str | None = None
    labels: str | None = None
    score: str = "clip"
    min_score: float | None = None
    min_votes: Count = 1  # of users, more up than down; of reviewers likewise
    max_items: Annotated[int, Field(ge=1, le=5000)] = 200
    per_unit_cap: Count = 5  # items that stem from one unit; all without a name are one
    days: Positive = 7.0  # how far back
    max_generated: Annotated[Share, Field(lt=1)] = 0.2  # of a dataset version

    @model_validator(mode="after")
    def _somebody_can_agree(self) -> Curation:
        if self.enabled and self.consent == "required" and not (self.consents or self.labels):
            raise ValueError(
                "consent is required and nobody can give it: name a file in consents, or set "
                "consent: assumed where your terms allow it"
            )
        return self


class Data(Section):
    """``train``: folder of the first training set. ``pool``: folder of labelled items that a
    fine-tune may draw on. ``reference``: held-out real images, never trained on. ``on_invalid``:
    what to do with an item that a check found unusable; ``checks`` says it for one kind."""

    train: str | None = None
    pool: str | None = None
    reference: str | None = None
    on_invalid: Literal["fail", "drop"] = "fail"
    checks: Mapping[Kind, Policy] = Field(default={})
    bounds: CheckBounds = CheckBounds()
    curation: Curation = Curation()

    def policy(self, kind: Kind) -> Policy:
        """What is done with an item of which a check found this."""
        return self.checks.get(kind, "warn" if kind in JUDGED else self.on_invalid)

    @model_validator(mode="after")
    def _unusable_is_left_out(self) -> Data:
        for kind, policy in self.checks.items():
            if policy == "warn" and kind in UNUSABLE:
                raise ValueError(
                    f"checks.{kind}: warn would keep what nothing can be trained on: "
                    "give drop or fail"
                )
        return self
