"""Check the chat page in headless Chromium, and print a table.

    python scripts/pages/check_page.py [FOLDER] [--only WORD]

Most checks meet `stub_server.py`, whose model has a hostile name and answers as it is told; the
last ones meet `hlwq serve` with the demo. With a FOLDER, pictures of the page are saved there: 360
and 1280 px wide, light and dark. Needs Debian's chromium and chromium-driver. Exits with 1 when a
check fails.
"""

import argparse
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

import access_checks
import served_checks
import talk_checks
from browser import Browser, BrowserError, browsing
from page import IDLE, Check, Page
from stub_server import HOSTILE, Stub

FAULTS = ("Content Security Policy", "Uncaught")


def main() -> None:
    """Run the checks that are asked for, then take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, help="where pictures go")
    parser.add_argument("--only", default="", help="run the checks that have this in their line")
    chosen = parser.parse_args()
    stubbed = [each for each in talk_checks.CHECKS + access_checks.CHECKS if chosen.only in each[0]]
    served = [each for each in served_checks.CHECKS if chosen.only in each[0]]
    print("| what the page does | seen |\n|---|---|", flush=True)
    with browsing() as browser:
        passed = [passes(browser, serve(HOSTILE), *each) for each in stubbed]
        if served:
            with served_checks.serving() as server:
                passed += [passes(browser, server, *each) for each in served]
        if chosen.folder:
            chosen.folder.mkdir(parents=True, exist_ok=True)
            take_pictures(Page(browser, serve("gemma-4-E4B-it-HLWQ")), chosen.folder)
    sys.exit(not all(passed))


def serve(model: str) -> Stub:
    """Start a stub in the background."""
    stub = Stub(model)
    threading.Thread(target=stub.serve_forever, daemon=True).start()
    return stub


def passes(browser: Browser, server: Any, what: str, check: Check) -> bool:
    """Run a check on a page that was never opened; print its line."""
    page = Page(browser, server)
    try:
        page.fresh()
        browser.log()
        check(page)
        said = [line for line in browser.log() if any(word in line for word in FAULTS)]
        assert not said, said
    except (AssertionError, BrowserError) as problem:
        print(f"| {what} | **no** |", flush=True)
        where = traceback.extract_tb(problem.__traceback__)[-1]
        print(f"{where.name}:{where.lineno}: {where.line}\n{str(problem)[:1500]}", file=sys.stderr)
        return False
    print(f"| {what} | yes |", flush=True)
    return True


def take_pictures(page: Page, folder: Path) -> None:
    """Save what the page looks like: empty, in a conversation, with its list and a dialog."""
    for width in (360, 1280):
        for scheme in ("light", "dark"):
            page.browser.prefer(color_scheme=scheme, reduced_motion="reduce")
            page.fresh(width)
            shoot = lambda name: page.browser.picture(folder / f"{name}-{width}-{scheme}.png")  # noqa: B023, E731
            shoot("empty")
            page.give("drop", "square.png", "image/png")
            page.browser.wait("the file", "document.querySelector('#attachments img')")
            shoot("file")
            page.answer("What is this?")
            page.answer("think")
            page.answer("tool")
            shoot("tool")
            page.browser.press("Control", "Shift", "o")
            page.answer("markdown")
            page.browser.run("document.querySelector('#scroll').scrollTop = 0")
            shoot("markdown")
            if width < 800:
                page.browser.click("#menu")
                shoot("list")
                page.browser.press("Escape")
            page.browser.click("#open-settings")
            shoot("settings")
            page.browser.press("Escape")
            page.ask("forever")
            page.browser.wait(
                "words", "document.querySelector('.answer:last-of-type').innerText.length > 200"
            )
            shoot("streaming")
            page.browser.press("Escape")
            page.browser.wait("the end", IDLE)


if __name__ == "__main__":
    main()
