"""The console's process: ``python -m intonaco.console.main --workspace DIR``."""

from __future__ import annotations

import argparse
import logging
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from intonaco import config as configuration
from intonaco.clock import SystemClock
from intonaco.console.app import create_app
from intonaco.console.observe import Observer
from intonaco.errors import ConfigError, IntonacoError
from intonaco.ledger import Ledger
from intonaco.serving.client import GatewayRouter
from intonaco.serving.http import BoundedHead
from intonaco.workspace import Workspace

logger = logging.getLogger(__name__)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket, so that a taken port is known before anything is announced. Raises
    ConfigError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        raise ConfigError(
            f"console.port: {host}:{port} cannot be used: {error.strerror or error}",
            hint="set console.port to a free one, or to 0 for any",
        ) from error


def settings(app: ASGIApp) -> uvicorn.Config:
    """A server that takes heads of a bounded size, and no web sockets."""
    return uvicorn.Config(
        app,
        http=BoundedHead,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=3,
    )


def serve(root: Path) -> None:
    """Serve until told to stop. Raises IntonacoError."""
    workspace = Workspace(root)
    config = configuration.load(workspace.config_file)
    with listen(config.console.host, config.console.port) as server:
        ledger = Ledger.open(workspace.ledger, config.service)
        router = GatewayRouter(workspace)
        observer = Observer(router.observed, SystemClock())
        app = create_app(ledger, workspace, config, observe=observer)
        port = server.getsockname()[1]
        host = f"[{config.console.host}]" if ":" in config.console.host else config.console.host
        url = f"http://{host}:{port}"
        workspace.announce("console", url=url)
        logger.info("console at %s", url, extra={"action": "console_started"})
        uvicorn.Server(settings(app)).run(sockets=[server])
        router.close()
        ledger.close()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="intonaco.console", description=__doc__)
    parser.add_argument("--workspace", type=Path, required=True)
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        serve(given.workspace)
    except IntonacoError as error:
        hint = f"\n  hint: {error.hint}" if error.hint else ""
        sys.stderr.write(f"error: {error}{hint}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
