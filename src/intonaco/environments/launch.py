"""Build an environment if need be, then become a process in it.

``python -m intonaco.environments.launch --workspace DIR --environment ID -- MODULE ARGUMENTS``

Whoever starts it knows the pid of the later process at once and need not wait: a build that takes
minutes blocks nobody, outlives its starter, and ends in exit code 4 with a last line that says why.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from pathlib import Path

from intonaco.environments.store import EnvironmentStore, become
from intonaco.errors import IntonacoError
from intonaco.workspace import Workspace

log = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="intonaco.environments.launch")
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--environment", required=True)
    parser.add_argument("--base", default="auto")
    parser.add_argument("--timeout-s", type=float, default=3600.0)
    parser.add_argument("command", nargs="+", help="MODULE ARGUMENTS")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    signal.signal(signal.SIGTERM, _stop)
    store = EnvironmentStore(Workspace(args.workspace), base=args.base, timeout_s=args.timeout_s)
    module, *arguments = args.command
    try:
        log.info(
            "building environment %s for %s",
            args.environment[:10],
            module,
            extra={"action": "environment.build"},
        )
        python = store.build(args.environment)
        become(python, store.code(), module, arguments)
    except IntonacoError as error:
        log.error("%s", error, extra={"action": "environment.failed"})
        return error.exit_code
    return 0


def _stop(*_: object) -> None:
    raise SystemExit(128 + signal.SIGTERM)  # ends the installer that it waits for, too


if __name__ == "__main__":
    sys.exit(main())
