"""The gateway's admin API as a TrafficRouter."""

from __future__ import annotations

import base64
import binascii

import httpx

from intonaco.codec import decode, encode
from intonaco.errors import BackendError, ConfigError, Conflict, StorageError
from intonaco.messages import PROBE, RELEASE, ProcessInfo
from intonaco.types import Observed, RoutingTable
from intonaco.workspace import Workspace

TIMEOUT_S = 5.0


class GatewayRouter:
    """Drives the gateway of a workspace. Finds it anew each time, so a restarted one is found."""

    def __init__(self, workspace: Workspace, *, probe_timeout_s: float = 120.0) -> None:
        self._workspace = workspace
        self._probe_timeout_s = probe_timeout_s
        self._http = httpx.Client(timeout=TIMEOUT_S, trust_env=False)

    def apply(self, table: RoutingTable) -> None:
        """Raises Conflict for an older epoch (or another table of the same epoch), ConfigError for
        a table that cannot be followed, BackendError if no gateway answers."""
        response = self._call("PUT", "/admin/routing", encode(table))
        if response.status_code == 409:
            raise Conflict(_message(response))
        if response.status_code == 400:
            raise ConfigError(_message(response))
        _expect(response)

    def observed(self) -> Observed:
        """Raises BackendError."""
        response = _expect(self._call("GET", "/admin/observed"))
        try:
            return decode(Observed, response.content)
        except StorageError as error:
            raise _failed(str(error), retriable=False) from error

    def probe(
        self,
        release_id: str,
        prompt: str,
        seed: int,
        *,
        steps: int | None = None,
        guidance_scale: float | None = None,
    ) -> bytes:
        """A PNG by exactly that release, which must be in the gateway's table (weight 0 will do).
        Recorded as a probe, no user's request. Raises BackendError."""
        body: dict[str, str | int | float] = {"prompt": prompt, "seed": seed}
        if steps is not None:
            body["steps"] = steps
        if guidance_scale is not None:
            body["guidance_scale"] = guidance_scale
        info = self._gateway()
        try:
            response = self._http.post(
                f"{info.url}/v1/images/generations",
                json=body,
                headers={**self._headers(), PROBE: "1", RELEASE: release_id},
                timeout=self._probe_timeout_s,
            )
        except httpx.HTTPError as error:
            raise _failed(f"the probe got no answer: {type(error).__name__}") from error
        _expect(response)
        try:
            return base64.b64decode(response.json()["data"][0]["b64_json"], validate=True)
        except (ValueError, LookupError, TypeError, binascii.Error) as error:
            raise _failed("the probe's answer holds no image", retriable=False) from error

    def close(self) -> None:
        self._http.close()

    def _call(self, method: str, path: str, content: str | None = None) -> httpx.Response:
        info = self._gateway()
        try:
            return self._http.request(
                method,
                f"{info.facts['admin_url']}{path}",
                content=content,
                headers=self._headers() | {"content-type": "application/json"},
            )
        except httpx.HTTPError as error:
            raise _failed(f"no answer: {type(error).__name__}") from error

    def _gateway(self) -> ProcessInfo:
        info = self._workspace.process("gateway")
        if info is None:
            raise _failed("no gateway runs in this workspace")
        return info

    def _headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self._workspace.admin_token()}"}


def _failed(message: str, *, retriable: bool = True) -> BackendError:
    return BackendError(f"gateway: {message}", backend="gateway", retriable=retriable)


def _expect(response: httpx.Response) -> httpx.Response:
    if response.status_code != 200:
        retriable = response.status_code >= 500 or response.status_code == 429
        raise _failed(f"{response.status_code} {_message(response)}", retriable=retriable)
    return response


def _message(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return response.text[:200]
