"""The model against transformers' logits, its prompt shortcuts against itself, and its refusals."""

from itertools import pairwise

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.cache import KVCache, RotatingKVCache
from oracle import TABLE, TOLERANCE, VARIANTS, array, config, fresh_model, model, weights
from pairwise import in_turn

from hlwq_mlx.errors import CheckpointError, RequestError, ShapeError
from hlwq_mlx.folder import published
from hlwq_mlx.gemma4.caches import FullCache, SlidingCache
from hlwq_mlx.gemma4.model import Model, ModelArgs, Resources
from hlwq_mlx.mlxlm import caches as mlxlm_caches
from hlwq_mlx.quant import codec, tables
from hlwq_mlx.quant.packing import pack_p32

IMAGE, AUDIO, VIDEO = 300, 301, 302
TEXT = mx.array(array("text_ids"))
MIXED = mx.array(array("mixed_ids"))
PREFIX = "model.language_model."
DEAD = ("k_proj", "v_proj", "k_norm")
NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
    "post_per_layer_input_norm",
)

# Shorter than the window of 6, across it, single tokens among chunks, and nothing but tokens.
CUTS = [(13, 18), (5, 6), (7, 8, 9), (6, 12, 18), (21,), tuple(range(1, 22))]


def assert_close(got, wanted, tolerance=TOLERANCE):
    np.testing.assert_allclose(np.array(got), np.array(wanted), rtol=0, atol=tolerance)


def chunks(ids, cuts):
    borders = [0, *cuts, ids.shape[1]]
    return [ids[:, a:b] for a, b in pairwise(borders)]


def mixed_embeddings(variant):
    embeddings = np.array(model(variant).embed(MIXED))
    embeddings[np.isin(np.array(MIXED), (IMAGE, AUDIO, VIDEO))] = array("features")
    return mx.array(embeddings)


@pytest.mark.parametrize("variant", VARIANTS)
def test_text_logits_match_the_reference(variant):
    assert_close(model(variant)(TEXT), array(f"{variant}_text_logits"))


@pytest.mark.parametrize("variant", VARIANTS)
def test_mixed_logits_match_the_reference(variant):
    logits = model(variant)(MIXED, input_embeddings=mixed_embeddings(variant))
    assert_close(logits, array(f"{variant}_mixed_logits"))


def test_the_variants_differ_by_more_than_the_tolerance():
    for kind in ("text", "mixed"):
        plain = array(f"plain_{kind}_logits")
        for variant in ("k_eq_v", "double_wide", "bidirectional"):
            if (kind, variant) != ("text", "bidirectional"):
                differences = np.abs(array(f"{variant}_{kind}_logits") - plain)
                assert differences.max() > 1000 * TOLERANCE


@pytest.mark.parametrize("variant", VARIANTS)
def test_chunks_match_the_reference(variant):
    for cuts in CUTS:
        cache = model(variant).make_cache()
        logits = [model(variant)(chunk, cache) for chunk in chunks(TEXT, cuts)]
        assert_close(mx.concatenate(logits, 1), array(f"{variant}_text_logits"))


@pytest.mark.parametrize(("cuts", "variant"), in_turn([(), *CUTS], ["plain", "k_eq_v"]))
def test_prefill_scores_the_last_position_as_a_full_call_does(cuts, variant):
    tiny = model(variant)
    cache = tiny.make_cache()
    *first, last = chunks(TEXT[:, :-1], [cut for cut in cuts if cut < 21])
    for chunk in first:
        tiny.fill_cache(chunk, cache)
    logits = tiny.prefill(last, cache)
    assert logits.shape == (1, 1, 320)
    assert_close(logits, tiny(TEXT[:, :-1])[:, -1:], 1e-5)
    assert_close(tiny(TEXT[:, -1:], cache), tiny(TEXT)[:, -1:], TOLERANCE)


@pytest.mark.parametrize("variant", VARIANTS)
def test_mixed_chunks_match_the_reference(variant):
    tiny, embeddings = model(variant), mixed_embeddings(variant)
    for cuts in ((), (3,), (4, 15), (15, 17), (27, 30)):
        cache, borders = tiny.make_cache(), [0, *cuts]
        for start, stop in pairwise(borders):
            tiny.fill_cache(MIXED[:, start:stop], cache, embeddings[:, start:stop])
        start = borders[-1]
        prefilled = tiny.prefill(MIXED[:, start:-1], cache, embeddings[:, start:-1])
        logits = mx.concatenate([prefilled, tiny(MIXED[:, -1:], cache)], 1)
        assert_close(logits, array(f"{variant}_mixed_logits")[:, -2:])


def test_fill_cache_leaves_the_sharing_layers_alone():
    tiny = fresh_model()
    for layer in tiny.layers[5:]:
        layer.self_attn = None
    cache = tiny.make_cache()
    tiny.fill_cache(TEXT[:, :9], cache)
    mx.eval([entry.state for entry in cache])
    assert [entry.offset for entry in cache] == [9] * 5


def test_prefill_runs_the_sharing_layers_for_one_position():
    tiny, seen = fresh_model(), []

    class Watched:
        def __init__(self, layer):
            self.layer, self.layer_type = layer, layer.layer_type
            self.input_layernorm = layer.input_layernorm

        def __call__(self, x, normed, view, per_layer_input, following):
            seen.append((x.shape[1], per_layer_input.shape[1]))
            return self.layer(x, normed, view, per_layer_input, following)

    layers = tiny.model.language_model.layers
    layers[5:] = [Watched(layer) for layer in layers[5:]]
    tiny.prefill(TEXT, tiny.make_cache())
    assert seen == [(1, 1)] * 3


def test_prefill_finishes_the_last_layer_with_keys_for_one_position():
    """And a chunk that is not the last does not run it beyond its keys and values."""
    tiny, seen = fresh_model(), []
    layer = tiny.layers[4]
    mlp = layer.mlp

    def watched(x):
        seen.append(x.rows)
        return mlp(x)

    layer.mlp = watched
    cache = tiny.make_cache()
    tiny.fill_cache(TEXT[:, :9], cache)
    assert seen == []
    tiny.prefill(TEXT[:, 9:], cache)
    assert seen == [1]


@pytest.mark.parametrize("cached", [0, 9])
def test_prefill_mixes_the_rows_of_layers_that_read_them(monkeypatch, cached):
    """Of every position those of the layers before the last with keys, of the last one the rest."""
    text, mixed = model().model.language_model, []
    mix = type(text).per_layer_inputs

    def spy(self, x, rows, layers):
        found = mix(self, x, rows, layers)
        mixed.append((x.shape[1], len(found)))
        return found

    monkeypatch.setattr(type(text), "per_layer_inputs", spy)
    cache = model().make_cache()
    if cached:
        model().fill_cache(TEXT[:, :cached], cache)
        assert mixed == [(cached, 4)]
        mixed.clear()
    model().prefill(TEXT[:, cached:], cache)
    assert sorted(mixed) == [(1, 4), (TEXT.shape[1] - cached, 4)]


def test_a_batch_of_two_is_two_batches():
    both = mx.concatenate([TEXT, mx.flip(TEXT, 1)])
    cache = model().make_cache()
    logits = [model()(chunk, cache) for chunk in chunks(both, (9, 10))]
    for row in range(2):
        assert_close(
            mx.concatenate(logits, 1)[row : row + 1], model()(both[row : row + 1]), TOLERANCE
        )


def test_mlx_lms_merged_caches_of_unequal_length_decode_as_single_ones():
    text = model().args.text_config
    caches = [mlxlm_caches.make_caches(text), mlxlm_caches.make_caches(text)]
    for cache, length in zip(caches, (11, 4), strict=True):
        model().fill_cache(TEXT[:, :length], cache)
    merged = [type(pair[0]).merge(pair) for pair in zip(*caches, strict=True)]
    for step in range(4):
        tokens = TEXT[:, 14 + step : 15 + step]
        together = model()(mx.concatenate([tokens, tokens]), merged)
        alone = [model()(tokens, cache) for cache in caches]
        assert_close(together, mx.concatenate(alone), TOLERANCE)


def test_a_call_does_not_depend_on_the_cache_that_it_makes_itself():
    assert_close(model()(TEXT), model()(TEXT, model().make_cache()), 0)


def test_bfloat16_weights_give_float32_logits_close_to_float32_ones():
    tiny = fresh_model()
    tiny.set_dtype(mx.bfloat16)
    logits = tiny(TEXT, tiny.make_cache())
    assert logits.dtype == mx.float32
    assert np.abs(np.array(logits) - array("plain_text_logits")).max() < 1.0


def test_make_cache_has_an_entry_for_each_layer_that_makes_keys():
    kinds = [type(entry) for entry in model().make_cache()]
    assert kinds == [SlidingCache, SlidingCache, FullCache, SlidingCache, FullCache]
    own = mlxlm_caches.make_caches(model().args.text_config)
    kinds = [type(entry) for entry in own]
    assert kinds == [RotatingKVCache, RotatingKVCache, KVCache, RotatingKVCache, KVCache]
    assert [own[i].max_size for i in (0, 1, 3)] == [6, 6, 6]
    assert len(model().layers) == 8


def test_mlx_lms_caches_give_what_ours_give():
    own = mlxlm_caches.make_caches(model().args.text_config)
    ours = model().make_cache()
    for chunk in chunks(TEXT, (9, 10, 11, 12)):
        assert_close(model()(chunk, own), model()(chunk, ours), TOLERANCE)


def test_rows_get_padding_at_soft_tokens():
    tiny, asked = fresh_model(), []
    rows = tiny.resources.rows
    tiny.resources = Resources(lambda ids: (asked.append(ids), rows(ids))[1])
    tiny(MIXED)
    soft = np.isin(np.array(MIXED), (IMAGE, AUDIO, VIDEO))
    assert soft.sum() == 24
    np.testing.assert_array_equal(asked[0], np.where(soft, 0, np.array(MIXED)))


def test_embeddings_of_soft_tokens_are_those_of_padding():
    padding = model().embed(mx.array([[0]]))
    for soft in (IMAGE, AUDIO, VIDEO):
        assert_close(model().embed(mx.array([[5, soft]]))[:, 1:], padding, 0)


def test_a_call_embeds_as_embed_does():
    assert_close(model()(MIXED), model()(MIXED, input_embeddings=model().embed(MIXED)), 0)


def test_a_decoded_image_token_is_causal():
    tiny = model("bidirectional")
    cache = tiny.make_cache()
    tiny.fill_cache(TEXT[:, :9], cache)
    logits = tiny(mx.array([[IMAGE]]), cache)
    assert_close(
        logits, model("plain")(mx.concatenate([TEXT[:, :9], mx.array([[IMAGE]])], 1))[:, 9:]
    )


def test_a_model_without_per_layer_embeddings_asks_for_no_rows():
    settings = config()
    settings["text_config"]["hidden_size_per_layer_input"] = 0
    bare = Model(ModelArgs.from_dict(settings))
    names = [name for name, _ in tree_flatten(bare.parameters())]
    assert not [name for name in names if "per_layer" in name]
    assert bare(TEXT).shape == (1, 22, 320)


def test_e4b_tree_has_the_released_names_and_shapes():
    settings = published.e4b_config()
    e4b = Model(ModelArgs.from_dict(settings))
    shapes = {name: value.shape for name, value in tree_flatten(e4b.parameters())}
    assert len(shapes) == 2130 - 658 - 751 - 2 - 1 - 54
    top = {name: shape for name, shape in shapes.items() if "layers." not in name}
    assert top == {
        f"{PREFIX}embed_tokens.weight": (262144, 2560),
        f"{PREFIX}norm.weight": (2560,),
        f"{PREFIX}per_layer_model_projection.weight": (10752, 2560),
        f"{PREFIX}per_layer_projection_norm.weight": (256,),
    }
    common = {
        **{f"{norm}.weight": (2560,) for norm in NORMS},
        "layer_scalar": (1,),
        "mlp.gate_proj.weight": (10240, 2560),
        "mlp.up_proj.weight": (10240, 2560),
        "mlp.down_proj.weight": (2560, 10240),
        "per_layer_input_gate.weight": (256, 2560),
        "per_layer_projection.weight": (2560, 256),
    }
    for i in range(42):
        head_dim = 512 if i % 6 == 5 else 256
        wanted = {
            **common,
            "self_attn.q_proj.weight": (8 * head_dim, 2560),
            "self_attn.o_proj.weight": (2560, 8 * head_dim),
            "self_attn.q_norm.weight": (head_dim,),
        }
        if i < 24:
            wanted["self_attn.k_proj.weight"] = (2 * head_dim, 2560)
            wanted["self_attn.v_proj.weight"] = (2 * head_dim, 2560)
            wanted["self_attn.k_norm.weight"] = (head_dim,)
        here = f"{PREFIX}layers.{i}."
        got = {k.removeprefix(here): v for k, v in shapes.items() if k.startswith(here)}
        assert got == wanted
    assert [type(entry) for entry in e4b.make_cache()].count(FullCache) == 4
    assert len(e4b.make_cache()) == 24


def test_sanitize_keeps_exactly_the_tree_and_is_idempotent():
    tensors = {name: mx.array(weight) for name, weight in weights().items()}
    del tensors[TABLE]
    extra = {
        **{f"model.language_model.layers.5.self_attn.{n}.weight": mx.zeros(1) for n in DEAD},
        "model.language_model.layers.7.self_attn.k_proj.codes": mx.zeros(1),
        "model.vision_tower.encoder.layers.0.self_attn.k_proj.linear.weight": mx.zeros(1),
        "model.audio_tower.output_proj.bias": mx.zeros(1),
        "model.embed_vision.embedding_projection.weight": mx.zeros(1),
        "model.embed_audio.embedding_projection.weight": mx.zeros(1),
    }
    once = model().sanitize({**tensors, **extra})
    assert once.keys() == tensors.keys()
    assert model().sanitize(once) == once


def test_sanitize_leaves_strangers_for_the_strict_load_to_report():
    tiny = fresh_model()
    kept = tiny.sanitize({"model.language_model.layers.4.self_attn.k_scale": mx.zeros(1)})
    with pytest.raises(ValueError, match="k_scale"):
        tiny.load_weights(list(kept.items()), strict=True)


def test_a_flat_text_checkpoint_gives_the_same_logits():
    flat = Model(ModelArgs.from_dict({**config()["text_config"], "architectures": ["any"]}))
    tensors = {
        name.replace("model.language_model.", "model."): mx.array(weight)
        for name, weight in weights().items()
    }
    table = tensors.pop("model.embed_tokens_per_layer.weight")
    sanitized = flat.sanitize(tensors)
    assert flat.sanitize(sanitized) == sanitized
    flat.load_weights(list(sanitized.items()), strict=True)
    flat.resources = Resources(lambda ids: table[mx.array(ids)])
    assert_close(flat(TEXT), array("plain_text_logits"))


def test_a_coded_model_computes_what_its_decoded_weights_do():
    settings, tensors = config(), weights()
    layer = f"{PREFIX}layers.3."
    bits = {
        f"{PREFIX}embed_tokens.weight": 6,
        f"{layer}self_attn.q_proj.weight": 5,
        f"{layer}mlp.down_proj.weight": 3,
        f"{PREFIX}layers.5.per_layer_input_gate.weight": 8,
    }
    manifest = {
        "quant_method": "hlwq",
        "tensors": {name: {"bits": n, "table": "clip4_100"} for name, n in bits.items()},
        "tables": {
            f"clip4_100/{n}": tables.centroids("clip4_100", n).tolist() for n in bits.values()
        },
    }
    coded = Model(ModelArgs.from_dict({**settings, "quantization_config": manifest}))
    parameters = dict(tensors)
    for name, n in bits.items():
        centroids = tables.centroids("clip4_100", n)
        codes, norms = codec.encode(parameters.pop(name), centroids)
        stem = name.removesuffix("weight")
        parameters[f"{stem}codes"] = pack_p32(codes, n)
        parameters[f"{stem}norms"] = norms
        parameters[f"{stem}centroids"] = np.pad(centroids, (0, max(0, 8 - len(centroids))), "edge")
        columns = tensors[name].shape[1]
        tensors[name] = codec.decode(codes, norms, centroids)[:, :columns]
    plain = fresh_model()
    for target, source in ((coded, parameters), (plain, tensors)):
        loaded = {name: mx.array(value) for name, value in source.items() if name != TABLE}
        target.load_weights(list(target.sanitize(loaded).items()), strict=True)
    coded.resources = plain.resources
    assert np.abs(np.array(plain(TEXT)) - array("plain_text_logits")).max() > 1000 * TOLERANCE
    # The rotation adds float32 rounding of its own.
    assert_close(coded(TEXT), plain(TEXT), 5 * TOLERANCE)


def test_refuses_to_run_without_rows():
    bare = Model(ModelArgs.from_dict(config()))
    with pytest.raises(CheckpointError, match=r"^\[model.rows\] needed the row store of embed_tok"):
        bare(TEXT)


def test_refuses_rows_of_another_model():
    tiny = fresh_model()
    tiny.resources = Resources(lambda ids: mx.zeros((*ids.shape, 63)))
    with pytest.raises(
        ShapeError, match=r"^\[model.rows\] needed .*\(1, 22, 64\), got \(1, 22, 63"
    ):
        tiny(TEXT)


@pytest.mark.parametrize("entries", [8, 4, 0])
def test_refuses_a_cache_of_the_wrong_length(entries):
    cache = [KVCache() for _ in range(entries)]
    with pytest.raises(
        ShapeError, match=rf"^\[model.cache\] needed 5 entries, got {entries}\. Use"
    ):
        model()(TEXT, cache)


@pytest.mark.parametrize("bad", [-1, 320, 2**31])
def test_refuses_ids_outside_the_vocabulary(bad):
    ids = mx.array([[2, bad, 5]], dtype=mx.int64)
    for call in (model().embed, model()):
        with pytest.raises(RequestError, match=rf"^\[model.inputs\] needed .* 0 to 319, got {bad}"):
            call(ids)


@pytest.mark.parametrize(
    "inputs",
    [
        mx.zeros((4,), mx.int32),
        mx.zeros((1, 2)),
        mx.zeros((1, 2), mx.bfloat16),
        mx.zeros((1, 2), mx.bool_),
        mx.zeros((1, 0), mx.int32),
    ],
)
def test_refuses_inputs_that_are_no_batch_of_ids(inputs):
    with pytest.raises(ShapeError, match=r"^\[model.inputs\] needed integer ids \[B, L\], got"):
        model()(inputs)


def test_refuses_embeddings_of_another_shape():
    with pytest.raises(
        ShapeError, match=r"^\[model.input_embeddings\] needed .*\(1, 22, 64\), got"
    ):
        model()(TEXT, input_embeddings=mx.zeros((1, 21, 64)))


@pytest.mark.parametrize("stop", [5, 13, 21, 22])
def test_refuses_a_chunk_that_splits_a_bidirectional_block(stop):
    cache = model("bidirectional").make_cache()
    with pytest.raises(RequestError, match=r"^\[model.inputs\] .* blocks whole, got one that ends"):
        model("bidirectional").fill_cache(MIXED[:, :stop], cache)
    assert [entry.offset for entry in cache] == [0] * 5
    model("plain").fill_cache(MIXED[:, :stop], model("plain").make_cache())


def test_decoding_begins_before_the_graph_is_whole_and_gives_the_same():
    made = model()
    caches = [made.make_cache(), made.make_cache()]
    for cache in caches:
        made.fill_cache(mx.array([[2, 5, 7]]), cache)
    for token in (9, 4, 6):
        whole = made(mx.array([[token]]), caches[0])[:, -1]
        assert np.array_equal(
            np.array(made.decode(mx.array([[token]]), caches[1])), np.array(whole)
        )
