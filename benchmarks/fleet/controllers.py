"""Many services' controllers in one process, each in a thread of its own, as it runs alone.

``python controllers.py`` with one JSON object on standard input: roots (workspaces), seconds (of a
tick). Says ``ready`` when all are open, and goes on until its input ends; then prints a JSON object
from each root to its ticks, [when it began on the monotonic clock, seconds it took, whether it
failed], and ends.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from pathlib import Path

from intonaco.app import open_app
from intonaco.controller import Controller
from intonaco.notify.log import LogNotifier


class Timed(Controller):
    """Notes each of its ticks."""

    ticks: list[tuple[float, float, bool]]

    def tick(self) -> bool:
        began, failed = time.monotonic(), True
        try:
            held = super().tick()
            failed = not held
            return held
        finally:
            self.ticks.append((began, time.monotonic() - began, failed))


def main() -> None:
    task = json.loads(sys.stdin.readline())
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    controllers = {}
    for root in task["roots"]:
        app = open_app(Path(root))
        controller = Timed(app.parts(), holder="fleet", notifier=LogNotifier())
        controller.ticks = []
        controllers[root] = controller
    stop = threading.Event()
    threads = [
        threading.Thread(target=c.run, args=(stop,), kwargs={"seconds": task["seconds"]})
        for c in controllers.values()
    ]
    print("ready", flush=True)
    for thread in threads:
        thread.start()
    sys.stdin.read()
    stop.set()
    for thread in threads:
        thread.join()
    print(json.dumps({root: c.ticks for root, c in controllers.items()}))


if __name__ == "__main__":
    main()
