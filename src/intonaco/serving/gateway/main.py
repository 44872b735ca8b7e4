"""Start the gateway: ``python -m intonaco.serving.gateway.main --workspace DIR``."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from pathlib import Path

import httpx

from intonaco.clock import Clock, SystemClock
from intonaco.config import Config, load
from intonaco.errors import Conflict, IntonacoError
from intonaco.segment_log import SegmentWriter
from intonaco.serving.gateway.access import new_id
from intonaco.serving.gateway.app import Gateway, assemble
from intonaco.serving.gateway.copies import Copies
from intonaco.serving.gateway.digests import Digests
from intonaco.serving.gateway.dispatch import Dispatcher
from intonaco.serving.gateway.metrics import Metrics
from intonaco.serving.gateway.recorder import Recorder
from intonaco.serving.gateway.state import GatewayState
from intonaco.serving.gateway.upstream import Upstream, client
from intonaco.serving.http import GATEWAY_KEEP_ALIVE_S, bind, on_stop, server
from intonaco.workspace import Workspace

log = logging.getLogger(__name__)

NAME = "gateway"


def build(
    workspace: Workspace, config: Config, *, http: httpx.AsyncClient, clock: Clock
) -> Gateway:
    """The gateway of a workspace, with the table it followed last."""
    settings = config.serving.gateway
    metrics = Metrics()
    state = GatewayState(workspace, settings.breaker_failures)
    state.load()
    dispatcher = Dispatcher(
        state,
        Upstream(state, http, clock),
        clock,
        challenger_timeout_s=settings.challenger_timeout_s,
    )
    recorder = Recorder(
        workspace,
        config.service,
        settings.keep_images,
        metrics,
        SegmentWriter(workspace.records, NAME),
        Digests(workspace.instance_key()),
        settings.prompts,
    )
    copies = Copies(
        dispatcher, recorder, metrics, clock, new_id, timeout_s=settings.challenger_timeout_s
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
    )


async def run(workspace: Workspace, config: Config) -> None:
    """Serve until SIGTERM. Raises ConfigError for a taken port, Conflict if a gateway runs."""
    if (running := workspace.process(NAME)) is not None:
        raise Conflict(
            f"a gateway of this workspace runs already (pid {running.pid})",
            hint="stop it first, or give this one a workspace of its own",
        )
    settings = config.serving.gateway
    public, url = bind(settings.host, settings.port, what="gateway")
    admin, admin_url = bind("127.0.0.1", 0, what="gateway (admin)")
    async with client() as http:
        gateway = build(workspace, config, http=http, clock=SystemClock())
        grace = int(settings.request_timeout_s)
        servers = (
            server(gateway.public_app(), keep_alive_s=GATEWAY_KEEP_ALIVE_S, grace_s=grace),
            server(gateway.admin_app(), keep_alive_s=GATEWAY_KEEP_ALIVE_S, grace_s=1),
        )
        on_stop(*servers)
        workspace.announce(NAME, url=url, admin_url=admin_url, service_id=config.service)
        log.info("listens at %s", url, extra={"action": "gateway.ready"})
        housekeeping = asyncio.create_task(gateway.keep_house())
        await asyncio.gather(servers[0].serve(sockets=[public]), servers[1].serve(sockets=[admin]))
        housekeeping.cancel()
        await gateway.close()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="intonaco.serving.gateway.main")
    parser.add_argument("--workspace", type=Path, required=True)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    for noisy in ("httpx", "uvicorn.error"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # broken forms are the client's
    workspace = Workspace(args.workspace.resolve())
    try:
        asyncio.run(run(workspace, load(workspace.config_file)))
    except IntonacoError as error:
        sys.stderr.write(f"{error}\n" + (f"hint: {error.hint}\n" if error.hint else ""))
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
