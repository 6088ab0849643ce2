"""Count what one decoded token launches on a GPU, where there is none.

MLX builds the graph of a token before anything runs, and hands Metal about one launch for every
primitive in it. Here that graph is built for a model with E4B's 42 layers and small widths, which
do not change it, printed by `mx.export_to_dot`, and its primitives are counted times a table. Not a
measurement: the table is a reading of MLX 0.32.4, in which the CPU build takes `mx.fast` apart, so
its functions and our kernels are replaced by stand-ins of one primitive each.
"""

import copy
import io
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any
from unittest import mock

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_map_with_path
from mlx_lm.models import gemma4_text

from hlwq_mlx.folder import published
from hlwq_mlx.gemma4.attention import SharedKV
from hlwq_mlx.gemma4.drafter import Drafter
from hlwq_mlx.gemma4.drafter_config import DrafterConfig
from hlwq_mlx.gemma4.experts import weighted_sum
from hlwq_mlx.gemma4.model import Model, ModelArgs, Resources
from hlwq_mlx.quant import device, fuse, selftest
from hlwq_mlx.quant.chips import chips
from hlwq_mlx.quant.ops import gelu_mul
from hlwq_mlx.quant.tables import centroids
from hlwq_mlx.source.rules import Rule, class_rule
from scripts.benchmarks.shapes import LARGER, e4b_config, larger_config

WINDOW = 8
SMALL = {
    "vocab_size": 256,
    "vocab_size_per_layer_input": 256,
    "hidden_size": 128,
    "hidden_size_per_layer_input": 128,
    "intermediate_size": 256,
    "head_dim": 64,
    "global_head_dim": 128,
    "sliding_window": WINDOW,
}
# Of those that the larger models are named for; experts and heads are fewer too.
SMALL_LARGER = {
    **{key: value for key, value in SMALL.items() if key != "hidden_size_per_layer_input"},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "num_global_key_value_heads": 1},
}
SMALL_EXPERTS = {"num_experts": 16, "moe_intermediate_size": 128}
TABLE = "clip4_100"
DTYPE = mx.float16  # what an M1 runs

# Launches of a primitive at one token; any other is one launch, a compiled group too. Reshapes and
# transposes only move axes of length one here, so that nothing is copied.
LAUNCHES = {
    **dict.fromkeys(("Reshape", "Flatten", "Unflatten", "Squeeze", "ExpandDims"), 0),
    **dict.fromkeys(("Transpose", "Broadcast", "BroadcastAxes", "AsStrided", "View"), 0),
    **dict.fromkeys(("Slice", "Split", "StopGradient", "NumberOfElements"), 0),
    "Concatenate": 2,
}
ALL_CODED = class_rule({"experts": 3, "attention": 5, "mlp": 5, "embedding": 6, "router": 8})
LAUNCH = "Depends"  # how a stand-in appears in the graph
EVALUATE = mx.eval  # whatever `count_chunk` makes of the name


def manifest(shapes: dict[str, tuple[int, ...]], rule: Rule) -> dict[str, Any]:
    """Return what a converted folder's config.json says of a model coded by a rule."""
    widths = {name: rule(name, shape) for name, shape in shapes.items()}
    coded = {name: {"bits": bits, "table": TABLE} for name, bits in widths.items() if bits}
    tables = {
        f"{TABLE}/{bits}": centroids(TABLE, bits).tolist() for bits in set(widths.values()) if bits
    }
    return {"quant_method": "hlwq", "tensors": coded, "tables": tables}


def plain_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of the text model's parameters; nothing is computed."""
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str, array: mx.array) -> None:
        shapes[name] = array.shape

    tree_map_with_path(note, Model(ModelArgs.from_dict(config)).parameters())
    return shapes


def coded_model(config: dict[str, Any], rule: Rule, dtype: mx.Dtype) -> Model:
    """Make a model with random codes, by a rule; all else is zero or random, in `dtype`."""
    described = copy.deepcopy(config)
    described["quantization_config"] = manifest(plain_shapes(config), rule)
    args = ModelArgs.from_dict(described)
    width = args.text_config.num_hidden_layers * args.text_config.hidden_size_per_layer_input
    row = mx.zeros((1, 1, width), dtype)

    def rows(ids: np.ndarray) -> mx.array:
        return row if ids.shape == (1, 1) else mx.broadcast_to(row, (*ids.shape, width))

    model = Model(args, Resources(rows))

    def filled(name: str, array: mx.array) -> mx.array:
        if name.endswith(".codes"):
            return mx.random.randint(0, 1 << 16, array.shape, mx.uint32) * 65521
        if name.endswith(".norms"):
            return mx.random.uniform(0.2, 0.4, array.shape, mx.float16)
        return array if name.endswith(".centroids") else array.astype(dtype)

    model.update(tree_map_with_path(filled, model.parameters()))
    mx.eval(model.parameters(), row)
    return model


def stock_model(config: dict[str, Any], bits: int | None, dtype: mx.Dtype) -> Any:
    """Make stock mlx-lm's model of the same shape, affine in groups of 64 if `bits` is given."""
    model = unmade_stock_model(config, bits, dtype)
    mx.eval(model.parameters())
    return model


def unmade_stock_model(config: dict[str, Any], bits: int | None, dtype: mx.Dtype) -> Any:
    """Return the same model before its weights are computed, so that others can be loaded."""
    model = gemma4_text.Model(gemma4_text.ModelArgs.from_dict(config["text_config"]))
    model.set_dtype(dtype)
    if bits is not None:
        nn.quantize(model, group_size=64, bits=bits)
    return model


def count_ours(rule: Rule) -> Counter[str]:
    """Count a token of our model on an M1, coded by a rule."""
    return _count(_fused(rule))


def count_larger(name: str) -> Counter[str]:
    """Count a token of a larger Gemma 4 on an M1, all of it coded."""
    config = _small_larger(name)
    return _count(_fused(ALL_CODED, config), config=config)


def _small_larger(name: str) -> dict[str, Any]:
    experts = SMALL_EXPERTS if "num_experts" in LARGER[name] else {}
    return larger_config(name, **SMALL_LARGER, **experts)


def count_passes(rule: Rule, most: int) -> list[int]:
    """Count the launches of passes of 1, 2, .. `most` tokens of E4B on an M1."""
    return _count_passes(rule, most, e4b_config(**SMALL))


def count_larger_passes(name: str, most: int) -> list[int]:
    """Count the same of a larger Gemma 4, all of it coded."""
    return _count_passes(ALL_CODED, most, _small_larger(name))


def _count_passes(rule: Rule, most: int, config: dict[str, Any]) -> list[int]:
    # Of several tokens, attention's results are copied from heads to positions, once a layer.
    model = _fused(rule, config)
    counts = [total(_count(model, tokens, config)) for tokens in range(1, most + 1)]
    copies = model.args.text_config.num_hidden_layers
    return [counts[0], *(count + copies for count in counts[1:])]


def _fused(rule: Rule, config: dict[str, Any] | None = None) -> Model:
    model = coded_model(config or e4b_config(**SMALL), rule, DTYPE)
    with standing_in():
        for block in fuse.blocks(model):
            fuse.fuse(block)
    return model


def count_experts_rest(name: str) -> int:
    """Count what experts' products do not do: the gate, and the sum of what experts gave."""
    text = ModelArgs.from_dict(larger_config(name)).text_config
    k, layers = text.top_k_experts or 0, text.num_hidden_layers
    gate, each = mx.zeros((1, 1, k, 128), DTYPE), mx.zeros((1, 1, k, 256), DTYPE)
    shares = mx.zeros((1, 1, k), mx.float32)
    mx.eval(gate, each, shares)

    def run() -> list[mx.array]:
        return [gelu_mul(gate, gate), weighted_sum(each, shares).astype(DTYPE)]

    return layers * total(_count_graph(run)) if k else 0


def count_stock(bits: int | None) -> Counter[str]:
    """Count a token of stock mlx-lm's model."""
    model = stock_model(e4b_config(**SMALL), bits, DTYPE)
    mx.eval(model(mx.array([[1, 2]])))  # it makes constants at its first token
    return _count(model)


def count_draft() -> int:
    """Count the launches of a draft behind another, by E4B's drafter, uncoded."""
    config = copy.deepcopy(dict(published.E4B_DRAFTER))
    config["text_config"] |= SMALL | {"vocab_size_per_layer_input": 0}
    config["text_config"]["hidden_size_per_layer_input"] = 0
    sizes = {"backbone_hidden_size": 128, "num_centroids": 16, "centroid_intermediate_top_k": 4}
    drafter = Drafter(DrafterConfig.from_dict(config | sizes))
    drafter.set_dtype(DTYPE)
    with standing_in():
        for block in fuse.blocks(drafter):
            fuse.fuse(block)
    table, state = mx.zeros((256, 128), DTYPE), mx.zeros((1, 1, 128), DTYPE)
    shared = {}
    for layer_type, width in (("sliding_attention", 64), ("full_attention", 128)):
        keys = mx.zeros((1, 2, WINDOW, width), DTYPE)
        shared[layer_type] = SharedKV(keys, keys, None, mx.array(WINDOW), None)
    mx.eval(drafter.parameters(), table, state)

    def embed(ids: mx.array) -> mx.array:
        return table[ids] * mx.array(128**0.5, DTYPE)

    one, two = (
        total(_count_graph(lambda k=k: [drafter.draft(embed, mx.array([[1]]), state, shared, k)]))
        for k in (1, 2)
    )
    return two - one


def total(launches: Counter[str]) -> int:
    """Sum the launches of a token."""
    return sum(launches.values())


def _count(model: Any, tokens: int = 1, config: dict[str, Any] | None = None) -> Counter[str]:
    """Count launches of a pass by primitive; those of a stand-in carry its name."""
    cache = model.make_cache()
    shapes = _key_shapes(config or e4b_config(**SMALL))
    for entry, (heads, width) in zip(cache, shapes, strict=True):
        for length in (WINDOW + 4, 1):  # then a ring buffer is as it is from there on
            keys = mx.zeros((1, heads, length, width), DTYPE)
            mx.eval(entry.update_and_fetch(keys, keys))
    mx.eval([entry.state for entry in cache])

    def run() -> list[mx.array]:
        logits = model(mx.array([[1] * tokens]), cache=cache)
        return [logits, *(each for entry in cache for each in entry.state if _is_array(each))]

    return _count_graph(run)


def prefill_model(rule: Rule, window: int) -> Model:
    """Make our model as it reads a prompt on an M1, coded by a rule, with a window of its own."""
    return _fused(rule, e4b_config(**{**SMALL, "sliding_window": window}))


def count_chunk(model: Model, tokens: int, held: int, *, is_last: bool) -> int:
    """Count the primitives of the graph that reads a prompt's chunk behind `held` positions."""
    cache = model.make_cache()
    for entry, (heads, width) in zip(cache, _key_shapes(e4b_config(**SMALL)), strict=True):
        if held:
            keys = mx.zeros((1, heads, held, width), DTYPE)
            mx.eval(entry.update_and_fetch(keys, keys))
    mx.eval([entry.state for entry in cache if held])
    ids = mx.array([[1] * tokens])

    def run() -> list[mx.array]:
        outputs = [*model.prefill_state(ids, cache)] if is_last else []
        if not is_last:
            model.fill_cache(ids, cache)
        return [*outputs, *(each for entry in cache for each in entry.state if _is_array(each))]

    # A layer is handed over as soon as it is built: its graph would be gone.
    with standing_in(), mock.patch.multiple(mx, eval=_nothing, async_eval=_nothing):
        return total(_primitives(run))


def _nothing(*arrays: Any) -> None:
    pass


def _is_array(value: Any) -> bool:
    return isinstance(value, mx.array)


def _count_graph(run: Callable[[], list[mx.array]]) -> Counter[str]:
    """Count the launches of what a function builds."""
    with standing_in() as names:
        primitives = _primitives(run)
    if primitives.pop(LAUNCH, 0) != total(names):
        raise SystemExit("error: [launches] needed every stand-in to be part of the graph")
    counted = Counter(names)
    for name, times in primitives.items():
        label = "Compiled" if name.startswith("Compiled") else name
        counted[label] += times * LAUNCHES.get(label, 1)
    return +counted


def _primitives(run: Callable[[], list[mx.array]]) -> Counter[str]:
    """Count the primitives of the graph that a function builds."""
    dot = io.StringIO()
    mx.export_to_dot(dot, *run())
    return Counter(re.findall(r'label ?= ?"([^"]+)", shape=rectangle', dot.getvalue()))


def _key_shapes(config: dict[str, Any]) -> list[tuple[int, int]]:
    text = ModelArgs.from_dict(config).text_config
    layers = [text.layer(index) for index in range(text.first_shared)]
    return [(layer.num_key_value_heads, layer.head_dim) for layer in layers]


@cache
def zeros(shape: tuple[int, ...], dtype: mx.Dtype) -> mx.array:
    """Return zeros that are evaluated, so that a stand-in takes no time of its own."""
    array = mx.zeros(shape, dtype)
    EVALUATE(array)
    return array


@contextmanager
def standing_in() -> Iterator[Counter[str]]:
    """Build graphs within the block as on an M1; yield the names of the stand-ins used."""
    names: Counter[str] = Counter()

    def launch(
        name: str, inputs: Sequence[Any], outputs: Sequence[tuple[Sequence[int], mx.Dtype]]
    ) -> list[mx.array]:
        names[name] += 1
        results = [zeros(tuple(shape), dtype) for shape, dtype in outputs]
        arrays = [array for array in inputs if isinstance(array, mx.array)]
        launched: list[mx.array] = mx.depends(results, arrays)
        return launched

    def like_first(name: str, arrays: int) -> Callable[..., mx.array]:
        def stand_in(*args: Any, **options: Any) -> mx.array:
            return launch(name, args[:arrays], [(args[0].shape, args[0].dtype)])[0]

        return stand_in

    def metal_kernel(name: str, **texts: Any) -> Callable[..., list[mx.array]]:
        def stand_in(*, inputs: Any, output_shapes: Any, output_dtypes: Any, **_: Any) -> Any:
            return launch(name, inputs, list(zip(output_shapes, output_dtypes, strict=True)))

        return stand_in

    def dequantize(words: mx.array, scales: mx.array, *_: Any, **options: Any) -> mx.array:
        shape = (*scales.shape[:-1], scales.shape[-1] * options["group_size"])
        return launch("dequantize", (words, scales), [(shape, scales.dtype)])[0]

    attention = "scaled_dot_product_attention"
    with ExitStack() as stack:
        for where, name, replacement in (
            (mx.fast, "rms_norm", like_first("rms_norm", 2)),
            (mx.fast, "rope", like_first("rope", 1)),
            (mx.fast, attention, like_first(attention, 3)),
            (mx.fast, "metal_kernel", metal_kernel),
            (mx, "dequantize", dequantize),
            (device, "has_metal", lambda: True),
            (device, "is_cpu", lambda: False),
            (device, "chip", lambda: chips()["M1"]),
            (device, "activation_dtype", lambda: DTYPE),
            (selftest, "passes", lambda *case: True),
            (selftest, "passes_on", lambda *case: True),
            (selftest, "is_lazy", lambda kernel: True),
        ):
            stack.enter_context(mock.patch.object(where, name, replacement))
        yield names
