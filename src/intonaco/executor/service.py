"""Effects on what serves: staging and retiring."""

from __future__ import annotations

import httpx

from intonaco.codec import as_json
from intonaco.errors import BackendError
from intonaco.executor.parts import Done, Failed, Outcome, Parts, Pending
from intonaco.ledger import Effect
from intonaco.messages import PROTOCOL_HEADER, PROTOCOL_VERSION
from intonaco.releases import smoke_request
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
        if effect.key not in self._begun:
            p.serving.deploy(release)
            self._begun.add(effect.key)
        outcome = self._look(p, release)
        if not isinstance(outcome, Pending):
            self._begun.discard(effect.key)
        return outcome

    def _look(self, p: Parts, release: Release) -> Outcome:
        status = p.serving.status(release.release_id)
        if status.error:
            p.serving.retire(release.release_id)
            return Failed(status.error)
        if not status.ready:
            return Pending()
        if status.attested != release.release_id:
            p.serving.retire(release.release_id)
            return Failed(f"the worker loaded {status.attested}, not {release.release_id}")
        seconds = p.smoke(status.urls[0], release)
        identity = status.facts.get("identity", "attested")
        text = f"staged: identity {identity}, first picture in {seconds * 1000:.0f} ms"
        return Done({"text": text})


def retire(p: Parts, effect: Effect) -> Outcome:
    """Drain for longer than the longest request, then end."""
    release_id = str(effect.payload["name"])
    update = p.ledger.get(Update, effect.subject)
    since = effect.payload.get("since")  # of who went before the update's phase ended
    waited = p.clock.now() - (update.phase_since if since is None else float(since))
    try:
        observed = p.router.observed()
        table = p.ledger.latest_routing()
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
