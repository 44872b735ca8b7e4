"""Triggers from outside, looked at by the controller's tick: what is there now, what fires, and the
plan that it leads to. What was seen is kept in the ledger, so a restart fires nothing twice."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from intonaco import accounts, beginning, commands, experience, loop
from intonaco.codec import as_json, decode, digest
from intonaco.data_checks import DataChecks
from intonaco.datasets.dvc import read_dvc_file
from intonaco.decision import triggers
from intonaco.decision.policy import TriggerFacts, decide
from intonaco.decision.triggers import News, Sign, State
from intonaco.environments import EnvironmentStore
from intonaco.environments.lock import parse
from intonaco.errors import ConfigError, Conflict, IntonacoError
from intonaco.executor import Parts
from intonaco.executor.data import dataset_of
from intonaco.types import Action, Cause, DatasetVersion, Diagnosis, Plan

EVERY_SECONDS = 5.0  # files are read no oftener
METADATA = "metadata.jsonl"


class Triggers:
    """Of one service."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.checks = DataChecks(parts)
        self._next = 0.0

    def look(self, fence: int, now: float) -> None:
        """See what changed; begin at most one update."""
        settings, ledger = self.parts.config.decision.triggers, self.parts.ledger
        if now < self._next or ledger.champion() is None:
            return  # there is nothing to update yet
        self._next = now + EVERY_SECONDS
        self.checks.look(fence, now)
        watched = settings.model_copy(update={"debounce_s": 0, "min_new_items": 1})
        if not any(watched.model_dump(exclude_defaults=True)):
            return
        before = read(ledger.setting(commands.TRIGGERS))
        state, news = triggers.look(
            before,
            [self._checked(sign, before, fence, now) for sign in signs(self.parts)],
            settings.schedule,
            debounce=settings.debounce_s,
            time_zone=self.parts.config.decision.time_zone,
            busy=_busy(self.parts),
            now=now,
        )
        fires = next((n for n in news if n.fires), None)
        with ledger.begin(fence=fence) as tx:
            for skipped in news:
                if not skipped.fires:
                    tx.event(now, "trigger.skipped", skipped.key, skipped.text)
            if state != before:
                tx.set(commands.TRIGGERS, as_json(state))
        if fires is not None:
            self._fire(state, fires, fence, now)

    def _checked(self, sign: Sign, before: State, fence: int, now: float) -> Sign:
        """Data that changed fire nothing before they were checked, nor if they fail."""
        changed = before.known.get(sign.key) not in (None, sign.fingerprint)
        if sign.kind not in ("dataset", "dvc") or sign.problem or not changed:
            return sign
        problem = self.checks.version(sign.key, sign.fingerprint, fence, now)
        if problem is None:
            return replace(sign, waits="its items are being checked")
        if problem:
            text = f"version {sign.fingerprint[:10]} fails its checks: {problem}"
            return replace(sign, problem=text)
        return sign

    def _fire(self, state: State, news: News, fence: int, now: float) -> None:
        """Decide on it. What has to wait fires again; all else is done with."""
        parts, ledger = self.parts, self.parts.ledger
        diagnosis = Diagnosis(
            diagnosis_id=digest(["trigger", news.key, news.fingerprint, now])[:16],
            service_id=parts.config.service,
            at=now,
            cause=CAUSES[news.kind],
            reason=news.text,
            findings=(),
        )
        context = experience.context(parts, diagnosis, now)
        if news.kind == "lock":
            context = replace(context, assemble=_environment(parts, news.fingerprint))
        context = replace(context, trigger=_facts(parts, news))
        plan = decide(diagnosis, context, parts.config.decision, now)
        again = plan.look_again_at
        after = triggers.accept(state, news, now)
        if not plan.action.makes_update and again is not None:
            after = triggers.hold(state, news, again)
        try:
            self._write(diagnosis, plan, news, after, fence, now)
        except Conflict as error:  # the budget went to somebody else this moment
            with ledger.begin(fence=fence) as tx:
                tx.event(now, "trigger.skipped", news.key, f"{news.text} It waits: {error}")
                accounts.tell_used_up(parts.config, ledger, tx, plan, now)
                later = now + parts.config.decision.look_again_s
                tx.set(commands.TRIGGERS, as_json(triggers.hold(state, news, later)))

    def _write(
        self, diagnosis: Diagnosis, plan: Plan, news: News, after: State, fence: int, now: float
    ) -> None:
        ledger = self.parts.ledger
        with ledger.begin(fence=fence) as tx:
            tx.set(commands.TRIGGERS, as_json(after))
            announced = ANNOUNCED if diagnosis.cause in ANNOUNCES else ""
            tx.put(diagnosis, id=diagnosis.diagnosis_id, at=now, status=announced)
            tx.put(plan, id=plan.plan_id, at=now)
            kind = "trigger.fired" if plan.action.makes_update else "trigger.skipped"
            tx.event(now, kind, news.key, plan.reason, data={"plan": plan.plan_id})
            beginning.plan_event(tx, plan, now)
            if accounts.held_by_budget(plan):
                accounts.tell_used_up(self.parts.config, ledger, tx, plan, now)
            if plan.action.makes_update:
                update = loop.start(plan, ledger.champion(), now)
                beginning.begin_update(self.parts, tx, update, now)


CAUSES = {
    "dataset": Cause.NEW_DATA,
    "dvc": Cause.NEW_DATA,
    "recipe": Cause.NEW_TECHNIQUE,
    "base": Cause.NEW_TECHNIQUE,
    "lock": Cause.CODE_CHANGE,
    "schedule": Cause.REQUESTED,
    "webhook": Cause.REQUESTED,
}


ANNOUNCES = (Cause.NEW_DATA, Cause.NEW_TECHNIQUE, Cause.CODE_CHANGE)
ANNOUNCED = "announced"  # status of their diagnoses, which those of findings name beside them


def read(stored: object) -> State:
    """The state as the ledger holds it."""
    return decode(State, json.dumps(stored)) if stored else State()


def _busy(parts: Parts) -> str | None:
    if parts.ledger.setting("frozen"):
        return "the service is frozen"
    active = parts.ledger.active_updates()
    return f"update {active[0].update_id} is under way" if active else None


def _facts(parts: Parts, news: News) -> TriggerFacts:
    decision = parts.config.decision
    if news.kind in ("dataset", "dvc"):
        version = news.fingerprint
        return TriggerFacts(
            text=f"{news.text[:-1]} to version {version[:10]}.",
            dataset_version=version,
            new_items=new_items(parts, version),
        )
    if news.kind in ("recipe", "base"):
        full = news.name in decision.full_retrain
        action = Action.FULL_RETRAIN if full else Action.FINE_TUNE
        return TriggerFacts(text=news.text, action=action, recipes=(news.name,))
    if news.kind == "schedule":
        entry = decision.triggers.schedule[int(news.name)]
        return TriggerFacts(text=news.text, action=Action(entry.action))
    return TriggerFacts(text=news.text)


def new_items(parts: Parts, version: str) -> int:
    """Images of a version that the champion's dataset does not have, by whatever name: what an
    update learnt lies flat in its own version, and files are moved."""
    base = dataset_of(parts, parts.ledger.champion())
    if base is None:
        return parts.ledger.get(DatasetVersion, version).items
    new = parts.datasets.diff(base.version, version).new
    return sum(not path.endswith(METADATA) for path in new)


def _environment(parts: Parts, environment: str) -> dict[str, object]:
    return {
        "name": f"environment-{environment[:10]}",
        "generation": {},
        "scheduler": None,
        "environment": environment,
        "upstream": None,
    }


# ------------------------------------------------------------------------------------ what is there


def signs(parts: Parts) -> Iterator[Sign]:
    """Everything that is watched, as it is now."""
    settings, decision = parts.config.decision.triggers, parts.config.decision
    versions = parts.ledger.all(DatasetVersion)
    for name in settings.datasets:
        newest = next((v for v in reversed(versions) if v.name == name), None)
        yield Sign(key=f"dataset:{name}", fingerprint=newest.version if newest else "")
    for path in settings.dvc:
        yield _dvc(path, parts.workspace.resolve(path), versions)
    for name in dict.fromkeys((*decision.fine_tune, *decision.full_retrain)):
        recipe = parts.config.training.recipes[name]
        if settings.recipes:
            yield Sign(key=f"recipe:{name}", fingerprint=digest(recipe.model_dump(mode="json")))
        if settings.base and recipe.init != "champion" and ":" not in recipe.init:
            yield _folder(f"base:{name}", parts.workspace.resolve(recipe.init))
    if settings.lock is not None:
        yield _lock(parts, settings.lock)


def _dvc(path: str, file: Path, versions: list[DatasetVersion]) -> Sign:
    """A .dvc file names its data by DVC's id, which our versions of the same data have too, or
    what they were made from has."""
    key = f"dvc:{path}"
    try:
        md5 = read_dvc_file(file).md5
    except ConfigError as error:
        return Sign(key=key, problem=f"{path} cannot be read: {error}")
    found = next((v for v in reversed(versions) if md5 in (v.dvc_md5, *v.source_ids)), None)
    if found is None:
        return Sign(
            key=key,
            problem=f"no dataset version has the data {md5[:10]} of {path}: `intonaco dataset pull"
            f" {path}`, or `intonaco dataset add` the folder that it names",
        )
    return Sign(key=key, fingerprint=found.version)


def _folder(key: str, folder: Path) -> Sign:
    """By names, sizes and times: weights are large, and a release has their digests anyway."""
    try:
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        facts = [
            [p.relative_to(folder).as_posix(), p.stat().st_size, p.stat().st_mtime_ns]
            for p in files
        ]
    except OSError as error:
        return Sign(key=key, problem=f"{folder.name} cannot be read: {error.strerror or error}")
    if not facts:
        return Sign(key=key, problem=f"the folder {folder.name} is empty or does not exist")
    return Sign(key=key, fingerprint=digest(facts))


def _lock(parts: Parts, path: str) -> Sign:
    """The environment that a lock file names, against the champion's."""
    key, file = f"lock:{path}", parts.workspace.resolve(path)
    champion = parts.ledger.champion()
    running = parts.releases.get(champion).serving.environment if champion else None
    store = EnvironmentStore(parts.workspace)
    try:
        pins = parse(file.read_text(), source=path)
        lock = store.lock(running).replaced(pins) if running else pins
        environment = store.keep(lock)
    except (OSError, UnicodeDecodeError) as error:
        return Sign(key=key, problem=f"{path} cannot be read: {type(error).__name__}")
    except IntonacoError as error:
        return Sign(key=key, problem=f"{path} cannot be used: {error}")
    return Sign(key=key, fingerprint=environment, unless=running or environment)
