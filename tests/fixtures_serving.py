"""Real gateway processes for tests, and waiting for them."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from intonaco.messages import ProcessInfo
from intonaco.workspace import Workspace

T = TypeVar("T")


def until(look: Callable[[], T], good: Callable[[T], bool], timeout_s: float = 120.0) -> T:
    """Look until it is good; fails the test if it never is."""
    end = time.monotonic() + timeout_s
    while not good(seen := look()):
        assert time.monotonic() < end, f"still {seen!r}"
        time.sleep(0.05)
    return seen


@contextmanager
def gateway_process(workspace: Workspace, name: str = "gateway") -> Iterator[ProcessInfo]:
    """A gateway of its own process, ended at the end unless the test ended it."""
    child = subprocess.Popen(
        [
            *(sys.executable, "-m", "intonaco.serving.gateway.main"),
            *("--workspace", str(workspace.root), "--name", name),
        ]
    )
    try:
        info = until(
            lambda: (child.poll(), workspace.process(name)),
            lambda s: s[0] is not None or (s[1] is not None and s[1].pid == child.pid),
        )[1]
        assert info is not None, f"{name} ended with {child.returncode}"
        yield info
    finally:
        child.terminate()
        try:
            child.wait(20)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait(20)
