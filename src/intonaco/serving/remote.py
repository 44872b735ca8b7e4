"""Releases that are other people's servers: nothing is started here and nothing ended.

A release is ready when its server answers and the configuration still declares it as the release
does. That identity is declared, not proved: what runs behind an address only its owner knows. What
was deployed is written down in ``run/upstream-RELEASE.json``.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import httpx

from intonaco.clock import Clock, SystemClock
from intonaco.codec import decode, digest, encode
from intonaco.config import Serving
from intonaco.declared import Upstream
from intonaco.errors import BackendError, ConfigError, NotFound, StorageError
from intonaco.releases import ReleaseStore, smoke_request
from intonaco.types import Json, Outcome, Release, ServingStatus
from intonaco.upstreams import (
    SCHEME,
    authorities,
    draw_once,
    headers_of,
    in_force,
    is_upstream,
    read_facts,
    serving_spec,
    well,
)
from intonaco.workspace import Workspace, write_atomic

log = logging.getLogger(__name__)

CALL_S = 3.0  # a look may not hold up the controller for long
LOOK_S = 5.0  # how long a server's word that it is well is believed
IDENTITY = "declared, not proved"


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Whether a release's server is to be sent work."""

    release_id: str
    state: Literal["serving", "draining", "retired"]
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    """What a server said of itself. ``since``: how long it has said the same."""

    at: float
    since: float
    problem: str


@dataclass(slots=True)
class HttpServingBackend:
    """The servers of ``serving.upstreams``."""

    workspace: Workspace
    config: Serving
    clock: Clock = field(default_factory=SystemClock)
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    _http: httpx.Client = field(init=False)
    _looks: dict[str, _Look] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._http = httpx.Client(timeout=CALL_S, trust_env=False, verify=authorities())

    # ------------------------------------------------------------------ the seam

    def deploy(self, release: Release) -> None:
        """Let its server be asked. Again is no change."""
        standing = self._standing(release.release_id)
        if standing is None or standing.state != "serving":
            self._write(release.release_id, "serving")

    def status(self, release_id: str) -> ServingStatus:
        """Ready when the server answers and is declared as the release says. While it is declared
        differently it keeps its URL, since a champion has nobody to stand in for it, but it is not
        ready and ``attested`` names the id of what is declared now."""
        standing = self._standing(release_id)
        if standing is None or standing.state == "retired":
            return ServingStatus(
                release=release_id, ready=False, error="not deployed", deployed=False
            )
        if standing.state == "draining":
            return _not_ready(release_id)
        store = ReleaseStore(self.workspace, "")
        try:
            release = store.get(release_id)
            if not is_upstream(release):
                raise StorageError("it is a model of ours, and serving.type is http")
            name, upstream = read_facts(store.folder(release), release)
        except (NotFound, StorageError) as error:
            return _not_ready(release_id, f"release {release_id[:10]}: {error}")
        facts: dict[str, Json] = {
            "identity": IDENTITY,
            "upstream": name,
            "url": upstream.url,
            "model": upstream.model,
            "version": upstream.version,
        }
        url = f"{SCHEME}{name}"
        declared = self.config.upstreams.get(name)
        attested: str | None = None
        if declared is not None:
            attested = digest(serving_spec(name, declared, release.serving.generation))
        if attested != release_id:
            how = "no longer there" if declared is None else "declared differently now"
            return ServingStatus(
                release=release_id,
                ready=False,
                urls=(url,),
                attested=attested,
                error=f"serving.upstreams.{name} is {how}: begin an update with what is declared",
                facts=facts,
            )
        look = self._look(release_id, in_force(upstream, declared))
        waited = look.at - max(look.since, standing.at)
        patience = self.config.worker.ready_timeout_s
        return ServingStatus(
            release=release_id,
            ready=not look.problem,
            urls=() if look.problem else (url,),
            attested=attested,
            error=f"{name}: {look.problem}, for {waited:.0f} s"
            if look.problem and waited > patience
            else "",
            facts={**facts, "problem": look.problem} if look.problem else facts,
            replicas=1,
        )

    def scale(self, release: Release, replicas: int) -> None:
        """Raises BackendError: how many workers another's server has, only its owner says."""
        raise BackendError(
            f"{release.short} is served elsewhere and cannot be scaled to {replicas} workers",
            backend="http",
            retriable=False,
            hint="rollout.strategy: canary or blue_green",
        )

    def drain(self, release_id: str) -> None:
        """No longer ready; the server is told nothing."""
        if (standing := self._standing(release_id)) and standing.state == "serving":
            self._write(release_id, "draining")

    def retire(self, release_id: str) -> None:
        """Forget it; its server goes on for whoever else it serves."""
        if self._standing(release_id) is not None:
            self._write(release_id, "retired")
        self._looks.pop(release_id, None)

    def close(self) -> None:
        self._http.close()

    # ------------------------------------------------------------------ their servers

    def _look(self, release_id: str, upstream: Upstream) -> _Look:
        now = self.clock.now()
        last = self._looks.get(release_id)
        if last is not None and not last.problem and now - last.at < LOOK_S:
            return last
        problem = self._problem(upstream)
        same = last is not None and bool(last.problem) == bool(problem)
        since = last.since if last is not None and same else now
        self._looks[release_id] = look = _Look(at=now, since=since, problem=problem)
        if problem and not same:
            log.warning(
                "the server of %s: %s",
                release_id[:10],
                problem,
                extra={"action": "upstream.away", "release": release_id},
            )
        return look

    def _problem(self, upstream: Upstream) -> str:
        """Why it cannot be asked; empty if it can."""
        try:
            headers = headers_of(upstream, self.environ)
            address = upstream.address(upstream.health or "")
            with self._http.stream("GET", address, headers=headers) as response:
                status = response.status_code
        except ConfigError as error:
            return str(error)
        except httpx.HTTPError as error:
            return f"no answer: {type(error).__name__}"
        if well(upstream, status):
            return ""
        return f"it answers {status} at {urlsplit(address).path}"

    # ------------------------------------------------------------------ files

    def _file(self, release_id: str) -> Path:
        return self.workspace.run / f"upstream-{release_id[:10]}.json"

    def _standing(self, release_id: str) -> Standing | None:
        try:
            return decode(Standing, self._file(release_id).read_bytes())
        except FileNotFoundError:
            return None

    def _write(self, release_id: str, state: Literal["serving", "draining", "retired"]) -> None:
        standing = Standing(release_id=release_id, state=state, at=self.clock.now())
        write_atomic(self._file(release_id), encode(standing))


def smoke_test(
    workspace: Workspace, declared: Mapping[str, Upstream], environ: Mapping[str, str], clock: Clock
) -> Callable[[str, Release], float]:
    """Draws one picture of a release's server; seconds it took. What it gives raises BackendError,
    StorageError."""

    def draw(url: str, release: Release) -> float:
        name, upstream = read_facts(ReleaseStore(workspace, "").folder(release), release)
        generation = release.serving.generation
        wanted = smoke_request(release)
        upstream = in_force(upstream, declared.get(name))
        started = clock.now()
        try:
            answer = draw_once(upstream, wanted, generation, environ, clock)
        except httpx.HTTPError as error:
            problem, again = type(error).__name__, True
        else:
            if answer.outcome is Outcome.OK:
                return clock.now() - started
            problem, again = answer.error, answer.outcome is Outcome.REJECTED
        raise BackendError(f"smoke test: {name}: {problem}", backend="http", retriable=again)

    return draw


def _not_ready(release_id: str, error: str = "") -> ServingStatus:
    return ServingStatus(release=release_id, ready=False, error=error)
