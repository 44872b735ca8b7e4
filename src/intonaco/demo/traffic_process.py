"""The traffic generator as a process of its own, steered by lines on its standard input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from threading import Thread
from typing import Any

from intonaco.supervisor import ENVIRONMENT
from intonaco.workspace import Workspace


class TrafficProcess:
    """The traffic generator as a process of its own."""

    def __init__(self, url: str, seed: int, workspace: Workspace) -> None:

        self.counts: dict[str, Any] = {}
        with ExitStack() as stack:
            log = stack.enter_context((workspace.logs / "traffic.log").open("ab"))
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "intonaco.demo.traffic",
                    "--url",
                    url,
                    "--seed",
                    str(seed),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, **ENVIRONMENT},
            )
        self._reader = Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def mix(self, **settings: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(settings) + "\n")
        self._process.stdin.flush()

    def stop(self) -> dict[str, Any]:
        """Let the requests in flight end; the final counts."""
        if self.alive:
            self.mix(stop=True)
        try:
            self._process.wait(90)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._reader.join(5)
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self.counts

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.counts = json.loads(line)
