"""Many clients of many kinds at once, for some minutes: does every answer stay what it is alone?

    python scripts/benchmarks/stress.py                              64 streams, 600 seconds a model
    python scripts/benchmarks/stress.py --streams 16 --seconds 30    a rehearsal

On the demo, and on a small random model, whose tokens are less sure of themselves. Clients of all
dialects ask cases of a pool again and again, with random lengths, penalties, schemas and seeds.
Among them are slow ones, some that leave, and some whose requests are no requests. Then each case
is asked alone: text, number of tokens and reason of every finished stream have to be the same, log
probabilities to 1e-4. At the end nothing may be left in the server, its memory has to have stayed
what it was, and SIGTERM has to end it with success. Last, servers are killed while they write their
prompt cache, and the next ones have to answer from what is left. Fails if anything of that does.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from hlwq_mlx import library
from hlwq_mlx.folder import side_files
from hlwq_mlx.folder.folder import Folder
from hlwq_mlx.source.repository import Source
from hlwq_mlx.write import convert
from scripts.benchmarks import bench
from scripts.benchmarks.stress_cases import Case, Heard, ask, draw_case, lines

sys.path += [str(Path(__file__).parents[2] / "tests" / room) for room in ("support", "")]
import served
import tiny

TOLERANCE = 1e-4
POOL = 200  # cases
KILLS = 6
PAUSE_S = 0.05  # of a slow client behind each line
SAMPLE_S = 0.5
CACHE_BYTES = 16 << 20  # soon full, so that memory can be flat
GROWTH = 1.1  # of the last quarter's memory over the second one's
BAD = {  # bodies that are no requests, and the statuses that they may get
    b"{": (400,),
    b'[{"messages": []}]': (400,),
    b'{"messages": 7}': (400,),
    b'{"messages": [{"role": "user", "content": [{"type": "sculpture"}]}]}': (400,),
    b'{"messages": [{"role": "user", "content": "%s"}]}' % (b"long " * 100_000): (400, 413),
}


@dataclass
class Tally:
    """What happened in a storm."""

    kinds: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    finished: list[tuple[Case, Heard]] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)


class Storm:
    """Clients of a server, of which each asks again and again until the time is over."""

    def __init__(self, port: int, pool: Sequence[Case], seed: int) -> None:
        self.tally = Tally()
        self._port, self._pool = port, pool
        self._draw = random.Random(seed)
        self._is_over = False

    async def run(self, streams: int, seconds: float, process: psutil.Process) -> None:
        """Let so many clients ask for so long, and note the server's memory meanwhile."""
        clients = [asyncio.create_task(self._client()) for _ in range(streams)]
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.tally.memory.append(process.memory_info().rss)
            await asyncio.sleep(SAMPLE_S)
        self._is_over = True
        await asyncio.gather(*clients)

    async def _client(self) -> None:
        kinds: dict[Callable[[], Awaitable[None]], int] = {
            self._finish: 16,
            self._leave: 4,
            self._read_slowly: 2,
            self._send_junk: 2,
            self._dribble: 1,
        }
        while not self._is_over:
            [kind] = self._draw.choices([*kinds], [*kinds.values()])
            name = kind.__name__.strip("_").replace("_", " ")
            self.tally.kinds[name] += 1
            try:
                await kind()
            except (OSError, TimeoutError, ValueError, KeyError) as problem:
                self.tally.wrong.append(f"{name}: {type(problem).__name__}: {problem}")

    async def _finish(self, pause_s: float = 0.0) -> None:
        case = self._draw.choice(self._pool)
        heard = await ask(self._port, case, pause_s=pause_s)
        if heard.status == 200 and heard.end:
            self.tally.finished.append((case, heard))
        else:
            self.tally.wrong.append(f"{case.dialect.path}: {heard.status} {heard.text[:200]}")

    async def _read_slowly(self) -> None:
        await self._finish(PAUSE_S)

    async def _leave(self) -> None:
        await ask(self._port, self._draw.choice(self._pool), leave_after=self._draw.randint(1, 30))

    async def _send_junk(self) -> None:
        body, expected = self._draw.choice([*BAD.items()])
        path = self._draw.choice(self._pool).dialect.path
        async with contextlib.aclosing(lines(self._port, path, body)) as answer:
            first = await anext(answer)
        # Where a path does not take messages, it lacks what it does take.
        if int(first.split()[1]) not in expected:
            self.tally.wrong.append(f"junk {body[:70]!r} at {path}: {first!r}")

    async def _dribble(self) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", self._port)
        for byte in b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127":
            writer.write(bytes([byte]))
            await asyncio.sleep(PAUSE_S)
        writer.close()


async def compare(port: int, finished: Sequence[tuple[Case, Heard]]) -> dict[str, Any]:
    """Ask each case alone; count the answers that were others, and the largest distance."""
    alone: dict[int, Heard] = {}
    different, farthest = [], 0.0
    for case, heard in finished:
        if id(case) not in alone:
            alone[id(case)] = await ask(port, case)
        wanted = alone[id(case)]
        if heard.is_like(wanted, TOLERANCE):
            farthest = max(farthest, heard.distance(wanted))
        else:
            different.append((case.dialect.path, case.body, heard, wanted))
    return {"cases": len(alone), "different": different, "farthest": farthest}


def run(folder: Path, streams: int, seconds: float, seed: int) -> dict[str, Any]:
    """Take one model through a storm, and see what is left."""
    vocabulary = side_files.open_tokenizer(Folder.open(folder)).get_vocab()
    words = sorted(word[1:] for word in vocabulary if word[:1] == "▁" and word[1:].isalpha())
    draw = random.Random(seed)
    pool = [draw_case(draw, words) for _ in range(POOL)]
    options = ("--prompt-cache-bytes", str(CACHE_BYTES), "--max-queue", str(2 * streams))
    with served.running(folder, *options) as server:
        storm = Storm(server.port, pool, seed)
        asyncio.run(storm.run(streams, seconds, psutil.Process(server.process.pid)))
        tally = storm.tally
        compared = asyncio.run(compare(server.port, tally.finished))
        left = sum(server.metric(name) for name in ("queue", "reading", "rows"))
        failed = server.metric("answers_failed")
        server.process.send_signal(signal.SIGTERM)
        code = server.process.wait(60)
    quarter = len(tally.memory) // 4
    second, last = (
        statistics.median(tally.memory[at : at + quarter] or [0])
        for at in (quarter, len(tally.memory) - quarter)
    )
    return {
        **{"streams": streams, "seconds": seconds, "asked": dict(tally.kinds)},
        **{"finished": len(tally.finished), "tokens": sum(h.count for _, h in tally.finished)},
        **{"cases": compared["cases"], "farthest": compared["farthest"]},
        **{"different": [show(*each) for each in compared["different"]]},
        **{"wrong": tally.wrong, "left": left, "failed": failed, "code": code},
        **{"rss": [tally.memory[0], second, last]},
    }


def show(path: str, body: dict[str, Any], heard: Heard, wanted: Heard) -> str:
    """Describe an answer that was another than alone."""
    found = [(each.text, each.count, each.end) for each in (heard, wanted)]
    return (
        f"{path} {json.dumps(body)[:300]}: {found[0]}, alone {found[1]}; {heard.distance(wanted)}"
    )


def is_well(found: dict[str, Any]) -> bool:
    """Return whether nothing is wrong."""
    faults = found["different"], found["wrong"], found["left"], found["failed"], found["code"]
    return not any(faults) and found["rss"][2] <= GROWTH * found["rss"][1]


def kill(folder: Path, work: Path, seed: int) -> dict[str, Any]:
    """Kill servers while they write prefixes, and let the next ones answer from these."""
    draw = random.Random(seed)
    texts = ["Tom had a red ball. " * count for count in (20, 30, 40)]
    answers, cached = set(), 0
    for _ in range(KILLS):
        with served.running(folder, "--prompt-cache-dir", str(work)) as server:
            for text in texts:
                message = {"role": "user", "content": f"{text}What color was the ball?"}
                body = {"messages": [message], "temperature": 0}
                _, told = server.post("/v1/chat/completions", body)
                answers.add((text, told["choices"][0]["message"]["content"]))
                cached += told["usage"]["prompt_tokens_details"]["cached_tokens"]
            time.sleep(draw.uniform(0, 0.2))
            server.process.kill()
    return {"kills": KILLS, "is_same": len(answers) == len(texts), "cached": cached}


def random_model(work: Path) -> Path:
    """Write a small random model with the demo's vocabulary."""
    settings = tiny.config()
    size = len(json.loads((tiny.DEMO / "tokenizer.json").read_text())["model"]["vocab"])
    settings["text_config"] |= {"vocab_size": size, "vocab_size_per_layer_input": size}
    root = tiny.write_root(work / "published", settings)
    tiny.publish(root / "PQ5", tiny.make_weights(settings, has_towers=False), tiny.pure(5))
    convert.convert(Source(root / "PQ5", "PQ5"), work / "random")
    return work / "random"


def print_table(rows: dict[str, dict[str, Any]]) -> None:
    """Print a row for each model."""
    print(
        "| model | streams | seconds | asked | finished | tokens | other than alone | "
        "farthest log probability | lost or refused | left | memory at first, then, last, MB |"
    )
    print(f"|{'---|' * 11}")
    for name, row in rows.items():
        asked = ", ".join(f"{kind} {count}" for kind, count in row["asked"].items())
        memory = " / ".join(f"{each / 1e6:.0f}" for each in row["rss"])
        print(
            f"| {name} | {row['streams']} | {row['seconds']:.0f} | {asked} | {row['finished']} | "
            f"{row['tokens']} | {len(row['different'])} | {row['farthest']:.1e} | "
            f"{len(row['wrong'])} | {row['left']:.0f} | {memory} |"
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Storm, kill, print; fail if anything went wrong."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--streams", type=int, default=64, help="at once (default: 64)")
    parser.add_argument("--seconds", type=float, default=600.0, help="a model (default: 600)")
    parser.add_argument("--seed", type=int, default=0, help="of cases and clients (default: 0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there too")
    arguments = parser.parse_args(argv)
    load = os.getloadavg()[0]
    demo = library.converted_folder(str(library.DEMO), library.DEMO_VARIANT)
    with tempfile.TemporaryDirectory() as work:
        storm = arguments.streams, arguments.seconds, arguments.seed
        models = {"demo": demo, "random": random_model(Path(work))}
        rows = {name: run(folder, *storm) for name, folder in models.items()}
        killed = kill(demo, Path(work, "prefixes"), arguments.seed)
    print(f"On {bench.machine()}, load {load:.1f} at first.\n")
    print_table(rows)
    print(
        f"\nKilled {killed['kills']} times while prefixes were written; the next answers were "
        f"{'the same' if killed['is_same'] else 'OTHERS'}, with {killed['cached']} tokens cached."
    )
    for name, row in rows.items():
        for fault in [*row["different"], *row["wrong"]][:20]:
            print(f"{name}: {fault}", file=sys.stderr)
    if arguments.json is not None:
        found = {"machine": bench.machine(), "load": load, "models": rows, "killed": killed}
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    if not (all(map(is_well, rows.values())) and killed["is_same"] and killed["cached"]):
        raise SystemExit("error: see above")


if __name__ == "__main__":
    main()
