"""Arms that are other people's servers: which one a release is, and when it asks to be left alone.

An arm's URL is ``upstream:NAME``; how to ask is the release's own declaration, so that a champion
is asked as it was declared even if the configuration has changed since.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

from intonaco.clock import Clock
from intonaco.declared import Upstream
from intonaco.errors import IntonacoError
from intonaco.messages import GenerateRequest
from intonaco.releases import ReleaseStore
from intonaco.types import Json, Outcome
from intonaco.upstreams import SCHEME, Answer, Caller, client, in_force, read_facts
from intonaco.workspace import Workspace

READY_S = 3.0  # for a server far away to say that it is well


def is_foreign(url: str) -> bool:
    return url.startswith(SCHEME)


@dataclass(slots=True)
class Foreign:
    """``declared``: the configuration's upstreams. Belongs to one event loop."""

    workspace: Workspace
    declared: Mapping[str, Upstream]
    environ: Mapping[str, str]
    clock: Clock
    most_bytes: int
    pixels: int
    decodes: int
    _caller: Caller | None = None
    _known: dict[str, tuple[Upstream, Mapping[str, Json]]] = field(default_factory=dict)
    _rest: dict[str, float] = field(default_factory=dict)  # release: when it may be asked again

    async def draw(self, release: str, wanted: GenerateRequest) -> Answer:
        """One picture by a release's server. While the server wants to be left alone it is not
        asked. Raises httpx.HTTPError where the connection fails."""
        left = self._rest.get(release, 0.0) - self.clock.now()
        if left > 0:
            text = f"the server asked to be left alone for {left:.1f} s more"
            return Answer(outcome=Outcome.REJECTED, error=text, wait_s=left)
        try:
            upstream, generation = self._of(release)
        except IntonacoError as error:
            return Answer(outcome=Outcome.ERROR, error=f"no declaration: {error}")
        answer = await self._call().draw(upstream, wanted, generation)
        if answer.wait_s > 0:
            self._rest[release] = self.clock.now() + answer.wait_s
        return answer

    async def ready(self, release: str) -> bool:
        """Whether its server can be asked."""
        try:
            upstream, _ = self._of(release)
            async with asyncio.timeout(READY_S):
                return await self._call().ready(upstream)
        except (IntonacoError, TimeoutError):
            return False

    def _of(self, release: str) -> tuple[Upstream, Mapping[str, Json]]:
        """Declaration and generation defaults. Raises NotFound, StorageError."""
        if release not in self._known:
            store = ReleaseStore(self.workspace, "")
            manifest = store.get(release)
            name, upstream = read_facts(store.folder(manifest), manifest)
            upstream = in_force(upstream, self.declared.get(name))
            self._known[release] = (upstream, manifest.serving.generation)
        return self._known[release]

    def _call(self) -> Caller:
        if self._caller is None:
            self._caller = Caller(
                client(),
                self.environ,
                self.clock,
                most_bytes=self.most_bytes,
                pixels=self.pixels,
                decodes=asyncio.Semaphore(self.decodes),
            )
        return self._caller

    async def close(self) -> None:
        if self._caller is not None:
            await self._caller.http.aclose()
            self._caller = None
