"""What a decision needs to know beside the diagnosis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from intonaco.decision.economics import Life
from intonaco.types import Action, Json

EVALUATION_SECONDS = 600.0  # per candidate, until one was measured


@dataclass(frozen=True, slots=True, kw_only=True)
class TriggerFacts:
    """What set a decision off from outside. ``new_items``: in its dataset version, beyond those of
    the champion; None: it brings no data. ``recipes``: to train, if not those of the action."""

    text: str
    action: Action = Action.FINE_TUNE
    dataset_version: str | None = None
    new_items: int | None = None
    recipes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionContext:
    """What is known when a diagnosis is decided on. Times in seconds.

    ``labelled_items``: items at hand that belong to what moved. ``recipe_seconds``: measured or
    estimated training time per recipe, ``recipe_most`` the upper end of its 90 % interval.
    ``rollout_seconds``: from the gate to serving everybody, of past updates. ``spent``,
    ``reserved``: of this period's budget; ``pressure``: how far spending is ahead of what accrues
    (None: the share of the budget that is gone); ``budget_frees_at``: when old spending leaves the
    period; ``usual_return``: benefit over cost of earlier updates, as expected; ``hours_left``: of
    the training machine, None if not counted. ``request_rate``: requests a second, counted over
    ``arrivals`` of them. ``last_update_ended_at``: of the last update that trained.
    ``previous_release_available``: there is one to roll back to. ``release_changed``: the release
    or its environment changed shortly before the findings. ``trainable``: the model is ours.
    ``succeeded``, ``failed``: past updates that passed gate and rollout, or did not.
    ``unhelpful``: updates in a row for this cause after which it was there again.
    ``fine_tunes_since_full``: promoted ones. ``lives``: how long earlier changes lasted.
    ``updates_before``: updates that this diagnosis led to already.
    """

    labelled_items: int
    recipe_seconds: Mapping[str, float]
    spent: float
    reserved: float
    request_rate: float
    last_update_ended_at: float | None
    active_update: str | None
    previous_release_available: bool
    release_changed: bool = False
    evaluation_seconds: float = EVALUATION_SECONDS
    trainable: bool = True
    assemble: Mapping[str, Json] = field(default_factory=dict)
    recipe_most: Mapping[str, float] = field(default_factory=dict)
    evaluation_most: float | None = None
    rollout_seconds: float = 0.0
    pressure: float | None = None
    budget_frees_at: float | None = None
    usual_return: float = 1.0
    hours_left: float | None = None
    arrivals: int = 0
    succeeded: int = 0
    failed: int = 0
    unhelpful: int = 0
    fine_tunes_since_full: int = 0
    lives: tuple[Life, ...] = ()
    updates_before: int = 0
    trigger: TriggerFacts | None = None
