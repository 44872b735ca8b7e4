"""The gateways' admin API as one TrafficRouter."""

from __future__ import annotations

import base64
import binascii
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import httpx

from intonaco.codec import decode, encode
from intonaco.errors import BackendError, ConfigError, Conflict, StorageError
from intonaco.messages import NO_ROOM_FOR_PROBES, PROBE, RELEASE, ProcessInfo
from intonaco.monitoring.probes import ProbeImage
from intonaco.types import Observed, RoutingTable
from intonaco.workspace import Workspace

log = logging.getLogger(__name__)

TIMEOUT_S = 5.0

T = TypeVar("T")


class GatewayRouter:
    """Drives the gateways of a workspace. Finds them anew each time, so a restarted one is found.

    All are asked at the same time. One that is dead or does not answer holds nobody up: table and
    trips lie on disk too, where it takes them from as soon as it runs again."""

    def __init__(
        self,
        workspace: Workspace,
        *,
        timeout_s: float = TIMEOUT_S,
        probe_timeout_s: float = 120.0,
    ) -> None:
        self._workspace = workspace
        self._probe_timeout_s = probe_timeout_s
        self._http = httpx.Client(timeout=timeout_s, trust_env=False)

    def apply(self, table: RoutingTable) -> None:
        """Give all gateways a table. Raises Conflict if one of them has a newer epoch (or another
        table of the same epoch), ConfigError for a table that cannot be followed, BackendError if
        no gateway takes it."""
        text = encode(table)

        def give(info: ProcessInfo) -> None:
            response = self._call(info, "PUT", "/admin/routing", text)
            if response.status_code == 409:
                raise Conflict(_message(response))
            if response.status_code == 400:
                raise ConfigError(_message(response))
            _expect(response)

        self._each(give)

    def observed(self) -> Observed:
        """What those gateways that answer say together (``merge``). Raises BackendError."""

        def ask(info: ProcessInfo) -> Observed:
            response = _expect(self._call(info, "GET", "/admin/observed"))
            try:
                return decode(Observed, response.content)
            except StorageError as error:
                raise _failed(str(error), retriable=False) from error

        return merge(self._each(ask))

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
        image = self.probe_image(
            release_id, prompt, seed, steps=steps, guidance_scale=guidance_scale
        )
        if image is None:
            raise _failed("too many users wait: no probe is drawn now")
        return image.png

    def probe_image(
        self,
        release_id: str,
        prompt: str,
        seed: int,
        *,
        steps: int | None = None,
        guidance_scale: float | None = None,
    ) -> ProbeImage | None:
        """As ``probe``, with the size of its batch; None while the gateway is too busy with
        users."""
        body: dict[str, str | int | float] = {"prompt": prompt, "seed": seed}
        if steps is not None:
            body["steps"] = steps
        if guidance_scale is not None:
            body["guidance_scale"] = guidance_scale
        info = self._gateways()[0]  # they share the public port
        try:
            response = self._http.post(
                f"{info.url}/v1/images/generations",
                json=body,
                headers={**self._headers(), PROBE: "1", RELEASE: release_id},
                timeout=self._probe_timeout_s,
            )
        except httpx.HTTPError as error:
            raise _failed(f"the probe got no answer: {type(error).__name__}") from error
        if response.status_code == 503 and _code(response) == NO_ROOM_FOR_PROBES:
            return None
        _expect(response)
        try:
            item = response.json()["data"][0]
            return ProbeImage(
                png=base64.b64decode(item["b64_json"], validate=True),
                padded_size=int(item.get("padded_size", 0)),
            )
        except (ValueError, LookupError, TypeError, binascii.Error) as error:
            raise _failed("the probe's answer holds no image", retriable=False) from error

    def close(self) -> None:
        self._http.close()

    def _each(self, ask: Callable[[ProcessInfo], T]) -> list[T]:
        """Answers of those that gave one. Raises Conflict or ConfigError if one did, BackendError
        if none answered."""
        infos = self._gateways()

        def one(info: ProcessInfo) -> T | BackendError:
            try:
                return ask(info)
            except BackendError as error:
                return error

        if len(infos) == 1:
            found = [one(infos[0])]
        else:
            with ThreadPoolExecutor(len(infos)) as pool:
                found = list(pool.map(one, infos))
        answers = [f for f in found if not isinstance(f, BackendError)]
        for info, problem in zip(infos, found, strict=True):
            if isinstance(problem, BackendError):
                if not answers:
                    raise problem
                log.warning("%s: %s", info.name, problem, extra={"action": "gateway.silent"})
        return answers

    def _call(
        self, info: ProcessInfo, method: str, path: str, content: str | None = None
    ) -> httpx.Response:
        try:
            return self._http.request(
                method,
                f"{info.facts['admin_url']}{path}",
                content=content,
                headers=self._headers() | {"content-type": "application/json"},
            )
        except httpx.HTTPError as error:
            raise _failed(f"no answer: {type(error).__name__}") from error

    def _gateways(self) -> list[ProcessInfo]:
        infos = self._workspace.gateways()
        if not infos:
            raise _failed("no gateway runs in this workspace")
        return infos

    def _headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self._workspace.admin_token()}"}


def merge(seen: Sequence[Observed]) -> Observed:
    """One statement of several gateways: the lowest epoch, with the weights of the gateway there
    that knows most trips; trips of any; requests in flight, answered and failed of all together."""
    slowest = min(seen, key=lambda o: (o.epoch, -len(o.trips)))
    trips = {t.release: t for o in seen for t in o.trips}
    in_flight: Counter[str] = Counter()
    for one in seen:
        in_flight.update(one.in_flight)
    return Observed(
        epoch=slowest.epoch,
        salt=slowest.salt,
        weights=slowest.weights,
        in_flight=dict(in_flight),
        trips=tuple(trips.values()),
        requests=sum(o.requests for o in seen),
        failed=sum(o.failed for o in seen),
        table=slowest.table,
    )


def _failed(message: str, *, retriable: bool = True) -> BackendError:
    return BackendError(f"gateway: {message}", backend="gateway", retriable=retriable)


def _expect(response: httpx.Response) -> httpx.Response:
    if response.status_code != 200:
        retriable = response.status_code >= 500 or response.status_code == 429
        raise _failed(f"{response.status_code} {_message(response)}", retriable=retriable)
    return response


def _code(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["code"])
    except (ValueError, LookupError, TypeError):
        return ""


def _message(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return response.text[:200]
