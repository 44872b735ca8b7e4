"""Start a gateway: ``python -m intonaco.serving.gateway.main --workspace DIR [--name NAME]``.

With ``serving.gateway.processes`` over 1 there are several side by side, ``gateway``,
``gateway-1`` and so on: each a process with its own admin port, announcement and log of records,
all on one public port.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import fcntl
import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import uvloop

from intonaco.clock import Clock, SystemClock
from intonaco.config import Config, load
from intonaco.config import Gateway as Settings
from intonaco.errors import Conflict, IntonacoError
from intonaco.plugins import OTEL, need_extra
from intonaco.segment_log import SegmentWriter
from intonaco.serving.gateway.access import new_id
from intonaco.serving.gateway.app import Gateway, assemble
from intonaco.serving.gateway.copies import Copies
from intonaco.serving.gateway.digests import Digests
from intonaco.serving.gateway.dispatch import Dispatcher
from intonaco.serving.gateway.foreign import Foreign
from intonaco.serving.gateway.metrics import Metrics
from intonaco.serving.gateway.recorder import Recorder
from intonaco.serving.gateway.state import GatewayState
from intonaco.serving.gateway.upstream import Upstream, client
from intonaco.serving.http import GATEWAY_KEEP_ALIVE_S, bind, on_stop, server
from intonaco.workspace import Workspace

if TYPE_CHECKING:
    from intonaco.serving.gateway.spans import GatewayTracing

log = logging.getLogger(__name__)

NAME = "gateway"
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def build(
    workspace: Workspace,
    config: Config,
    *,
    http: httpx.AsyncClient,
    clock: Clock,
    name: str = NAME,
    tracing: GatewayTracing | None = None,
) -> Gateway:
    """The gateway of a workspace, with the table it followed last."""
    settings = config.serving.gateway
    metrics = Metrics()
    state = GatewayState(workspace, settings.breaker_failures)
    state.load()
    foreign = Foreign(
        workspace,
        config.serving.upstreams,
        os.environ,
        clock,
        most_bytes=settings.max_response_bytes,
        pixels=settings.limits.upload_pixels,
        decodes=settings.limits.decodes,
    )
    dispatcher = Dispatcher(
        state,
        Upstream(
            state,
            http,
            clock,
            most_bytes=settings.max_response_bytes,
            foreign=foreign,
            tracing=tracing,
        ),
        clock,
        challenger_timeout_s=settings.challenger_timeout_s,
    )
    recorder = Recorder(
        workspace,
        config.service,
        settings.keep_images,
        metrics,
        SegmentWriter(workspace.records, name, fsync=settings.records_fsync),
        Digests(workspace.instance_key()),
        settings.prompts,
        settings.keep_conditions,
    )
    copies = Copies(
        dispatcher,
        recorder,
        metrics,
        clock,
        new_id,
        timeout_s=settings.challenger_timeout_s,
        tracing=tracing,
    )
    dispatcher.send_probe = copies.breaker_probe
    return assemble(
        workspace,
        config,
        state=state,
        dispatcher=dispatcher,
        recorder=recorder,
        copies=copies,
        metrics=metrics,
        clock=clock,
        environ=os.environ,
        tracing=tracing,
    )


def open_tracing(config: Config, clock: Clock, name: str) -> GatewayTracing | None:
    """None unless the configuration asks for it: then nothing of OpenTelemetry is imported. Raises
    ConfigError if it is not installed."""
    settings = config.serving.tracing
    if settings is None:
        return None
    need_extra("serving.tracing", *OTEL)
    from intonaco.serving.gateway.spans import GatewayTracing
    from intonaco.serving.tracing import exporting

    return GatewayTracing(
        exporting(settings.endpoint),
        service=config.service,
        name=name,
        share=settings.sample,
        clients_decide=settings.clients_decide,
        now=clock.now,
    )


async def run(workspace: Workspace, config: Config, name: str = NAME) -> None:
    """Serve until SIGTERM. Raises ConfigError for a taken port and for an extra that is missing,
    Conflict if a gateway of that name runs."""
    settings = config.serving.gateway
    clock = SystemClock()
    tracing = open_tracing(config, clock, name)
    admin, admin_url = bind("127.0.0.1", 0, what="gateway (admin)")
    async with client(settings.max_response_bytes) as http:
        # What fails lets go of its port before the next one looks whether that is free.
        with _alone(workspace), ExitStack() as taken:
            taken.callback(admin.close)
            if (running := workspace.process(name)) is not None:
                raise Conflict(
                    f"a {name} of this workspace runs already (pid {running.pid})",
                    hint="stop it first, or give this one a workspace of its own",
                )
            public, url = _public(workspace, settings, name)
            taken.callback(public.close)
            gateway = build(workspace, config, http=http, clock=clock, name=name, tracing=tracing)
            workspace.announce(name, url=url, admin_url=admin_url, service_id=config.service)
            taken.pop_all()
        grace = int(settings.request_timeout_s)
        servers = (
            server(gateway.public_app(), keep_alive_s=GATEWAY_KEEP_ALIVE_S, grace_s=grace),
            server(gateway.admin_app(), keep_alive_s=GATEWAY_KEEP_ALIVE_S, grace_s=1),
        )
        on_stop(*servers)
        log.info("listens at %s", url, extra={"action": "gateway.ready"})
        looking = asyncio.create_task(gateway.state.keep_looking())
        housekeeping = asyncio.create_task(gateway.keep_house())
        counting = asyncio.create_task(gateway.tallies.keep())
        await asyncio.gather(servers[0].serve(sockets=[public]), servers[1].serve(sockets=[admin]))
        looking.cancel()
        housekeeping.cancel()
        counting.cancel()
        await gateway.close()


@contextmanager
def _alone(workspace: Workspace) -> Iterator[None]:
    """One gateway of a workspace takes its port at a time."""
    workspace.run.mkdir(parents=True, exist_ok=True)
    with (workspace.run / "gateways-start.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _public(workspace: Workspace, settings: Settings, name: str) -> tuple[socket.socket, str]:
    """The public socket. The port is shared with this workspace's gateways and nobody else: it is
    the one that they have, or one that is free. Raises ConfigError."""
    if settings.processes == 1:
        return bind(settings.host, settings.port, what=name)
    url = next((info.url for info in workspace.gateways() if info.url), None)
    if url is None:
        # Sharing is asked of the system, not of who listens there: make sure that nobody does.
        free, url = bind(settings.host, settings.port, what=name)
        free.close()
    port = int(url.rpartition(":")[2])
    return bind(settings.host, port, what=name, shared=True)


def keep_memory() -> None:
    """Keep freed blocks of the size of pictures. By default the C library gives them back to the
    system and gets them again page by page, which took a third of the gateway's time."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return  # not glibc
    mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)  # the most that glibc allows
    mallopt(_M_TRIM_THRESHOLD, 256 * 2**20)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="intonaco.serving.gateway.main")
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--name", default=NAME, help="gateway, or gateway-N beside it")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    for noisy in ("httpx", "uvicorn.error"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # broken forms are the client's
    keep_memory()
    workspace = Workspace(args.workspace.resolve())
    try:
        uvloop.run(run(workspace, load(workspace.config_file), args.name))
    except IntonacoError as error:
        sys.stderr.write(f"{error}\n" + (f"hint: {error.hint}\n" if error.hint else ""))
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
