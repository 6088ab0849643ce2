"""Let real assistants talk to our server, execute a tool and send its result; print a table.

    python scripts/clients/run.py --tools DIR --output DIR [--only WORD]

What is missing of the assistants and of the tiny model is made in the folder of --tools, by npm and
pip. Then all runs where there is no network but the loopback (Linux: unshare). In the folder of
--output every exchange is kept. An assistant passes when it executed the tool (`forced_server.py`
makes the model call it), its next request has the result, and the server had kept that request's
beginning. Exits with 1 when one does not pass.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scripts.clients import tiny_model
from scripts.clients.assistants import ASSISTANTS, FAILED, LATE, NEXT, Assistant, install
from scripts.clients.forced_server import RESULT

PORT = 8080  # it is free: the network is our own
URL = f"http://127.0.0.1:{PORT}"
START_S = 120
SERVER = Path(__file__).with_name("forced_server.py")
COLUMNS = (
    *("client", "version", "dialect", "requests", "first request", "tools", "its tokens"),
    *("cached of the result's", "cached of the next question's", "seconds"),
    *("what was seen", "passed"),
)
READ = re.compile(r'"(?:prompt_tokens|input_tokens|prompt_eval_count)": ?(\d+)')
UNTOLD = ("/api/chat",)  # Ollama's answers do not say how much was kept
CACHED = re.compile(r'"(?:cached_tokens|cache_read_input_tokens)": ?(\d+)')

Exchange = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> None:
    """Install what is missing, then go on without a network."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--tools", type=Path, required=True, metavar="DIR", help="what is installed"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="transcripts")
    parser.add_argument("--only", default="", metavar="WORD", help="assistants named so")
    parser.add_argument("--timeout", type=float, default=300, metavar="S", help="for each of them")
    parser.add_argument("--isolated", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    tools, output = arguments.tools.resolve(), arguments.output.resolve()
    chosen = [each for each in ASSISTANTS if arguments.only.lower() in each.name.lower()]
    if arguments.isolated:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        sys.exit(not talk(chosen, tools, output, arguments.timeout))
    if output.exists() and any(output.iterdir()):
        parser.error(f"--output needed a new folder, got {output} with records. Name another.")
    install(tools)
    if not (tools / "model").exists():
        tiny_model.make(tools / "model")
    again = [sys.executable, __file__, *(sys.argv[1:] if argv is None else argv), "--isolated"]
    os.execvp("unshare", ["unshare", "--map-root-user", "--net", *again])


def talk(chosen: Sequence[Assistant], tools: Path, output: Path, timeout_s: float) -> bool:
    """Let each assistant do its task, print the table, and return whether all passed."""
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
    passed = True
    for assistant in chosen:
        records = output / assistant.name.replace(" ", "-").replace(",", "").replace("'", "")
        records.mkdir(parents=True)
        with tempfile.TemporaryDirectory() as home, served(tools / "model", records):
            version = assistant.version(tools, Path(home))
            begun = time.monotonic()
            said = assistant.talk(tools, Path(home), URL, timeout_s)
            seconds = time.monotonic() - begun
        (records / "said.txt").write_text(said)
        row = judged(assistant, read(records), said)
        passed = passed and row["passed"] == "yes"
        row |= {"client": assistant.name, "version": version, "seconds": f"{seconds:.0f}"}
        print(f"| {' | '.join(str(row[column]) for column in COLUMNS)} |", flush=True)
    return passed


@contextmanager
def served(model: Path, records: Path) -> Iterator[None]:
    """Serve a model within the block."""
    command = [
        sys.executable,
        SERVER,
        records,
        "--model",
        model,
        "--port",
        str(PORT),
        "--alias",
        "gemma",
    ]
    with (
        (records / "server.txt").open("w") as log,
        subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT) as process,
    ):
        try:
            wait_until_ready(process)
            yield
        finally:
            process.terminate()


def wait_until_ready(process: "subprocess.Popen[bytes]") -> None:
    """Return when the server answers."""
    for _ in range(10 * START_S):
        try:
            with urllib.request.urlopen(f"{URL}/health"):
                return
        except (urllib.error.URLError, ConnectionError):
            if process.poll() is not None:
                break
            time.sleep(0.1)
    raise SystemExit("error: the server did not start, see server.txt among the transcripts")


def read(records: Path) -> list[Exchange]:
    """Return the exchanges in order."""
    return [json.loads(path.read_text()) for path in sorted(records.glob("*.json"))]


def judged(assistant: Assistant, exchanges: Sequence[Exchange], said: str) -> dict[str, Any]:
    """Return a row of the table: what the exchanges show."""
    asked = [each for each in exchanges if each["path"] == assistant.path and tools_of(each)]
    told = [each for each in asked if RESULT in json.dumps(each["request"])]
    gone_on = [each for each in told if NEXT in json.dumps(each["request"])]
    read = usage(asked)[0]
    kept = [usage(each)[1] for each in (told, gone_on)]
    refused = [f"{each['path']} {each['status']}" for each in exchanges if each["status"] != 200]
    ended = [line for line in said.splitlines()[-1:] if line.startswith((FAILED, LATE))]
    found = ["the tool's result in the next request"] if told else ["no result of a tool"]
    is_kept = assistant.path in UNTOLD or 0 < read <= min(kept) + 1
    is_done = 0 < len(gone_on) < len(told) < len(asked)
    has_passed = is_done and is_kept and not refused and not ended
    counts = Counter(f"{each['method']} {each['path']}" for each in exchanges)
    return {
        "dialect": assistant.path,
        "requests": ", ".join(f"{count} x {what}" for what, count in counts.items()),
        "first request": f"{asked[0]['bytes'] / 1000:.1f} kB" if asked else "–",
        "tools": tools_of(asked[0]) if asked else "–",
        "its tokens": f"{read:,}",
        "cached of the result's": share(told, assistant),
        "cached of the next question's": share(gone_on, assistant),
        "what was seen": ", ".join([*found, *refused, *ended]),
        "passed": "yes" if has_passed else "**no**",
    }


def tools_of(exchange: Exchange) -> int:
    """Return how many tools a request offers."""
    return len(exchange["request"].get("tools") or []) if exchange["method"] == "POST" else 0


def share(exchanges: Sequence[Exchange], assistant: Assistant) -> str:
    """Return how many tokens of the first exchange's prompt were kept, of how many."""
    read, kept = usage(exchanges)
    return f"{'not told' if assistant.path in UNTOLD else f'{kept:,}'} of {read:,}"


def usage(exchanges: Sequence[Exchange]) -> tuple[int, int]:
    """Return the tokens of the first exchange's prompt, and how many were kept, as its client read.

    Anthropic's count of the input leaves out what was kept.
    """
    answer = json.dumps(exchanges[0]["answer"]) if exchanges else ""
    answer = answer.replace('\\"', '"')  # a stream is text with JSON in it
    read, cached = (max(map(int, each.findall(answer)), default=0) for each in (READ, CACHED))
    return read + (cached if "cache_read_input_tokens" in answer else 0), cached


if __name__ == "__main__":
    main()
