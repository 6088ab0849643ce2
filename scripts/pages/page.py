"""The page in a browser, and the table of its checks."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from browser import Browser
from page_probes import GIVE_FILE

PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAoAAAAKCAYAAACNMs+9AAAAFUlEQVR42mNk"
    "+M9Qz0AEYBxVSF+FABJADveWkH6oAAAAAElFTkSuQmCC"
)
MODEL = "document.querySelector('#model').textContent"
KEY_DIALOG = "document.querySelector('#key[open]')"
IDLE = "document.querySelector('#stop').hidden"
Check = Callable[["Page"], None]


class Table(list[tuple[str, Check]]):
    """Checks, each with what it shows."""

    def add(self, what: str) -> Callable[[Check], Check]:
        """Return the decorator that adds a check."""

        def append(check: Check) -> Check:
            self.append((what, check))
            return check

        return append


class Page:
    """The page in a browser, and what serves it: a stub, or the real server."""

    def __init__(self, browser: Browser, server: Any) -> None:
        self.browser = browser
        self.server = server

    def fresh(self, width: int = 1280) -> None:
        """Open the page as if it had never been opened."""
        self.browser.size(width, 800)
        self.browser.go(self.server.url + "page/icon.svg")
        origin = self.server.url.rstrip("/")
        self.browser.devtools("Storage.clearDataForOrigin", origin=origin, storageTypes="all")
        self.browser.run("sessionStorage.clear()")
        self.open()

    def open(self) -> None:
        """Open the page."""
        self.browser.go(self.server.url)
        self.browser.wait(
            "the model or a question", f"{MODEL} || document.querySelector('#key[open]')"
        )

    def ask(self, text: str) -> None:
        """Type a message and send it by the keyboard."""
        self.browser.run("document.querySelector('#field').focus()")
        self.browser.type(text)
        self.browser.press("Enter")

    def answer(self, text: str) -> str:
        """Ask, wait for the whole answer and return its text."""
        count = self.count(".answer")
        self.ask(text)
        self.browser.wait(
            "an answer", lambda: self.count(".answer") > count or self.count(".answer.last")
        )
        self.browser.wait("the end of an answer", IDLE)
        return self.text(".answer:last-of-type")

    def text(self, selector: str) -> str:
        """Return what is to be read in the last element that fits."""
        return self.browser.run(
            "return [...document.querySelectorAll(arguments[0])].at(-1)?.innerText ?? ''", selector
        )

    def count(self, selector: str) -> int:
        """Return how many elements fit."""
        return self.browser.run("return document.querySelectorAll(arguments[0]).length", selector)

    def give(self, how: str, name: str, kind: str) -> None:
        """Drop or paste a file."""
        assert self.browser.run(GIVE_FILE, how, name, kind, PIXEL)

    def load(self, conversation: Any) -> None:
        """Import a conversation from a file."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "conversation.json"
            path.write_text(json.dumps(conversation))
            self.browser.put_files("#import-file", [path])
            self.browser.wait("the imported conversation", "document.querySelector('.message')")
