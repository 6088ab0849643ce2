"""Checks of the page with the real server, whose demo model answers, behind a key."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from browser import free_port, wait_for_port
from page import IDLE, Page, Table
from stub_server import KEY

SAMPLES = Path(__file__).parents[1] / "samples"
START_S = 120.0
# The demo thinks about stories alone.
STORY = (
    "Tom lived near the park. Tom had a red ball. Tom took the red ball to the shop. "
    'Lily was waiting at the shop. Lily had a blue kite. "I like your ball," said Lily. '
    "Tom gave the ball to Lily. Lily was happy and smiled."
)
CHECKS = Table()


class Served:
    """The address of a server that runs."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/"


@contextlib.contextmanager
def serving() -> Iterator[Served]:
    """Start `hlwq serve` with the demo; end it."""
    port = free_port()
    command = [sys.executable, "-m", "hlwq_mlx.serve", "--port", str(port)]
    environment = os.environ | {"HLWQ_API_KEY": KEY}
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment) as process:
        try:
            wait_for_port(port, START_S)
            yield Served(port)
        finally:
            process.terminate()


def unlock(page: Page) -> None:
    """Give the key that the page asks for when it opens."""
    page.browser.wait("the dialog", "document.querySelector('#key[open]')")
    page.browser.type(KEY)
    page.browser.press("Enter")
    page.browser.wait("the model", "document.querySelector('#model').innerText.includes('demo')")


@CHECKS.add("the key is asked for; model, variant and memory are shown")
def opens(page: Page) -> None:
    unlock(page)
    shown = page.text("#model")
    assert "PQ5" in shown and " MB" in shown and "4k" in shown, shown


@CHECKS.add("questions are answered; the second takes its prompt from the cache")
def answers(page: Page) -> None:
    unlock(page)
    assert "4" in page.answer("What is 2+2?")
    page.answer("What is 3+3?")
    assert "tokens" in page.text(".stats") and "cached" in page.text(".stats"), page.text(".stats")


@CHECKS.add("a picture and a sound are seen and heard")
def sees_and_hears(page: Page) -> None:
    unlock(page)
    page.browser.put_files("#files", [SAMPLES / "seven.png"])
    page.browser.wait("the picture", "document.querySelector('#attachments img')")
    seen = page.answer("Which digit is this?")
    page.browser.press("Control", "Shift", "o")
    page.browser.put_files("#files", [SAMPLES / "three.wav"])
    page.browser.wait("the sound", "document.querySelector('#attachments audio')")
    heard = page.answer("Which digit do you hear?")
    assert "error" not in page.browser.run("return document.querySelector('#messages').innerHTML")
    assert ("7" in seen or "seven" in seen) and ("3" in heard or "three" in heard), (seen, heard)


@CHECKS.add("a thought is folded")
def thinks(page: Page) -> None:
    unlock(page)
    page.browser.click("#think")
    page.browser.run("document.querySelector('#field').value = arguments[0]", STORY)
    page.answer(" What color was the ball?")
    assert page.count("details.thought:not([hidden])") == 1, page.text(".answer")


@CHECKS.add("a call of a tool is made from the page, its result sent, and answered")
def calls(page: Page) -> None:
    unlock(page)
    page.load(
        {
            "tools": [{"type": "function", "function": {"name": "now", "parameters": {}}}],
            "messages": [
                {"role": "user", "content": "What time is it?"},
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {
                            "id": "call_1",
                            "type": "function",
                            "function": {"name": "now", "arguments": "{}"},
                        }
                    ],
                },
            ],
        }
    )
    page.browser.run("document.querySelector('form.results textarea').focus()")
    page.browser.type("noon")
    page.browser.press("Tab")
    page.browser.press("Enter")
    page.browser.wait("an answer", "document.querySelectorAll('.answer').length === 2")
    page.browser.wait("its end", IDLE)
    assert page.count(".answer .error") == 0, page.text(".answer")


@CHECKS.add("what the server refuses is said in its words")
def refuses(page: Page) -> None:
    unlock(page)
    page.browser.run("document.querySelector('#field').value = 'word '.repeat(9000)")
    said = page.answer("")
    assert "4096" in said.replace(",", ""), said
