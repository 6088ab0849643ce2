"""Our server beside stock mlx-lm's on the same folder, and beside the bare step of our engine.

    python scripts/benchmarks/serve.py
    python scripts/benchmarks/serve.py --rounds 1 --lengths 100 300 --streams 1 2 --tokens 16

The second line is a rehearsal. Time to first token is that of a first turn, which nothing is known
of, and of a second one behind it. It is taken on a tiny random Gemma 4 with the real vocabulary and
a context of 128k tokens, tokens per second on the demo; --model takes a folder for both. All
contenders take turns within a round, and the table has medians. Tokens per second are those between
the first token of the last stream and the last token of the first one, when all of them decode. A
logit bias makes every token the same one, so that no answer ends early, in the bare step too.
"""

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

from hlwq_mlx import library
from hlwq_mlx.engine.answer import make_chooser
from hlwq_mlx.engine.decoding import Decoding
from hlwq_mlx.engine.overlap import make_step
from hlwq_mlx.engine.step import Row, start_row
from hlwq_mlx.folder import side_files
from hlwq_mlx.folder.folder import Folder
from hlwq_mlx.gemma4.model import Model
from scripts.benchmarks import bench
from scripts.clients import tiny_model

sys.path.append(str(Path(__file__).parents[2] / "tests" / "support"))
import served

OURS, STOCK, BARE = "ours", "mlx_lm.server", "bare step"
SERVERS = {
    OURS: served.OURS,
    STOCK: ("-c", "import hlwq_mlx, runpy; runpy.run_module('mlx_lm.server', None, '__main__')"),
}
LENGTHS, STREAMS = (500, 3_000, 12_000), (1, 4, 16)
SHORT = 40  # words of a stream's prompt
ANSWER = 4  # tokens of a turn, where the first one is timed
BIAS = 100.0
MOST_SLOWER, LEAST_OF_BARE = 1.5, 0.9
DEADLINE_S = 600
HEAD = (
    "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    "Connection: close\r\nContent-Length: {}\r\n\r\n"
)

Messages = list[dict[str, str]]


class Words:
    """A vocabulary's words of one token each, and the one that all answers repeat."""

    def __init__(self, tokenizer: Any) -> None:
        vocabulary = tokenizer.get_vocab()
        self._found = sorted(
            word[1:] for word in vocabulary if word[:1] == "▁" and word[1:].isalpha()
        )
        self._draw = random.Random(time.time_ns())  # a server may know an earlier run's prompts
        self.repeated = max(self._found, key=lambda word: (len(word), word))
        self.token = vocabulary[f"▁{self.repeated}"]

    def text(self, count: int) -> str:
        """Return random words that no prompt had before."""
        return " ".join(self._draw.choices(self._found, k=count))


class Heard(NamedTuple):
    """What came of a stream: when it was asked for, when each token came, and the text."""

    asked: float
    moments: list[float]
    text: str

    @property
    def first_s(self) -> float:
        """Seconds to the first token."""
        return self.moments[0] - self.asked


async def ask(port: int, messages: Messages, tokens: int, words: Words) -> Heard:
    """Ask a server for a streamed answer; done by hand, because clients take as long as servers."""
    body = json.dumps(
        {
            **{"model": "default_model", "messages": messages, "stream": True},
            **{"max_tokens": tokens, "temperature": 0.0, "logit_bias": {words.token: BIAS}},
        }
    ).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    asked = time.perf_counter()
    writer.write(HEAD.format(len(body)).encode() + body)
    came = []
    async with asyncio.timeout(DEADLINE_S):
        async for line in reader:
            came.append((time.perf_counter(), line))  # and read it later: it took server's time
    writer.close()
    texts = [content(line) for _, line in came]
    moments = [
        moment
        for (moment, _), text in zip(came, texts, strict=True)
        for _ in range(text.count(words.repeated))
    ]
    if len(moments) != tokens:
        raise SystemExit(f"error: {tokens} tokens were asked for, {len(moments)} came: {texts}")
    return Heard(asked, moments, "".join(texts))


def content(line: bytes) -> str:
    """Return the content in a line of a stream."""
    if not line.startswith(b"data: {"):
        return ""
    choices = json.loads(line[6:]).get("choices") or [{}]
    return choices[0].get("delta", {}).get("content") or ""


def time_turns(port: int, length: int, words: Words) -> dict[str, float]:
    """Time the first tokens of two turns, of which the first has so many words."""
    messages = [{"role": "user", "content": words.text(length)}]
    cold = asyncio.run(ask(port, messages, ANSWER, words))
    messages += [
        {"role": "assistant", "content": cold.text},
        {"role": "user", "content": words.text(5)},
    ]
    return {"cold": cold.first_s, "second": asyncio.run(ask(port, messages, 1, words)).first_s}


def rate(port: int, count: int, tokens: int, words: Words) -> float:
    """Return the tokens per second of so many streams."""

    async def all_at_once() -> list[Heard]:
        prompts = [[{"role": "user", "content": words.text(SHORT)}] for _ in range(count)]
        return await asyncio.gather(*(ask(port, prompt, tokens, words) for prompt in prompts))

    return rate_of(asyncio.run(all_at_once()))


def rate_of(streams: Sequence[Heard]) -> float:
    """Return the tokens per second while all streams decode."""
    begin = max(stream.moments[0] for stream in streams)
    end = min(stream.moments[-1] for stream in streams)
    came = sum(begin < moment <= end for stream in streams for moment in stream.moments)
    if not came:
        raise SystemExit("error: the streams did not decode together; ask for more --tokens")
    return came / (end - begin)


class Bare:
    """The bare step, on rows as the servers have them."""

    def __init__(self, model: Model, tokenizer: Any, words: Words) -> None:
        self._model, self._tokenizer, self._words = model, tokenizer, words
        self._step = make_step(model)

    def rate(self, count: int, tokens: int) -> float:
        """Return the tokens per second of so many rows."""
        rows = [self._row() for _ in range(count)]
        self._step(rows)
        begun = time.perf_counter()
        for _ in range(tokens):
            self._step(rows)
        return count * tokens / (time.perf_counter() - begun)

    def _row(self) -> Row:
        ids = self._tokenizer.encode(self._words.text(SHORT))
        caches = self._model.make_cache()
        logits = self._model.prefill(mx.array([ids]), caches)[:, -1]
        decoding = Decoding(logit_bias={self._words.token: BIAS})
        chooser = make_chooser(self._model, decoding, ids)
        row = Row(caches, -1, chooser)
        start_row(row, logits)
        return row


@contextmanager
def both(folder: Path, words: Words) -> Iterator[dict[str, int]]:
    """Serve a folder by both servers, warm; yield their ports."""
    with ExitStack() as stack:
        ports = {
            name: stack.enter_context(served.running(folder, server=server)).port
            for name, server in SERVERS.items()
        }
        for port in ports.values():
            time_turns(port, SHORT, words)
        yield ports


def measure_turns(folder: Path, lengths: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """Time first tokens: a row for each length, with the medians of each server."""
    words = Words(side_files.open_tokenizer(Folder.open(folder)))
    cases = list(product(lengths, SERVERS))
    times: dict[Any, list[dict[str, float]]] = {case: [] for case in cases}
    with both(folder, words) as ports:
        for turn in range(rounds):
            for length, name in cases:
                note(f"round {turn + 1}: {name}, {length} tokens")
                times[length, name].append(time_turns(ports[name], length, words))
    return [
        {"server": name, "length": length}
        | {key: statistics.median(each[key] for each in found) for key in ("cold", "second")}
        for (length, name), found in times.items()
    ]


def measure_streams(
    folder: Path, counts: Sequence[int], tokens: int, rounds: int
) -> list[dict[str, Any]]:
    """Take tokens per second: a row for each number of streams and contender, with its median."""
    model, tokenizer = library.load(folder)
    words = Words(tokenizer)
    bare = Bare(model, tokenizer, words)
    rates: dict[Any, list[float]] = {case: [] for case in product(counts, (BARE, *SERVERS))}
    with both(folder, words) as ports:
        for turn in range(rounds):
            for count, name in rates:
                note(f"round {turn + 1}: {name}, {count} streams")
                found = (
                    bare.rate(count, tokens)
                    if name == BARE
                    else rate(ports[name], count, tokens, words)
                )
                rates[count, name].append(found)
    return [
        {"contender": name, "streams": count, "rate": statistics.median(found)}
        for (count, name), found in rates.items()
    ]


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def print_turns(rows: Sequence[dict[str, Any]]) -> None:
    """Print milliseconds to the first token, and how the second turn grows with the history."""
    print("| first token after, ms | tokens | first turn | second turn | to the shortest one's |")
    print("|---|---|---|---|---|")
    for row in rows:
        shortest = next(each for each in rows if each["server"] == row["server"])["second"]
        cells = f"{1e3 * row['cold']:.0f} | {1e3 * row['second']:.0f}"
        print(f"| {row['server']} | {row['length']:,} | {cells} | {row['second'] / shortest:.2f} |")


def print_streams(rows: Sequence[dict[str, Any]]) -> None:
    """Print tokens per second, and ours by the others."""
    print("| streams | bare step, tokens/s | ours | mlx_lm.server | ours / bare | ours / mlx_lm |")
    print("|---|---|---|---|---|---|")
    for count in dict.fromkeys(row["streams"] for row in rows):
        found = {row["contender"]: row["rate"] for row in rows if row["streams"] == count}
        rates = " | ".join(f"{found[name]:.1f}" for name in (BARE, OURS, STOCK))
        ratios = " | ".join(f"{found[OURS] / found[name]:.2f}" for name in (BARE, STOCK))
        print(f"| {count} | {rates} | {ratios} |")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="a converted folder for both")
    parser.add_argument("--lengths", type=int, nargs="*", default=LENGTHS, help="tokens of turns")
    parser.add_argument("--streams", type=int, nargs="*", default=STREAMS, help="at once")
    parser.add_argument("--tokens", type=int, default=96, help="of a stream (default: 96)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each (default: 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there too")
    arguments = parser.parse_args(argv)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as work:
        turns, streams = [], []
        if arguments.lengths:
            folder = arguments.model or tiny_model.make(Path(work, "tiny"))
            turns = measure_turns(folder, sorted(arguments.lengths), arguments.rounds)
        if arguments.streams:
            folder = arguments.model or library.converted_folder(str(library.DEMO), "PQ5")
            streams = measure_streams(folder, arguments.streams, arguments.tokens, arguments.rounds)
    print(f"Medians of {arguments.rounds} turns, on {bench.machine()}, load {load:.1f} at first.\n")
    print_turns(turns)
    print()
    print_streams(streams)
    found = {"machine": bench.machine(), "load": load, "turns": turns, "streams": streams}
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
