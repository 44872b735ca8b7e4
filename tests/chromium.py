"""Drives Debian's ``chromium``, headless, over its DevTools protocol on a pair of pipes: no port,
no driver, no library. https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from select import select
from typing import Any, Self

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser")
LIMIT_S = 60.0
_KEYS = {"ArrowLeft": 37, "ArrowRight": 39, "ArrowDown": 40, "s": 83, "t": 84, "u": 85, "z": 90}


class Chromium:
    """One browser; ``page`` opens a tab in a profile of its own."""

    def __init__(self, profile: Path) -> None:
        assert PROGRAM is not None
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        for end in (theirs_in, theirs_out):
            os.set_inheritable(end, True)
        # Chromium reads commands from descriptor 3 and writes answers to 4.
        script = f'exec "$0" "$@" 3<&{theirs_in} 4>&{theirs_out}'
        options = (
            *("--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--no-first-run"),
            *("--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--mute-audio"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            f"--user-data-dir={profile}",
        )
        self.process = subprocess.Popen(
            ["bash", "-c", script, PROGRAM, *options, "about:blank"],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._buffer = b""
        self._number = 0
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """The result of a command. Raises RuntimeError with what Chromium says is wrong."""
        self._number += 1
        said: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if session is not None:
            said["sessionId"] = session
        os.write(self._out, json.dumps(said).encode() + b"\0")
        end = time.monotonic() + LIMIT_S
        while True:
            told = self._read(end)
            if told.get("id") == self._number:
                if "error" in told:
                    raise RuntimeError(f"{method}: {told['error']['message']}")
                result: dict[str, Any] = told["result"]
                return result
            self.events.append(told)

    def _read(self, end: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            left = end - time.monotonic()
            if left <= 0 or not select([self._in], [], [], left)[0]:
                raise TimeoutError("chromium does not answer")
            part = os.read(self._in, 1 << 16)
            if not part:
                raise RuntimeError(f"chromium ended with {self.process.wait(10)}")
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        told: dict[str, Any] = json.loads(message)
        return told

    def page(self, *, width: int = 1280, height: int = 800) -> Page:
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)
        attached = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        return Page(self, attached["sessionId"], width, height)

    def close(self) -> None:
        os.close(self._out)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, 9)  # its own session: this browser's processes only
            self.process.wait(10)
        os.close(self._in)


class Page:
    def __init__(self, browser: Chromium, session: str, width: int, height: int) -> None:
        self.browser = browser
        self.session = session
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)  # as if in front, always
        self.size(width, height)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self.browser.call(method, self.session, **params)

    def size(self, width: int, height: int, *, mobile: bool = False) -> Self:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=mobile,
        )  # fmt: skip
        return self

    def dark(self, on: bool = True) -> Self:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if on else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        return self

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)

    def value(self, expression: str) -> Any:
        """Of a JavaScript expression, awaited. Raises RuntimeError if it throws."""
        told = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in told:
            raise RuntimeError(f"{expression}: {told['exceptionDetails']}")
        return told["result"].get("value")

    def until(self, expression: str, *, seconds: float = LIMIT_S) -> Any:
        """Its value once it is true. Raises TimeoutError."""
        end = time.monotonic() + seconds
        while True:
            try:
                found = self.value(expression)
            except RuntimeError:  # the page is just changing
                found = None
            if found:
                return found
            if time.monotonic() > end:
                raise TimeoutError(f"{expression}; {self.value('document.body.innerText')!r}")
            time.sleep(0.02)

    def press(self, key: str) -> None:
        """A key, down and up, as a keyboard gives it."""
        self.down(key)
        self.up(key)

    def down(self, key: str) -> None:
        text = {"text": key} if len(key) == 1 else {}
        kind = "keyDown" if text else "rawKeyDown"
        code = _KEYS[key]
        self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **text)

    def up(self, key: str) -> None:
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=_KEYS[key])

    def click(self, selector: str) -> None:
        box = self.value(
            f"(() => {{ const r = document.querySelector({json.dumps(selector)})"
            ".getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call(
                "Input.dispatchMouseEvent",
                type=kind, x=box[0], y=box[1], button="left", clickCount=1,
            )  # fmt: skip

    def screenshot(self, file: Path) -> None:
        told = self.call("Page.captureScreenshot", format="png")
        file.write_bytes(base64.b64decode(told["data"]))

    def complaints(self) -> list[str]:
        """Errors that pages threw, and what the content security policy refused."""
        found = []
        for event in self.browser.events:
            if event.get("sessionId") != self.session:
                continue
            if event["method"] == "Runtime.exceptionThrown":
                found.append(str(event["params"]["exceptionDetails"]))
            entry = event["params"].get("entry", {})
            if event["method"] == "Log.entryAdded" and entry.get("source") == "security":
                found.append(entry["text"])
        return found


@contextmanager
def chromium(profile: Path) -> Iterator[Chromium]:
    browser = Chromium(profile)
    try:
        yield browser
    finally:
        browser.close()
