"""The terminal's page in a real browser, on a real container: keys, colours, full screens, size, and its end."""

from __future__ import annotations

import os
import re
import sys
from typing import TYPE_CHECKING

import pytest

from tests.integration.tiers import wait_until
from tests.jupyter.browser import Browser
from tests.jupyter.test_server import TOKEN, server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.jupyter.test_server import Server

__all__ = ["server"]

pytestmark = [pytest.mark.browser, pytest.mark.userns, pytest.mark.overlay, pytest.mark.slow]


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    """Lend one."""
    browser = Browser(tmp_path)
    try:
        yield browser
    finally:
        browser.close()


def shown(browser: Browser) -> str:
    """What the terminal shows, with one kind of space."""
    text = browser.evaluate("document.querySelector('.xterm-rows')?.innerText ?? ''")
    return str(text).replace("\xa0", " ")


def see(browser: Browser, pattern: str) -> re.Match[str]:
    """Wait until the terminal shows this."""
    wait_until(lambda: re.search(pattern, shown(browser)), within=30, what=f"{pattern} in {shown(browser)!r}")
    found = re.search(pattern, shown(browser))
    assert found
    return found


def test_shell_in_a_browser(server: Server, browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Everything a person does with it."""
    store = str(tmp_path_factory.mktemp("store"))
    line = (sys.executable, "-m", "nbcontainer", "run", "-it", "-w", "/tmp", "-e", "PS1=> ", "host", "sh")
    page = server.ticket(*line, NBCONTAINER_ROOT=store, PATH=os.environ["PATH"])
    browser.resize(800, 400)
    browser.open(f"{page}?token={TOKEN}")
    see(browser, r"> ")
    browser.type("tty; echo $TERM; printf '\\033[34mblue\\033[0m\\n'\n")
    see(browser, r"/dev/pts/0\s+xterm\s+blue")
    assert browser.evaluate("[...document.querySelectorAll('.xterm-fg-4')].some(e => e.textContent == 'blue')")
    browser.type("clear; stty size\n")
    rows, columns = (int(word) for word in see(browser, r"(\d+) (\d+)\s+> ").groups())
    browser.resize(1000, 700)
    browser.type("clear; stty size\n")
    wait_until(lambda: f"{rows} {columns}" not in shown(browser), what="the screen is cleared")
    wider = [int(word) for word in see(browser, r"(\d+) (\d+)\s+> ").groups()]
    assert wider[0] > rows
    assert wider[1] > columns
    browser.type("sleep 1000; echo code $?\n")
    see(browser, r"echo code")
    browser.press_control("c")
    browser.type("echo 'a ö $'; exit 3\n")
    see(browser, r"a ö \$\s")
    see(browser, r"\[ended\]")
    browser.open(page)
    wait_until(lambda: "404" in str(browser.evaluate("document.title + document.body.innerText")), what="it is over")
