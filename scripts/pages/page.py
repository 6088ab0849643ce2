"""The page in a browser, and the table of its checks."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from browser import Browser
from page_probes import GIVE_FILE
from stub_server import Stub

PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAoAAAAKCAYAAACNMs+9AAAAFUlEQVR42mNk"
    "+M9Qz0AEYBxVSF+FABJADveWkH6oAAAAAElFTkSuQmCC"
)
IDLE = "document.querySelector('#stop').hidden"
CHECKS: list[tuple[str, Callable[["Page"], None]]] = []


def check(what: str) -> Callable[[Callable[["Page"], None]], Callable[["Page"], None]]:
    """Add a check to the table under what it shows."""

    def add(function: Callable[["Page"], None]) -> Callable[["Page"], None]:
        CHECKS.append((what, function))
        return function

    return add


class Page:
    """The page in a browser, and the stub that serves it."""

    def __init__(self, browser: Browser, stub: Stub) -> None:
        self.browser = browser
        self.stub = stub

    def fresh(self, width: int = 1280) -> None:
        """Open the page as if it had never been opened."""
        self.browser.size(width, 800)
        self.browser.go(self.stub.url + "page/icon.svg")
        origin = self.stub.url.rstrip("/")
        self.browser.devtools("Storage.clearDataForOrigin", origin=origin, storageTypes="all")
        self.open()

    def open(self) -> None:
        """Open the page."""
        self.browser.go(self.stub.url)
        self.browser.wait("the model's name", "document.querySelector('#model').textContent")

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
