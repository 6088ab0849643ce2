"""Checks of what the page does: messages, answers, media, errors, conversations, hostile text."""

import base64
import json
import tempfile
from pathlib import Path

from page import IDLE, PIXEL, Page, Table
from page_probes import GIVE_FILE, INJECTED
from stub_server import CALL, HOSTILE, KEY

CHECKS = Table()


@CHECKS.add("streaming shows text before the end")
def streams(page: Page) -> None:
    page.ask("forever")
    seen = page.browser.wait(
        "the first words",
        "document.querySelector('.answer .markdown:not(.thought *)').innerText.length",
    )
    page.browser.wait(
        "more words", f"document.querySelector('.answer').innerText.length > {seen + 50}"
    )
    assert not page.browser.run(f"return {IDLE}")
    assert page.browser.run("return document.querySelector('#finished').textContent") == ""
    page.browser.press("Escape")


@CHECKS.add("Esc stops, the server hears of it, what came is kept")
def stops(page: Page) -> None:
    page.server.is_left.clear()
    page.ask("forever")
    page.browser.wait("words", "document.querySelector('.answer').innerText.includes('word')")
    page.browser.press("Escape")
    page.browser.wait("the end", IDLE)
    assert "Stopped." in page.text(".answer") and "word" in page.text(".answer")
    assert page.server.is_left.wait(10)


@CHECKS.add("a new answer takes the place of the last, by button and by key")
def answers_again(page: Page) -> None:
    page.answer("first")
    page.browser.click(".answer.last .again")
    page.browser.wait("the end", IDLE)
    page.browser.press("Control", "Shift", "Enter")
    page.browser.wait("the third request", lambda: len(page.server.bodies) == 3)
    page.browser.wait("the end", IDLE)
    assert page.count(".answer") == page.count(".user") == 1
    assert all(body["messages"] == page.server.bodies[0]["messages"] for body in page.server.bodies)


@CHECKS.add("the last message is edited: up arrow, Enter; Esc leaves it")
def edits(page: Page) -> None:
    page.answer("one")
    page.answer("two")
    page.browser.press("Up")
    assert page.browser.run("return document.querySelector('#field').value") == "two"
    page.browser.press("Escape")
    assert page.browser.run("return document.querySelector('#field').value") == ""
    page.browser.press("Up")
    assert '"two, and a half"' in page.answer(", and a half")
    assert page.count(".user") == 2


@CHECKS.add("Shift+Enter is a new line, an empty field sends nothing")
def writes_lines(page: Page) -> None:
    page.ask("")
    page.browser.type("a")
    page.browser.press("Shift", "Enter")
    page.answer("b")
    assert [body["messages"][-1]["content"] for body in page.server.bodies] == ["a\nb"]


@CHECKS.add("markdown: headings, lists, table, code with copy, quote, links")
def shows_markdown(page: Page) -> None:
    page.answer("markdown")
    wanted = (
        "h4",
        "ol > li > ul > li",
        "th.align-end",
        "td.align-center",
        "pre code",
        "blockquote p",
        "strong",
        "em",
        "figure.code button",
        "a[href^='https:'][rel~='noopener'][target='_blank']",
        "li > ul code",
    )
    assert not [selector for selector in wanted if not page.count(f".markdown {selector}")]
    page.browser.devtools(
        "Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"]
    )
    page.browser.click("figure.code button")
    page.browser.wait(
        "the notice", "document.querySelector('#notice').innerText.includes('Copied')"
    )
    copied = page.browser.run("return navigator.clipboard.readText()")
    assert copied.startswith("def scattered") and copied.endswith("narrow screen")


@CHECKS.add("a thought is folded and can be opened by the keyboard")
def folds_thoughts(page: Page) -> None:
    assert "42" in page.answer("think")
    assert page.count("details.thought:not([open])") == 1 and page.count(".thought li") == 6
    page.browser.run("document.querySelector('.thought summary').focus()")
    page.browser.press("Enter")
    assert page.count("details.thought[open]") == 1


@CHECKS.add("a call is shown with name and arguments; its result is asked for and sent")
def calls_tools(page: Page) -> None:
    shown = page.answer("tool")
    assert CALL["name"] in shown and '"days": 3' in shown
    page.ask("not yet")
    assert "results" in page.text("#notice") and len(page.server.bodies) == 1
    page.browser.run(
        "document.querySelector('#field').value = '';"
        "document.querySelector('form.results textarea').focus()"
    )
    page.browser.type("rain")
    page.browser.press("Tab")
    page.browser.press("Enter")
    page.browser.wait("the second request", lambda: len(page.server.bodies) == 2)
    page.browser.wait("the end", IDLE)
    call, result = page.server.bodies[1]["messages"][-2:]
    assert call["tool_calls"] == [{"id": "call_1", "type": "function", "function": CALL}]
    assert result == {
        "role": "tool",
        "content": "rain",
        "tool_call_id": "call_1",
        "name": CALL["name"],
    }


@CHECKS.add("numbers: tokens, tokens/s, prompt, cached; model, variant, memory, context")
def shows_numbers(page: Page) -> None:
    page.answer("slow")
    stats, model = page.text(".stats"), page.text("#model")
    assert (
        "tokens/s" in stats and "prompt 1,204, 1,180 cached" in stats and "first after" in stats
    ), stats
    assert "PQ5 · 5.7 GB · 128k" in model, model


@CHECKS.add("thinking, temperature, system prompt and tools are sent, and kept")
def sends_settings(page: Page) -> None:
    page.browser.click("#think")
    page.browser.click("#open-settings")
    page.browser.type("Be brief.")
    page.browser.run("document.querySelector('#settings details').open = true")
    page.browser.run("document.querySelector('#temperature').focus()")
    page.browser.type("0.5")
    page.browser.run("document.querySelector('#tools').focus()")
    page.browser.type("{}")
    page.browser.click("#settings .primary")
    assert "no list" in page.text("#tools-fault") and page.count("dialog[open]")
    page.browser.run("document.querySelector('#tools').value = '[{\"type\": \"function\"}]'")
    page.browser.click("#settings .primary")
    page.answer("hello")
    page.open()
    page.answer("hello again")
    for body in page.server.bodies:
        assert body["messages"][0] == {"role": "system", "content": "Be brief."}
        assert (body["reasoning_effort"], body["temperature"], len(body["tools"])) == (
            "medium",
            0.5,
            1,
        )


@CHECKS.add("hostile text stays text: answer, code, table, error, model, title")
def escapes(page: Page) -> None:
    for asked in ("xss", "```", "busy", "broken"):
        page.answer(asked)
    page.answer(HOSTILE.replace("\t", " "))
    assert "<script>window.pwned = 1</script>" in page.text(".answer") and HOSTILE[
        :30
    ] in page.text("#model")
    assert HOSTILE[:30] in page.text("#notice") or HOSTILE[:30] in page.text("#messages")
    _rename(page, HOSTILE[:60])
    assert HOSTILE[:30] in page.text("#title") and HOSTILE[:30] in page.text("#list")
    page.browser.run("document.querySelectorAll('.markdown a').forEach((link) => link.click())")
    assert not (injected := page.browser.run(INJECTED)), injected


@CHECKS.add("hostile text stays text: imported thought, call, tool result, file name, part")
def escapes_imports(page: Page) -> None:
    call = {"id": "c", "type": "function", "function": {"name": HOSTILE, "arguments": HOSTILE}}
    part = {"type": "image_url", "image_url": {"url": "javascript:window.pwned=1"}, "name": HOSTILE}
    page.load(
        {
            "title": HOSTILE,
            "messages": [
                {"role": "system", "content": HOSTILE},
                {"role": "user", "content": [part, {"type": "text", "text": HOSTILE}]},
                {
                    "role": "assistant",
                    "content": HOSTILE,
                    "reasoning_content": HOSTILE,
                    "tool_calls": [call],
                },
                {"role": "tool", "name": HOSTILE, "tool_call_id": "c", "content": HOSTILE},
            ],
        }
    )
    page.browser.run("document.querySelectorAll('details').forEach((fold) => fold.open = true)")
    page.browser.run(GIVE_FILE, "drop", f"{HOSTILE}.png", "image/png", PIXEL)
    page.browser.wait("the file", "document.querySelector('#attachments img')")
    page.browser.run(GIVE_FILE, "drop", f"{HOSTILE}.exe", "", PIXEL)
    page.browser.wait("the notice", "document.querySelector('#notice').innerText.includes('.exe')")
    assert page.text(".result pre") == HOSTILE
    assert not (injected := page.browser.run(INJECTED)), injected


@CHECKS.add("pictures picked, pasted and dropped, sounds and videos are sent; others are refused")
def takes_media(page: Page) -> None:
    with tempfile.TemporaryDirectory() as folder:
        picked = Path(folder) / "picked.png"
        picked.write_bytes(base64.b64decode(PIXEL))
        page.browser.put_files("#files", [picked])
        page.browser.wait("the picked picture", "document.querySelector('#attachments img')")
    page.give("paste", "pasted.png", "image/png")
    page.give("drop", "dropped.heic", "")
    page.give("drop", "spoken.wav", "audio/wav")
    page.give("drop", "moving.mp4", "video/mp4")
    page.browser.wait("five files", "document.querySelectorAll('#attachments li').length === 5")
    page.give("drop", "notes.txt", "text/plain")
    page.browser.wait(
        "the notice", "document.querySelector('#notice').innerText.includes('notes.txt')"
    )
    page.browser.click("#attachments li:nth-child(2) button")
    page.answer("what is this?")
    parts = page.server.bodies[0]["messages"][0]["content"]
    assert [part["type"] for part in parts] == [
        "image_url",
        "image_url",
        "input_audio",
        "video_url",
        "text",
    ]
    assert not any("name" in part for part in parts)
    assert parts[0]["image_url"]["url"] == f"data:image/png;base64,{PIXEL}"
    assert parts[2]["input_audio"] == {"data": PIXEL, "format": "wav"}
    assert parts[3]["video_url"]["url"].startswith("data:video/mp4;base64,")
    assert (
        page.count(".user img") == 2 and page.count(".user audio") == page.count(".user video") == 1
    )


@CHECKS.add("errors are said, and the question can be asked again")
def says_errors(page: Page) -> None:
    assert "Busy." in page.answer("busy") and "Try again in 7 s." in page.text(".answer")
    page.browser.press("Up")
    page.browser.run("document.querySelector('#field').select()")
    assert "It broke." in page.answer("broken")
    assert "did not understand" in page.answer("nonsense")
    assert "ended before the answer did" in page.answer("dropped")
    assert page.count(".answer.last .again") == 1
    roles = [message["role"] for message in page.server.bodies[-1]["messages"]]
    assert roles == ["user", "assistant", "user", "assistant", "user"]


@CHECKS.add("a server that is gone is said, and the question stays")
def says_gone(page: Page) -> None:
    page.server.shutdown()
    page.server.server_close()
    assert "does not answer" in page.answer("hello")
    assert page.text(".user .bubble") == "hello" and page.count("#list li") == 1


@CHECKS.add("a server that asks for a key gets it, once the user gave it")
def asks_for_key(page: Page) -> None:
    page.ask("locked")
    page.browser.wait("the dialog", "document.querySelector('#key[open]')")
    page.browser.type(KEY)
    page.browser.press("Enter")
    page.browser.wait(
        "the answer", "document.querySelector('.answer .markdown:not(.thought *) code')"
    )
    assert page.count(".answer") == 1 and page.count(".error:not(:empty)") == 0


@CHECKS.add("a reload keeps the conversation; one in the middle of an answer keeps what came")
def survives_reload(page: Page) -> None:
    page.give("drop", "kept.png", "image/png")
    page.browser.wait("the file", "document.querySelector('#attachments img')")
    page.answer("think")
    page.ask("forever")
    page.browser.wait(
        "words that were saved",
        "document.querySelector('.answer:last-of-type').innerText.length > 1200",
    )
    page.open()
    page.browser.wait("the messages", "document.querySelectorAll('.message').length === 4")
    assert page.count(".user img") == 1 and "42" in page.text(".answer:nth-of-type(2)")
    assert "word" in page.text(".answer:last-of-type") and page.count("#list li") == 1


@CHECKS.add("conversations: new, opened, renamed, deleted, brought back")
def keeps_many(page: Page) -> None:
    page.answer("one")
    page.browser.press("Control", "Shift", "o")
    page.answer("two")
    assert page.count("#list li") == 2
    page.browser.run("document.querySelectorAll('#list .title')[1].click()")
    page.browser.wait("the first", "document.querySelector('#title').textContent === 'one'")
    _rename(page, "uno")
    page.browser.click("#list li.current button:last-of-type")
    page.browser.wait("its end", "document.querySelectorAll('#list li').length === 1")
    page.browser.click("#notice button")
    page.browser.wait("its return", "document.querySelectorAll('#list li').length === 2")
    assert page.text("#title") == "uno" and '"text": "one"' in page.text(".answer")


@CHECKS.add("answers of two conversations are written at once, and a deleted one stays away")
def runs_beside(page: Page) -> None:
    page.ask("forever")
    page.browser.wait("words", "document.querySelector('.answer').innerText.includes('word')")
    page.browser.press("Control", "Shift", "o")
    assert '"two"' in page.answer("two")
    page.browser.run(
        "[...document.querySelectorAll('#list .title')]"
        ".find((each) => each.innerText === 'forever').click()"
    )
    page.browser.wait("the first", "document.querySelector('#title').textContent === 'forever'")
    assert not page.browser.run(f"return {IDLE}") and "word" in page.text(".answer")
    page.browser.click("#list li.current button:last-of-type")
    page.browser.wait("its end", "document.querySelectorAll('#list li').length === 1")
    page.open()
    page.browser.wait("the list", "document.querySelectorAll('#list li').length === 1")


@CHECKS.add("an exported conversation is imported as it was; a wrong file is refused")
def exports(page: Page) -> None:
    page.answer("tool")
    with tempfile.TemporaryDirectory() as folder:
        page.browser.devtools("Browser.setDownloadBehavior", behavior="allow", downloadPath=folder)
        page.browser.click("#export")
        page.browser.wait("the file", lambda: [*Path(folder).glob("*.json")])
        [path] = Path(folder).glob("*.json")
        exported = json.loads(path.read_text())
        page.browser.press("Control", "Shift", "o")
        page.browser.put_files("#import-file", [path])
        page.browser.wait("the messages", "document.querySelectorAll('.message').length === 2")
        path.write_text('{"messages": [{"role": "wizard"}]}')
        page.browser.put_files("#import-file", [path])
        page.browser.wait(
            "the notice", "document.querySelector('#notice').innerText.includes('wizard')"
        )
    assert exported["messages"][1]["tool_calls"][0]["function"] == CALL
    assert page.count("#list li") == 2 and CALL["name"] in page.text(".answer")


@CHECKS.add("a full storage is said, and the page goes on")
def says_full(page: Page) -> None:
    origin = page.server.url.rstrip("/")
    page.browser.devtools("Storage.overrideQuotaForOrigin", origin=origin, quotaSize=1)
    try:
        page.answer("hello")
        page.browser.wait(
            "the notice", "document.querySelector('#notice').innerText.includes('storage is full')"
        )
    finally:
        page.browser.devtools("Storage.overrideQuotaForOrigin", origin=origin)
    assert "I got" in page.text(".answer")


def _rename(page: Page, name: str) -> None:
    page.browser.click("#list li.current button:nth-of-type(2)")
    page.browser.run("document.querySelector('#list input').value = ''")
    page.browser.type(name)
    page.browser.press("Enter")
    page.browser.wait("the new name", "!document.querySelector('#list input')")
