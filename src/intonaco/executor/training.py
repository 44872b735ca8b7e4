"""Training jobs: what one is told, and the release that it makes. The effect of an update, and
``intonaco train``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from intonaco import accounts
from intonaco.config import Config, Recipe
from intonaco.decision.budget import HOUR, reserve
from intonaco.errors import ConfigError, Conflict
from intonaco.executor.exporting import export_training
from intonaco.executor.jobs import job_ceiling, job_seconds, run_job
from intonaco.executor.models import code_revision, have_release, options
from intonaco.executor.parts import Done, Failed, Outcome, Parts, Pending
from intonaco.jobs import job_folder
from intonaco.ledger import Effect
from intonaco.releases import read_serving_spec
from intonaco.types import JobSpec, JobStatus, Json, Provenance, Release, Update

ENTRYPOINT = "intonaco.training.job"


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """What a training starts from. ``folder``: of a pipeline; None: the recipe builds one."""

    folder: str | None
    release: Release | None = None  # if it is one


def train(p: Parts, effect: Effect) -> Outcome:
    update = p.ledger.get(Update, effect.subject)
    candidate = update.candidate(str(effect.payload["name"]))
    recipe = p.config.training.recipes[candidate.name]
    champion = p.releases.get(update.champion) if update.champion else None
    spec = order(
        p,
        effect.key,
        recipe,
        str(candidate.dataset_version),
        base_of(p, recipe, champion),
        job_ceiling(p.config, update, candidate.name),
        max_seconds=job_seconds(p.config, update, candidate.name),
    )
    status = run_job(p, spec)
    export_training(p, effect.key, params_of(candidate.name, spec.payload))
    if isinstance(status, Pending | Failed):
        return status
    release = release_of(
        p,
        spec,
        status,
        recipe,
        champion,
        Provenance(
            created_at=p.clock.now(),
            parent=update.champion,
            recipe=candidate.name,
            dataset_version=candidate.dataset_version,
            training_job=effect.key,
            update_id=update.update_id,
            code_revision=code_revision(),
            note=update.plan.reason,
        ),
    )
    return Done(
        {
            "release_id": release.release_id,
            "seconds": status.seconds,
            "cost": cost_of(p.config, status),
            "stopped": status.result.get("stopped"),
        }
    )


def order(
    p: Parts,
    key: str,
    recipe: Recipe,
    dataset_version: str,
    base: Base,
    ceiling: Mapping[str, Json],
    *,
    max_seconds: float,
    **more: Json,
) -> JobSpec:
    """The job of a recipe. ``ceiling``: what it is told of its limits; ``max_seconds``: when the
    backend ends it. Raises ConfigError, NotFound."""
    return JobSpec(
        key=key,
        entrypoint=ENTRYPOINT,
        payload={
            "recipe": recipe.model_dump(mode="json"),
            "dataset": str(p.datasets.open(dataset_version).resolve()),
            "base": base.folder,
            **beside(base),
            **_held_out(p, recipe),
            "dataset_version": dataset_version,
            "cache": str(p.workspace.encoded.resolve()),
            "cache_gb": p.config.training.cache_gb,
            **ceiling,
            **more,
        },
        max_seconds=max_seconds,
    )


def release_of(
    p: Parts,
    spec: JobSpec,
    status: JobStatus,
    recipe: Recipe,
    like: Release | None,
    provenance: Provenance,
) -> Release:
    """What a job that succeeded made, as a release that is drawn like ``like``, else as
    ``model.generation`` says; and its totals in the tracker."""
    folder = job_folder(p.workspace, spec.key) / str(status.result["pipeline"])
    adapters = tuple(status.result.get("adapters", ()))
    serving = read_serving_spec(
        folder,
        generation=like.serving.generation if like else p.config.model.generation.model_dump(),
        **options(p),
        adapters=adapters,
        fused=recipe.method == "lora" and not adapters,
    )
    release = p.releases.add(folder, serving, provenance)
    have_release(p, release)
    numbers = {k: float(v) for k, v in status.result.items() if isinstance(v, int | float)}
    p.tracker.log(
        spec.key,
        metrics={**numbers, "seconds": status.seconds, "cost": cost_of(p.config, status)},
        step=int(status.result["steps"]),
    )
    return release


def base_of(p: Parts, recipe: Recipe, champion: Release | None) -> Base:
    """What the recipe says that it starts from. Raises ConfigError."""
    if recipe.init == "champion":
        if champion is None:
            raise ConfigError(
                "training.recipes: init is 'champion', but there is no champion yet",
                hint="give a folder or module:callable as init of the recipe",
            )
        return base_of_release(p, champion)
    if ":" in recipe.init:
        return Base(folder=None)
    return Base(folder=str(p.workspace.resolve(recipe.init).resolve()))


def base_of_release(p: Parts, release: Release) -> Base:
    """A release, with what stands beside its weights."""
    return Base(folder=str(p.releases.folder(release).resolve()), release=release)


def beside(base: Base) -> Mapping[str, Json]:
    """What the job is told of it besides its weights."""
    if base.release is None:
        return {}
    serving = base.release.serving
    return {"adapters": list(serving.adapters), "fused": serving.fused}


def params_of(name: str, payload: Mapping[str, Json]) -> Mapping[str, Json]:
    """What the tracker is told of a run: its recipe by field, its data, what it started from."""
    return {
        **payload["recipe"],
        "recipe": name,
        "dataset_version": payload.get("dataset_version"),
        "base": payload.get("base"),
        "seed": payload.get("seed", payload["recipe"].get("seed")),
    }


def cost_of(config: Config, status: JobStatus) -> float:
    return status.seconds / HOUR * config.decision.budget.hourly_price


def _held_out(p: Parts, recipe: Recipe) -> Mapping[str, Json]:
    """Where the items are that the recipe wants its loss on. Raises ConfigError."""
    if recipe.validation is None:
        return {}
    if p.config.data.reference is None:
        raise ConfigError(
            "training.recipes: validation needs data.reference",
            hint="name a folder of held-out items, or take validation out of the recipe",
        )
    return {"validation": str(p.workspace.resolve(p.config.data.reference).resolve())}


# ------------------------------------------------------------------------------------ by hand


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Of a training outside any update. ``money``, ``hours``: to be set aside for it; 0: not
    counted. ``told``: what the job is told."""

    seconds: float
    money: float
    hours: float
    told: Mapping[str, Json]


def limits_by_hand(
    p: Parts, recipe: Recipe, max_seconds: float | None, max_money: float | None
) -> Limits:
    """The least of what a person allows, ``training.max_seconds`` and what the budget has, which is
    shared out as for an update. Raises Conflict if the budget lacks what the recipe is estimated to
    take, ConfigError for a sum of money without a price."""
    budget, now = p.config.decision.budget, p.clock.now()
    price = budget.hourly_price
    if max_money is not None and price <= 0:
        raise ConfigError(
            "--max-money: decision.budget.hourly_price is 0, so nothing costs money",
            hint="set the price of an hour, or give --max-seconds",
        )
    asked = min(
        max_seconds or p.config.training.max_seconds,
        p.config.training.max_seconds,
        float("inf") if max_money is None else max_money / price * HOUR,
    )
    least = min(recipe.estimated_seconds, asked)
    money = accounts.money(p.ledger, p.config, now)
    hours = accounts.hours(p.ledger, p.config, now)
    if least / HOUR * price > money.left or (hours is not None and least / HOUR > hours.left):
        raise Conflict(
            f"the budget has {money.left:.2f} left"
            + ("" if hours is None else f" and {hours.left:.2f} h")
            + f", and the training is estimated at {least / HOUR * price:.2f} and "
            f"{least / HOUR:.2f} h",
            hint="`intonaco budget` shows when more is free; --max-seconds asks for less",
        )
    aside = reserve({"job": least}, {}, budget, money.left, None if hours is None else hours.left)
    seconds = min(asked, (aside.limits or {}).get("job", float("inf")))
    told: dict[str, Json] = {"max_seconds": seconds, "hourly_price": price}
    if price > 0:
        told["max_money"] = seconds / HOUR * price
    return Limits(
        seconds=seconds,
        money=seconds / HOUR * price,
        hours=0.0 if hours is None else seconds / HOUR,
        told=told,
    )


def set_aside(p: Parts, key: str, limits: Limits) -> None:
    """Reserve what a training by hand may use. Raises Conflict."""
    budget, now = p.config.decision.budget, p.clock.now()
    period = budget.per_days * 24 * HOUR
    with p.ledger.begin() as tx:
        if limits.money > 0:
            tx.reserve(now, key, limits.money, limit=budget.amount, period=period)
        if limits.hours > 0 and budget.gpu_hours is not None:
            tx.reserve(now, key, limits.hours, limit=budget.gpu_hours, period=period, hours=True)


def settle_up(p: Parts, key: str, seconds: float) -> None:
    """What it used, in place of what was set aside. Only once."""
    if any(s.settled and s.subject == key for s in p.ledger.spending()):
        return
    budget = p.config.decision.budget
    with p.ledger.begin() as tx:
        tx.money(p.clock.now(), key, "settle", seconds / HOUR * budget.hourly_price)
        if budget.gpu_hours is not None:
            tx.money(p.clock.now(), key, "settle_hours", seconds / HOUR)
