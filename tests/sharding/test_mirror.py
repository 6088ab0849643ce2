"""What is done to rank 0's caches is done to the others', whichever layers those hold."""

import gc

import mlx.core as mx
import tiny

from hlwq_mlx.engine.prefix_cache import PrefixCache
from hlwq_mlx.gemma4.caches import WHOLE, Caching, make_caches
from hlwq_mlx.gemma4.config import Gemma4Config
from hlwq_mlx.sharding import mirror
from hlwq_mlx.sharding.parts import layers_part
from hlwq_mlx.sharding.shares import Run

WIDTH = 64


def text():
    settings = tiny.config()
    settings["text_config"]["num_kv_shared_layers"] = 0
    return Gemma4Config.from_dict(settings)


class Pair:
    """Rank 0 with layers 0 and 1, another rank with 2 and 3, and caches that nobody parted."""

    def __init__(self, caching=WHOLE):
        self.args, self.notes, self.caching = text(), mirror.Notes(), caching
        other = layers_part(self.args, Run(2, 4)).args.text_config
        self.mirror = mirror.Mirror(other, Run(2, 4))

    def make(self):
        return mirror.make_led(self.args.text_config, self.caching, Run(0, 2), self.notes)

    def take(self, led, whole, length, seed):
        """Let all take new positions, as a pass would."""
        self.mirror.apply(self.notes.take())
        mx.random.seed(seed)
        new = [mx.random.normal((1, 1, length, WIDTH)) for _ in range(4)]
        there = self.mirror.together(mirror.sequences_of(led))
        for caches in (mirror.inner(led[:2]) + there, whole):
            for cache, each in zip(caches, new, strict=True):
                cache.update_and_fetch(each, each)
        mirror.advance(mirror.inner(led[2:]), length)
        return there


def same(led, there, whole):
    assert [entry.offset for entry in led] == [entry.offset for entry in whole]
    held = [*mirror.inner(led[:2]), *there]
    return all(
        mx.array_equal(a, b)
        for one, other in zip(held, whole, strict=True)
        for a, b in zip(one.peek(), other.peek(), strict=True)
    )


def test_rewinding_reaches_the_others():
    pair = Pair()
    led, whole = pair.make(), make_caches(pair.args.text_config, WHOLE)
    pair.take(led, whole, 7, 1)
    pair.take(led, whole, 4, 2)
    for caches in (led, whole):
        for entry in caches:
            entry.rewind(3)
    there = pair.take(led, whole, 2, 3)
    assert same(led, there, whole)


def test_a_prefix_comes_back_everywhere():
    pair = Pair()
    prefixes = PrefixCache(pair.make)
    keys = list(range(12))
    led, whole = pair.make(), make_caches(pair.args.text_config, WHOLE)
    pair.take(led, whole, 12, 1)
    assert prefixes.keep(keys, led, 12)
    match = prefixes.find([*keys, 40, 41])
    assert match.length == 12
    again = match.restore()
    there = pair.take(again, whole, 2, 2)
    assert same(again, there, whole)


def test_the_others_forget_what_nobody_holds():
    pair = Pair(Caching(max_kv_size=16))
    prefixes = PrefixCache(pair.make)
    led, whole = pair.make(), make_caches(pair.args.text_config, pair.caching)
    pair.take(led, whole, 9, 1)
    prefixes.keep(list(range(9)), led, 9)
    pair.mirror.apply(pair.notes.take())
    assert len(pair.mirror._sequences) == 1 and len(pair.mirror._kept) == 2
    prefixes.forget()
    del led
    gc.collect()
    pair.mirror.apply(pair.notes.take())
    assert not pair.mirror._sequences and not pair.mirror._kept
