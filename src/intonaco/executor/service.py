"""Effects on what serves: staging and retiring."""

from __future__ import annotations

import httpx

from intonaco.codec import as_json
from intonaco.errors import BackendError
from intonaco.executor.parts import Done, Failed, Outcome, Parts, Pending
from intonaco.ledger import Effect
from intonaco.messages import PROTOCOL_HEADER, PROTOCOL_VERSION
from intonaco.releases import smoke_request
from intonaco.rollout import cost
from intonaco.types import (
    Release,
    Update,
)


class Stage:
    """Bring a release up for its rollout. Deployed once in a controller's life, at the first look,
    which adopts what an earlier controller started; a worker that then dies is seen and told, not
    started again and again."""

    def __init__(self) -> None:
        self._begun: set[str] = set()  # keys of effects

    def __call__(self, p: Parts, effect: Effect) -> Outcome:
        release = p.releases.get(str(effect.payload["name"]))
        if release.release_id == p.ledger.champion():
            # However it came to that. What is staged in vain is retired, and it serves.
            return Failed(f"{release.release_id[:10]} is the champion already")
        update = p.ledger.get(Update, effect.subject)
        if update.cancel_requested and update.rollout_id is None:
            return Failed("its update is being cancelled")  # which retires it
        beside, replicas = effect.payload.get("beside"), effect.payload.get("replicas")
        if replicas == 0:
            return Done({"text": "not loaded yet: there is no room beside the champion's workers"})
        if effect.key not in self._begun:
            if beside and beside != release.release_id:
                equal = int(effect.payload.get("baseline", 0))
                problem = no_room(p, release, str(beside), replicas, equal)
                if problem:
                    return Failed(problem)
            if replicas is None:
                p.serving.deploy(release)
            else:
                p.serving.scale(release, int(replicas))
            self._begun.add(effect.key)
        outcome = self._look(p, release, str(beside) if beside else None)
        if not isinstance(outcome, Pending):
            self._begun.discard(effect.key)
        return outcome

    def _look(self, p: Parts, release: Release, beside: str | None) -> Outcome:
        status = p.serving.status(release.release_id)
        if status.error:
            p.serving.retire(release.release_id)
            if beside is None:
                return Failed(status.error)
            return Failed(cost.out_of_memory(status.error, switch_cost(p, beside)))
        if not status.ready:
            return Pending()
        if status.attested != release.release_id:
            p.serving.retire(release.release_id)
            return Failed(f"the worker loaded {status.attested}, not {release.release_id}")
        seconds = p.smoke(status.urls[0], release)
        identity = status.facts.get("identity", "attested")
        text = f"staged: identity {identity}, first picture in {seconds * 1000:.0f} ms"
        return Done({"text": text})


def no_room(
    p: Parts, release: Release, champion: str, replicas: int | None, baseline: int = 0
) -> str:
    """Why the release may not be loaded beside the champion, "" if it may: a device that is too
    small would take the champion's memory too. ``baseline``: workers that the champion gets with
    it, for the equal slice."""
    status = p.serving.status(champion)
    if (
        p.config.serving.share_base
        or status.replicas == 0
        or p.serving.status(release.release_id).deployed
    ):
        return ""
    worker = p.config.serving.worker
    room = cost.memory(
        status.facts,
        champion_workers=status.replicas + baseline,
        challenger_workers=p.config.serving.replicas if replicas is None else replicas,
        weights_ratio=_weights(p, release) / max(_weights(p, p.releases.get(champion)), 1),
        declared=None if worker.memory_gb is None else worker.memory_gb * 1e9,
        device_declared=None if worker.device_memory_gb is None else worker.device_memory_gb * 1e9,
    )
    if room.together:
        return ""
    text = cost.not_together(room, release.release_id, switch_cost(p, champion))
    if not baseline:
        return text
    return f"{text}. The champion's are counted with the {baseline} of rollout.baseline"


def switch_cost(p: Parts, champion: str) -> str:
    """What a switch in place would cost now, in words."""
    seen = p.ledger.consumer("watch")
    arrivals = seen[1].get("arrivals", ()) if seen else ()
    seconds = cost.start_seconds(p.serving.status(champion).facts)
    return cost.switch_cost(seconds, cost.rate(arrivals))


def _weights(p: Parts, release: Release) -> int:
    """Bytes of its weights' files."""
    folder = p.workspace.resolve(release.path)
    return sum(f.stat().st_size for f in folder.rglob("*.safetensors"))


def retire(p: Parts, effect: Effect) -> Outcome:
    """Drain for longer than the longest request, then end."""
    release_id = str(effect.payload["name"])
    update = p.ledger.get(Update, effect.subject)
    since = effect.payload.get("since")  # of who went before the update's phase ended
    waited = p.clock.now() - (update.phase_since if since is None else float(since))
    table = p.ledger.latest_routing()
    taken = {a.release for a in table.arms if a.weight > 0} if table else set()
    if release_id == p.ledger.champion():
        return Failed(f"{release_id[:10]} is the champion")
    if release_id in taken:
        return Pending()  # users are sent to it as long as nobody else can take them
    try:
        observed = p.router.observed()
        routed = table is not None and any(a.release == release_id for a in table.arms)
        busy = (
            routed
            or observed.in_flight.get(release_id, 0) > 0
            or (table is not None and observed.epoch < table.epoch)
        )
    except BackendError:
        busy = True
    if busy and waited < p.config.rollout.drain_seconds:
        return Pending()
    p.serving.drain(release_id)
    p.serving.retire(release_id)
    return Done({"waited": waited})


def smoke_test(url: str, release: Release) -> float:
    """Draw one picture at a worker; seconds it took. Raises BackendError."""
    request = smoke_request(release)
    try:
        response = httpx.post(
            f"{url}/generate",
            json=as_json(request),
            headers={PROTOCOL_HEADER: PROTOCOL_VERSION},
            timeout=60.0,
        )
    except httpx.HTTPError as error:
        raise BackendError(
            f"smoke test: {type(error).__name__}", backend="worker", retriable=True
        ) from error
    if response.status_code != 200:
        raise BackendError(
            f"smoke test: the worker answered {response.status_code}",
            backend="worker",
            retriable=response.status_code in (429, 503),
        )
    return response.elapsed.total_seconds()
