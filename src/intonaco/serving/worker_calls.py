"""What the local backend asks of its workers over HTTP. A worker that does not answer is no error
here: whoever asked looks again."""

from __future__ import annotations

import httpx

from intonaco.codec import decode, encode
from intonaco.errors import StorageError
from intonaco.messages import (
    PROTOCOL_HEADER,
    PROTOCOL_VERSION,
    Attestation,
    HeldRelease,
    HoldRelease,
    ProcessInfo,
)
from intonaco.serving.deployments import Deployment

CALL_S = 5.0


class WorkerCalls:
    """Workers are named by what they announced of themselves, None for one that did not yet."""

    def __init__(self) -> None:
        self._http = httpx.Client(
            timeout=CALL_S, trust_env=False, headers={PROTOCOL_HEADER: PROTOCOL_VERSION}
        )

    def close(self) -> None:
        """Let go of connections."""
        self._http.close()

    def call(
        self, method: str, info: ProcessInfo | None, path: str, content: str | None = None
    ) -> httpx.Response | None:
        """Answer of a worker, None if it gave none."""
        if info is None or info.url is None:
            return None
        try:
            return self._http.request(method, f"{info.url}{path}", content=content)
        except httpx.HTTPError:
            return None

    def shut(self, info: ProcessInfo | None) -> int:
        """Have a worker take no more; requests that it has in hand. 0 if it does not answer."""
        response = self.call("POST", info, "/drain")
        try:
            said = response.json() if response is not None else {}
            return int(said.get("in_flight", 0))
        except (ValueError, TypeError, AttributeError):
            return 0

    def hold(self, info: ProcessInfo | None, release_id: str, fault: str) -> None:
        """Ask a worker to hold the release. One that has not announced itself is asked later, by
        ``status``."""
        self.call(
            "POST", info, "/releases", encode(HoldRelease(release_id=release_id, fault=fault))
        )

    def held(self, info: ProcessInfo | None, deployment: Deployment) -> HeldRelease | None:
        """What a shared worker says of the release; one that never heard of it is told."""
        response = self.call("GET", info, f"/releases/{deployment.release_id}")
        if response is not None and response.status_code == 404:
            self.hold(info, deployment.release_id, deployment.fault)
        if response is None or response.status_code != 200:
            return None
        try:
            return decode(HeldRelease, response.content)
        except StorageError:
            return None

    def attestation(self, info: ProcessInfo, which: str) -> Attestation | None:
        """What it says that it loaded; None if that cannot be had."""
        response = self.call("GET", info, f"/attest{which}")
        if response is None or response.status_code != 200:
            return None
        try:
            return decode(Attestation, response.content)
        except StorageError:
            return None
