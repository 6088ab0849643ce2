"""Drive a headless Chromium through ChromeDriver by the WebDriver protocol; needs urllib alone."""

import base64
import contextlib
import json
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--hide-scrollbars", "--force-color-profile=srgb"),
)
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
KEYS = {
    "Enter": "\ue007",
    "Escape": "\ue00c",
    "Tab": "\ue004",
    "Up": "\ue013",
    "Shift": "\ue008",
    "Control": "\ue009",
    "Space": " ",
}
WAIT_S = 10.0


class BrowserError(Exception):
    """What ChromeDriver answered instead of a result, or a wait that came to nothing."""


class Browser:
    """One session of one browser."""

    def __init__(self, url: str, profile: str) -> None:
        options = {
            "args": [*FLAGS, f"--user-data-dir={profile}"],
            "binary": shutil.which("chromium"),
        }
        wanted = {
            "browserName": "chrome",
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL"},
        }
        self.root = url
        started = self._call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self.root = f"{url}/session/{started['sessionId']}"

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.root + path, data, {"Content-Type": "application/json"}, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as problem:
            raise BrowserError(json.load(problem)["value"]["message"]) from problem

    def go(self, url: str) -> None:
        """Open an address."""
        self._call("POST", "/url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        """Run the body of a function in the page; a promise is waited for."""
        return self._call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def devtools(self, command: str, **parameters: Any) -> Any:
        """Send a command of Chromium's own protocol."""
        return self._call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def log(self) -> list[str]:
        """Return what the console said since it was last asked."""
        return [entry["message"] for entry in self._call("POST", "/se/log", {"type": "browser"})]

    def size(self, width: int, height: int) -> None:
        """Give the page a size, in CSS pixels."""
        self.devtools(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2,
            mobile=False,
        )

    def prefer(self, **features: str) -> None:
        """Choose what media queries see, as color_scheme="dark"."""
        chosen = [
            {"name": f"prefers-{name.replace('_', '-')}", "value": value}
            for name, value in features.items()
        ]
        self.devtools("Emulation.setEmulatedMedia", features=chosen)

    def click(self, selector: str) -> None:
        """Click as a mouse would."""
        found = self._call("POST", "/element", {"using": "css selector", "value": selector})
        self._call("POST", f"/element/{found[ELEMENT]}/click", {})

    def put_files(self, selector: str, paths: list[Path]) -> None:
        """Choose files in a field for files."""
        found = self._call("POST", "/element", {"using": "css selector", "value": selector})
        self._call("POST", f"/element/{found[ELEMENT]}/value", {"text": "\n".join(map(str, paths))})

    def type(self, text: str) -> None:
        """Press a key for each letter, wherever the focus is."""
        self._press([kind for letter in text for kind in (("keyDown", letter), ("keyUp", letter))])

    def press(self, *names: str) -> None:
        """Press keys together, as press("Shift", "Enter")."""
        keys = [KEYS.get(name, name) for name in names]
        self._press(
            [*(("keyDown", key) for key in keys), *(("keyUp", key) for key in reversed(keys))]
        )

    def _press(self, strokes: list[tuple[str, str]]) -> None:
        actions = [{"type": kind, "value": key} for kind, key in strokes]
        self._call(
            "POST", "/actions", {"actions": [{"type": "key", "id": "keys", "actions": actions}]}
        )

    def wait(self, what: str, condition: str | Callable[[], Any]) -> Any:
        """Wait until an expression of the page, or a function here, is true; return its value."""
        end = time.monotonic() + WAIT_S
        while time.monotonic() < end:
            value = condition() if callable(condition) else self.run(f"return {condition}")
            if value:
                return value
            time.sleep(0.05)
        raise BrowserError(f"waited {WAIT_S:.0f} s in vain for {what}")

    def picture(self, path: Path) -> None:
        """Save what is seen as PNG."""
        path.write_bytes(base64.b64decode(self._call("GET", "/screenshot")))

    def quit(self) -> None:
        """End the session."""
        self._call("DELETE", "")


@contextlib.contextmanager
def browsing() -> Iterator[Browser]:
    """Start ChromeDriver and a browser with an empty profile; end both."""
    driver = shutil.which("chromedriver")
    if not driver or not shutil.which("chromium"):
        raise SystemExit(
            "error: needed chromium and chromedriver. "
            "Install Debian's chromium and chromium-driver."
        )
    port = free_port()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen([driver, f"--port={port}"], stdout=subprocess.DEVNULL)
        try:
            wait_for_port(port)
            browser = Browser(f"http://127.0.0.1:{port}", profile)
            try:
                yield browser
            finally:
                browser.quit()
        finally:
            process.terminate()
            process.wait()


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def wait_for_port(port: int, most_s: float = WAIT_S) -> None:
    """Wait until somebody listens on a port of loopback."""
    end = time.monotonic() + most_s
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise BrowserError(f"nothing listened on port {port} within {most_s:.0f} s")
