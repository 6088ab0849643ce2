"""Which part of each tensor a machine holds where every layer is split: tensor parallel.

Queries, keys and values are split by heads, gate and up by rows, o_proj and down_proj by the
columns that meet those, in whole blocks of a code; the embedding, which is the head, by vocabulary;
experts by the columns of each, or by expert. What is small stays whole on every machine.
"""

import re
from dataclasses import dataclass, replace
from typing import NamedTuple

from ..errors import RequestError
from ..gemma4.config import TextConfig
from ..quant.packing import BLOCK

SIZES = (2, 4)
MOST_EXCESS = 1.05  # of the largest share of experts over an even one, before whole experts part
_LAYER = re.compile(r"\.layers\.(\d+)\.(?:self_attn|mlp|experts)\.(\w+?)(?:_proj)?(?:\.|$)")


class Run(NamedTuple):
    """Rows or columns from `start` up to `stop`."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def times(self, count: int) -> "Run":
        """Return the same run of what is `count` times as large."""
        return Run(self.start * count, self.stop * count)


@dataclass(frozen=True)
class Share:
    """Part of a matrix, or of a stack of matrices below each other; None is all of it."""

    rows: tuple[Run, ...] | None = None
    columns: Run | None = None

    def part_of(self, rows: int, columns: int) -> float:
        """Return which part of a matrix of this shape it is."""
        height = rows if self.rows is None else sum(map(len, self.rows))
        width = columns if self.columns is None else min(self.columns.stop, columns)
        width -= self.columns.start if self.columns is not None else 0
        return height * width / (rows * columns)


WHOLE = Share()


@dataclass(frozen=True)
class Split:
    """What machine `rank` of `size` holds; a matrix's columns part in whole `grains`.

    Raises: RequestError for a number of machines, or a model, that cannot be split so.
    """

    config: TextConfig
    size: int
    rank: int
    grain: int = BLOCK

    def __post_init__(self) -> None:
        _require(self.config, self.size, self.grain)

    @property
    def heads(self) -> Run:
        """The heads of queries, in every layer."""
        return _even(self.config.num_attention_heads, self.size, self.rank)

    @property
    def vocabulary(self) -> Run:
        """The tokens whose rows of the embedding are here."""
        vocab_size = self.config.vocab_size
        most = -(-vocab_size // self.size)
        return Run(most * self.rank, min(most * (self.rank + 1), vocab_size))

    @property
    def columns(self) -> Run:
        """The columns of down_proj; a layer of double width has twice as many."""
        return _in_grains(self.config.intermediate_size, self.size, self.rank, self.grain)

    @property
    def experts(self) -> Run | None:
        """The experts that are here, None where each has its columns split."""
        config = self.config
        if config.moe_intermediate_size is None or config.num_experts is None:
            return None
        grains = -(-config.moe_intermediate_size // self.grain)
        excess = -(-grains // self.size) * self.size / grains
        if excess <= MOST_EXCESS or config.num_experts % self.size:
            return None
        return _even(config.num_experts, self.size, self.rank)

    @property
    def expert_columns(self) -> Run:
        """The columns of each expert's down projection."""
        width = self.config.moe_intermediate_size or 0
        if self.experts is not None:
            return Run(0, width)
        return _in_grains(width, self.size, self.rank, self.grain)

    def kv_heads(self, index: int) -> Run:
        """The heads of a layer's keys and values: beyond their number, machines share one."""
        return _shared(self.config.layer(index).num_key_value_heads, self.size, self.rank)

    def narrow(self) -> TextConfig:
        """Return the config of a model as large as this share, but for whole experts."""
        config = self.config
        wide = config.num_global_key_value_heads
        moe = config.moe_intermediate_size
        return replace(
            config,
            vocab_size=len(self.vocabulary),
            intermediate_size=len(self.columns),
            num_attention_heads=len(self.heads),
            num_key_value_heads=len(_shared(config.num_key_value_heads, self.size, self.rank)),
            num_global_key_value_heads=wide and len(_shared(wide, self.size, self.rank)),
            moe_intermediate_size=moe and len(self.expert_columns),
            num_experts=len(self.experts) if self.experts else config.num_experts,
        )

    def share(self, weight: str) -> Share:
        """Return the share of a tensor, by its name in the checkpoint."""
        if ".embed_tokens." in weight:
            return Share((self.vocabulary,))
        found = _LAYER.search(weight)
        if found is None:
            return WHOLE
        index, part = int(found[1]), found[2]
        layer = self.config.layer(index)
        if part == "q":
            return Share((self.heads.times(layer.head_dim),))
        if part in "kv":
            return Share((self.kv_heads(index).times(layer.head_dim),))
        if part == "o":
            return Share(None, self.heads.times(layer.head_dim))
        if part == "gate_up" or ".experts." in weight:
            return self._expert_share(part)
        wide = self.columns.times(layer.intermediate_size // self.config.intermediate_size)
        return {"gate": Share((wide,)), "up": Share((wide,)), "down": Share(None, wide)}.get(
            part, WHOLE
        )

    def _expert_share(self, part: str) -> Share:
        config, own, columns = self.config, self.experts, self.expert_columns
        count, width = config.num_experts or 0, config.moe_intermediate_size or 0
        if own is not None:
            return Share((own.times(config.hidden_size if part == "down" else 2 * width),))
        if part == "down":
            return Share(None, columns)
        starts = range(0, 2 * count * width, width)  # gate's rows and up's, of every expert
        return Share(tuple(Run(at + columns.start, at + columns.stop) for at in starts))


def _even(count: int, size: int, rank: int) -> Run:
    return Run(count * rank // size, count * (rank + 1) // size)


def _shared(count: int, size: int, rank: int) -> Run:
    if count % size == 0:
        return _even(count, size, rank)
    at = rank * count // size
    return Run(at, at + 1)


def _in_grains(count: int, size: int, rank: int, grain: int) -> Run:
    """Share out whole grains; the first machines get one more where they do not come out even."""
    each, more = divmod(-(-count // grain), size)
    start = rank * each + min(rank, more)
    stop = start + each + (rank < more)
    return Run(start * grain, min(stop * grain, count))


def _require(config: TextConfig, size: int, grain: int) -> None:
    if size not in SIZES:
        raise _refusal(f"2 or 4 machines to split tensors for, got {size}")
    heads = config.num_attention_heads
    if heads % size:
        raise _refusal(f"a number of heads that {size} machines can share, got {heads}")
    for index in range(config.num_hidden_layers):
        layer = config.layer(index)
        kv_heads, width = layer.num_key_value_heads, heads // size * layer.head_dim
        if kv_heads % size and size % kv_heads:
            raise _refusal(f"heads of keys that {size} machines can share, got {kv_heads}")
        if width % grain:
            raise _refusal(f"columns of o_proj in blocks of {grain} on each machine, got {width}")
    if config.intermediate_size <= (size - 1) * grain:
        raise _refusal(f"{size} blocks of {grain} columns, got {config.intermediate_size}")
    few = config.moe_intermediate_size
    if few is not None and few <= (size - 1) * grain and (config.num_experts or 0) % size:
        raise _refusal(f"experts that {size} machines can share, got {config.num_experts}")


def _refusal(problem: str) -> RequestError:
    return RequestError(f"[--split] needed {problem}. Split the model by layers.")
