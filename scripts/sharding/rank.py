"""One process of a group that compares itself with the whole model: parity.py starts it.

Rank 0 holds the whole model beside its part and prints a line of JSON: the largest difference of
logits, whether greedy answers are the same ones, and bytes that were read and sent.
"""

import argparse
import json
import re
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from hlwq_mlx.engine.answer import generate_tokens, make_chooser, prefill
from hlwq_mlx.engine.decoding import Decoding
from hlwq_mlx.engine.lookup import Lookup
from hlwq_mlx.engine.overlap import make_step
from hlwq_mlx.engine.prefix_cache import PrefixCache
from hlwq_mlx.engine.request import Prepared, Request
from hlwq_mlx.engine.step import LISTED, Row, start_row
from hlwq_mlx.folder import loading
from hlwq_mlx.folder.folder import Folder
from hlwq_mlx.gemma4.model import Model
from hlwq_mlx.memory.need import Settings
from hlwq_mlx.sharding import start
from hlwq_mlx.sharding.control import Follower
from hlwq_mlx.sharding.lead import LedModel

PROMPT, CHUNK = 96, 48
SENT_AT = 200  # of Linux's struct tcp_info: tcpi_bytes_sent


def main(argv: Sequence[str] | None = None) -> None:
    """Join, then follow or compare."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--split", default="layers")
    parser.add_argument("--prompt", type=int, default=PROMPT)
    parser.add_argument("--tokens", type=int, default=200)
    arguments = parser.parse_args(argv)
    mx.set_default_device(mx.cpu)
    group = start.join()
    folder = Folder.open(arguments.folder)
    if isinstance(group, Follower):
        start.serve(group, lambda: folder)
        return
    planned = start.agree(group, folder, Settings(1024), arguments.split, is_forced=True)
    model = start.lead(planned)
    whole = loading.load_folder(folder)
    print(json.dumps(compare(model, whole, arguments.prompt, arguments.tokens)))


def compare(model: LedModel, whole: Model, length: int, tokens: int) -> dict[str, Any]:
    """Return what a line of the table says."""
    ids = prompt_of(whole, length)
    found: dict[str, Any] = {"text": difference(model, whole, ids)}
    found |= dict(media_differences(model, whole, ids[: length // 4]))
    plain = answer(whole, ids, tokens)
    found["greedy"] = equal(plain, answer(model, ids, tokens))
    found["drafted"] = equal(plain, answer(model, ids, tokens, drafter=Lookup()))
    found["warm"] = equal(plain, warm(model, ids, tokens))
    found["batch"] = batch(model, whole, ids)
    found["counted"], found["tcp"], found["told"] = bytes_a_token(model, ids, min(tokens, 50))
    return found | {"read": model.read_bytes}


def bytes_a_token(model: LedModel, ids: list[int], tokens: int) -> tuple[float, float, float]:
    """Return the bytes that rank 0 sends for a token: as counted, by TCP, and of orders."""
    caches = model.make_cache()
    mx.eval(model.prefill(mx.array([ids]), caches))

    def sums() -> np.ndarray:
        told = sum(peer.sent for peer in model.leader.peers.values())
        return np.array([model.worker.link.sent, sent_bytes(), told])

    before = sums()
    for token in ids[:tokens]:
        model.decode_likeliest(mx.array([[token]]), caches, LISTED)
    counted, tcp, told = ((sums() - before) / tokens).tolist()
    return counted, tcp - told, told


def prompt_of(model: Model, length: int) -> list[int]:
    """Draw ids of text."""
    rng = np.random.default_rng(1)
    most = min(model.args.media_token_ids or [model.args.text_config.vocab_size])
    return rng.integers(3, most, length).tolist()


def difference(model: Model, whole: Model, ids: list[int], **media: Any) -> float:
    """Return the largest difference of logits, read whole, in chunks, and token by token."""
    worst = 0.0
    for length in [len(ids)] if media else [len(ids), CHUNK // 3, 1]:
        logits = [scores(each, ids, length, **media) for each in (whole, model)]
        worst = max(worst, float(np.abs(logits[0] - logits[1]).max()))
    return worst


def scores(model: Model, ids: list[int], length: int, **media: Any) -> np.ndarray:
    """Return the logits of every position, read `length` at a time."""
    cache, found = model.make_cache(), []
    inputs = mx.array([ids])
    x = model.embed_media(inputs, **media) if media else None
    for at in range(0, len(ids), length):
        part = slice(at, at + length)
        found.append(np.array(model(inputs[:, part], cache, None if x is None else x[:, part])))
    last = model.prefill(inputs, model.make_cache(), x)
    return np.concatenate([*found, np.array(last)], axis=1)


def media_differences(model: Model, whole: Model, ids: list[int]) -> Iterator[tuple[str, float]]:
    """Yield the differences of prompts with features in them, as towers make them."""
    args = whole.args
    rng = np.random.default_rng(2)
    for kind, token, name in (
        ("image", args.image_token_id, "images"),
        ("sound", args.audio_token_id, "sounds"),
    ):
        if token is None:
            continue
        features = rng.standard_normal((9, args.text_config.hidden_size)).astype(np.float32)
        prompt = [*ids[:7], *[token] * len(features), *ids[7:]]
        yield kind, difference(model, whole, prompt, **{name: [mx.array(features)]})


def request_of(ids: list[int], tokens: int) -> Request:
    return Request(Prepared(ids), max_tokens=tokens, prefill_step=CHUNK)


def answer(
    model: Model,
    ids: list[int],
    tokens: int,
    prefixes: PrefixCache | None = None,
    drafter: Any = None,
) -> list[int]:
    """Return a greedy answer."""
    chosen = generate_tokens(model, request_of(ids, tokens), prefixes, drafter)
    return [each.token for each in chosen]


def warm(model: Model, ids: list[int], tokens: int) -> list[int]:
    """Return the answer to a prompt of which another one began the same."""
    prefixes = PrefixCache(model.make_cache)
    answer(model, [*ids[:-3], 5, 6, 7], 2, prefixes)
    answer(model, ids, 3, prefixes)
    return answer(model, ids, tokens, prefixes)


def batch(model: Model, whole: Model, ids: list[int], steps: int = 3) -> bool:
    """Return whether rows that step together get the tokens that each gets alone."""
    prompts = [ids, ids[: len(ids) // 4], ids[5:]]
    alone = [answer(whole, prompt, steps + 1) for prompt in prompts]
    rows, found = [], []
    for prompt in prompts:
        caches = model.make_cache()
        row = Row(caches, -1, make_chooser(model, Decoding(), prompt))
        found.append([start_row(row, prefill(model, request_of(prompt, steps), caches)).token])
        rows.append(row)
    step = make_step(model)
    for _ in range(steps):
        for tokens, outcome in zip(found, step(rows), strict=True):
            tokens += [chosen.token for chosen in outcome]
    return found == alone


def equal(one: list[int], other: list[int]) -> int:
    """Return how many tokens are the same before the first that is not."""
    pairs = zip(one, other, strict=True)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), len(one))


def sent_bytes() -> int:
    """Sum what every TCP connection of this process has sent, as the kernel counts it."""
    total = 0
    for link in Path("/proc/self/fd").iterdir():
        try:
            if not re.match(r"socket:", str(link.readlink())):
                continue
            with socket.socket(fileno=socket.dup(int(link.name))) as held:
                info = held.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, SENT_AT + 8)
            total += struct.unpack_from("Q", info, SENT_AT)[0]
        except (OSError, struct.error):
            continue
    return total


if __name__ == "__main__":
    main(sys.argv[1:])
