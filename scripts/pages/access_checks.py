"""Checks of who can use the page: keyboard, readers of screens, narrow windows, contrast."""

from page import IDLE, Page, Table
from page_probes import CONTRAST, WIDER

NAMED_ROLES = {"button", "textbox", "link", "spinbutton", "dialog", "image", "Audio", "Video"}
CHECKS = Table()


@CHECKS.add("by the keyboard alone: skip link, message, answer, its buttons, the list, a dialog")
def needs_no_mouse(page: Page) -> None:
    page.browser.run("document.body.tabIndex = -1; document.body.focus()")
    page.browser.press("Tab")
    assert page.text(":focus") == "Skip to the message field"
    page.browser.press("Enter")
    page.browser.wait("the field", "document.activeElement.id === 'field'")
    page.answer("hello")
    assert page.browser.run("return document.activeElement.id") == "field"
    order = _tab_through(page)
    wanted = [
        "New conversation",
        "hello",
        "Rename hello",
        "Delete hello",
        "Import",
        "Export",
        "List of conversations",
        "Keyboard shortcuts",
        "Settings",
        "Edit this message",
        "Copy this answer",
        "Answer again",
        "Message",
    ]
    assert [name for name in order if name in wanted] == wanted, order
    page.browser.press("Control", "/")
    assert page.count("#shortcuts[open]") == 1
    page.browser.press("Escape")
    assert page.count("dialog[open]") == 0


def _tab_through(page: Page) -> list[str]:
    page.browser.run("document.activeElement.blur(); document.querySelector('.skip').focus()")
    names = []
    for _ in range(40):
        page.browser.press("Tab")
        name = page.browser.run(
            "const n = document.activeElement; return n.ariaLabel || n.innerText || n.tagName"
        )
        outline = page.browser.run("return getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none" or name == "Message", f"the focus on {name} is not seen"
        names.append(name.strip())
        if name == "Send":
            break
    return names


@CHECKS.add("every control has a name for readers of screens; one main, one h1")
def is_labelled(page: Page) -> None:
    page.give("drop", "heard.wav", "audio/wav")
    for asked in ("markdown", "think", "tool"):
        page.answer(asked)
    for dialog in ("settings", "shortcuts", "key"):
        page.browser.run("document.getElementById(arguments[0]).showModal()", dialog)
        _require_names(page)
        page.browser.run("document.getElementById(arguments[0]).close()", dialog)
    _require_names(page)
    assert page.count("main") == page.count("h1") == 1 and page.count("html[lang]") == 1


def _require_names(page: Page) -> None:
    nodes = page.browser.devtools("Accessibility.getFullAXTree")["nodes"]
    roles = [
        node["role"]["value"]
        for node in nodes
        if not node["ignored"] and not node.get("name", {}).get("value")
    ]
    assert not NAMED_ROLES.intersection(roles), roles


@CHECKS.add("finished answers are read aloud once, tokens are not")
def is_quiet(page: Page) -> None:
    page.browser.run(
        "window.said = []; new MutationObserver(() => said.push(finished.textContent))"
        ".observe(finished, {childList: true})"
    )
    page.answer("hello")
    page.browser.wait("the end", "window.said.length")
    assert page.browser.run("return said.length") == 1
    assert page.count("#messages [aria-live], #messages[aria-live], #messages [role=status]") == 0
    assert page.count(".answer[aria-busy=false]") == 1


@CHECKS.add("360 px: nothing sticks out, with markdown, files, calls, list and dialogs")
def is_narrow(page: Page) -> None:
    page.fresh(360)
    page.give("drop", "a-very-long-name-of-a-file-that-does-not-end.wav", "audio/wav")
    page.browser.wait("the file", "document.querySelector('#attachments audio')")
    bad = page.browser.run(WIDER)
    for asked in ("markdown", "wide", "w" * 90, "think", "tool"):
        page.answer(asked)
        bad += page.browser.run(WIDER)
    page.browser.click("#menu")
    page.browser.wait(
        "the list", "document.querySelector('#sidebar').getBoundingClientRect().left === 0"
    )
    bad += page.browser.run(WIDER)
    page.browser.press("Escape")
    for dialog in ("settings", "shortcuts", "key"):
        page.browser.run("document.getElementById(arguments[0]).showModal()", dialog)
        bad += page.browser.run(WIDER)
        page.browser.run("document.getElementById(arguments[0]).close()", dialog)
    assert bad == [], bad


@CHECKS.add("light and dark: contrast of text 4.5 : 1, of edges and icons 3 : 1")
def has_contrast(page: Page) -> None:
    grounds = set()
    for scheme in ("light", "dark"):
        page.browser.prefer(color_scheme=scheme, reduced_motion="reduce")
        page.fresh()
        low = page.browser.run(CONTRAST)
        for asked in ("markdown", "think", "busy", "tool"):
            page.answer(asked)
        page.browser.run("document.querySelectorAll('details').forEach((fold) => fold.open = true)")
        low += page.browser.run(CONTRAST)
        for dialog in ("settings", "shortcuts", "key"):
            page.browser.run("document.getElementById(arguments[0]).showModal()", dialog)
            low += page.browser.run(CONTRAST)
            page.browser.run("document.getElementById(arguments[0]).close()", dialog)
        faint = [each for each in low if each["ratio"] < each["least"]]
        assert len(low) > 100 and not faint, faint
        grounds.add(page.browser.run("return getComputedStyle(document.body).backgroundColor"))
    page.browser.prefer()
    assert len(grounds) == 2


@CHECKS.add("who wants less motion gets none")
def is_still(page: Page) -> None:
    moving = {}
    for motion in ("no-preference", "reduce"):
        page.browser.prefer(reduced_motion=motion)
        page.ask("wait")
        page.browser.wait("a pause", "document.querySelector('.waiting:not([hidden])')")
        moving[motion] = page.browser.run("return document.getAnimations().length")
        page.browser.press("Escape")
        page.browser.wait("the end", IDLE)
    page.browser.prefer()
    assert moving["no-preference"] > 0 and moving["reduce"] == 0, moving
