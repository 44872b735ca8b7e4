"""The controller process: ``python -m intonaco.cli.run_controller --workspace DIR``."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
from pathlib import Path

from intonaco.app import open_app
from intonaco.errors import IntonacoError


def main() -> None:
    parser = argparse.ArgumentParser(prog="intonaco run controller")
    parser.add_argument("--workspace", type=Path, required=True)
    arguments = parser.parse_args()
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    try:
        app = open_app(arguments.workspace)
        controller = app.controller()
    except IntonacoError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    app.workspace.announce("controller")
    controller.run(stop, seconds=app.config.tick_seconds)


if __name__ == "__main__":
    main()
