"""A real browser: Chromium without a window, spoken to by its own protocol (Chrome DevTools Protocol).

Enough of it to open a page, press keys, change the size of the window and ask the page what it shows.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import requests
import websocket

from tests.integration.tiers import wait_until

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Browser", "program"]

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def program() -> str:
    """The browser's program, or ""."""
    return next((path for name in _NAMES if (path := shutil.which(name))), "")


class Browser:
    """One page of one browser."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [
                *(program(), "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"),
                *("--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={"HOME": str(folder), "PATH": os.environ.get("PATH", os.defpath)},
        )
        place = folder / "DevToolsActivePort"
        wait_until(lambda: place.exists() and place.read_text().count("\n"), within=30, what="the browser listens")
        port = place.read_text().split()[0]
        with requests.get(f"http://127.0.0.1:{port}/json/list", timeout=20) as answer:
            (page,) = [each for each in answer.json() if each["type"] == "page"]
        self._channel = websocket.create_connection(page["webSocketDebuggerUrl"], timeout=30, suppress_origin=True)
        self._number = 0
        self.ask("Page.enable")

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and wait for its answer."""
        self._number += 1
        self._channel.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._channel.recv())
            if message.get("id") == self._number:
                assert "error" not in message, message
                result: dict[str, Any] = message["result"]
                return result

    def open(self, address: str) -> None:
        """Go to a page."""
        self.ask("Page.navigate", url=address)

    def evaluate(self, expression: str) -> Any:
        """What an expression of the page is."""
        return self.ask("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def resize(self, width: int, height: int) -> None:
        """Draw the window larger or smaller."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def type(self, text: str) -> None:
        """Press the keys of a text."""
        for letter in text:
            if letter == "\n":
                self.ask("Input.dispatchKeyEvent", type="keyDown", key="Enter", text="\r", windowsVirtualKeyCode=13)
                self.ask("Input.dispatchKeyEvent", type="keyUp", key="Enter", windowsVirtualKeyCode=13)
            else:
                self.ask("Input.dispatchKeyEvent", type="char", text=letter)

    def press_control(self, letter: str) -> None:
        """Press Ctrl and a letter."""
        code = ord(letter.upper())
        event = {"key": letter, "code": f"Key{letter.upper()}", "modifiers": 2, "windowsVirtualKeyCode": code}
        self.ask("Input.dispatchKeyEvent", type="rawKeyDown", **event)
        self.ask("Input.dispatchKeyEvent", type="keyUp", **event)

    def close(self) -> None:
        """End it, with all of its processes."""
        self._channel.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
