"""How much the first run on a Mac tries: everything in ten minutes, the essential in two."""

from dataclasses import dataclass, replace
from itertools import product

import mlx.core as mx

from hlwq_mlx.quant.chips import Tile
from hlwq_mlx.source import model_card


@dataclass(frozen=True)
class Sizes:
    """How much is tried; the rehearsal tries a little of everything.

    bits .. widths: what the self-tests compile. working_set: bytes of the matrices that take turns.
    read: bytes of the array that bandwidth is measured with. seconds: what all steps may take.
    """

    bits: tuple[int, ...]
    dtypes: tuple[mx.Dtype, ...]
    few: tuple[int, ...]
    outputs: tuple[int, ...]
    widths: tuple[int, ...]
    shapes: tuple[tuple[int, int], ...]
    timed_bits: tuple[int, ...]
    tile_bits: tuple[int, ...]
    tiles: tuple[Tile, ...]
    tokens: tuple[int, ...]
    rows: tuple[int, ...]
    many: tuple[int, ...]
    prefill: tuple[int, ...]
    chunk: int
    layers: int
    calls: int
    rounds: int
    working_set: int
    read: int
    prompts: tuple[str, ...]
    max_tokens: int
    seconds: int


FULL = Sizes(
    bits=tuple(range(1, 9)),
    dtypes=(mx.float32, mx.float16, mx.bfloat16),
    few=tuple(range(1, 9)),
    outputs=(256, 4096),
    widths=(256, 2048, 2560, 4096, 10240),  # of what E4B's layers multiply, norm and gate
    shapes=((2560, 10240), (10240, 2560)),
    timed_bits=(1, 2, 3, 4, 5, 6, 7, 8),
    tile_bits=(2, 3, 4, 5, 8),
    tiles=tuple(Tile(4, *cut, 1) for cut in product((4, 8, 16), (2, 4, 8))),
    tokens=(1, 2, 3, 4, 5),
    rows=(2, 4, 8),
    many=(32, 128, 512),
    prefill=(512, 4096, 19000),
    chunk=512,
    layers=42,
    calls=64,
    rounds=5,
    working_set=96 << 20,
    read=512 << 20,
    prompts=model_card.PROMPTS,
    max_tokens=200,
    seconds=600,
)
# For a first look in two minutes: every width compiles, one layer's shape is timed.
QUICK = replace(
    FULL,
    dtypes=(mx.float16, mx.bfloat16),
    few=(1, 8),
    outputs=(256,),
    widths=(256, 2560),
    shapes=((2560, 10240),),
    timed_bits=(2, 4, 5, 8),
    tile_bits=(5,),
    tiles=(Tile(4, 8, 2, 1), Tile(4, 16, 2, 1)),
    tokens=(1, 5),
    rows=(2, 4),
    many=(128,),
    prefill=(512,),
    chunk=256,
    layers=6,
    calls=16,
    rounds=3,
    working_set=48 << 20,
    read=256 << 20,
    max_tokens=64,
    seconds=120,
)
REHEARSAL = Sizes(
    bits=(5,),
    dtypes=(mx.float16,),
    few=(1,),
    outputs=(256,),
    widths=(256,),
    shapes=((256, 64),),
    timed_bits=(5,),
    tile_bits=(5,),
    tiles=(Tile(2, 8, 2, 1),),
    tokens=(1,),
    rows=(2,),
    many=(9,),
    prefill=(4,),
    chunk=2,
    layers=1,
    calls=2,
    rounds=1,
    working_set=1,
    read=1 << 16,
    prompts=model_card.PROMPTS[:1],
    max_tokens=4,
    seconds=1_000_000,
)
