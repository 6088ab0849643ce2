"""Towers of a folder: converted whole or not at all, read when they are needed, coded or not."""

import json
import re
import shutil

import mlx.core as mx
import numpy as np
import oracle
import pytest
import tiny
from mlx.utils import tree_flatten

from hlwq_mlx.errors import CheckpointError, RequestError, SourceError
from hlwq_mlx.folder import loading
from hlwq_mlx.folder.names import INDEX_NAME
from hlwq_mlx.gemma4.config import Gemma4Config
from hlwq_mlx.gemma4.towers.tower import TOWER_PREFIXES, make_tower, prefixes
from hlwq_mlx.mlxlm import model as stock
from hlwq_mlx.mlxlm.plugin import FOLDER_KEY
from hlwq_mlx.quant.layers import HLWQLinear
from hlwq_mlx.source.repository import Source
from hlwq_mlx.write import convert, output

MEL = mx.random.normal((13, 16), key=mx.random.key(0))
IMAGE = mx.random.uniform(shape=(9, 48), key=mx.random.key(1))
PLACES = mx.array([(x, y) for y in range(3) for x in range(3)])
MEDIA_KEYS = (
    "vision_config",
    "audio_config",
    "image_",
    "video_",
    "audio_",
    "boi_",
    "eoi_",
    "boa_",
    "eoa_",
)
BIAS = "model.audio_tower.output_proj.bias"
QUERY = "model.audio_tower.layers.0.self_attn.q_proj.linear"


def settings():
    """The tiny model's config with the oracle's towers."""
    towers = oracle.config("clipped")
    media = {name: towers[name] for name in towers if name.startswith(MEDIA_KEYS)}
    return tiny.config() | media


def make_weights():
    rng = np.random.default_rng(3)
    args = Gemma4Config.from_dict(settings())
    weights = tiny.make_weights(settings(), has_towers=False)
    for kind in args.towers:
        for name, array in tree_flatten(make_tower(args, kind).parameters()):
            ends = {"min": -2.0, "max": 2.0}.get(name[-3:])
            draw = rng.normal(size=array.shape) / max(array.size, 1) ** 0.25
            weights[name] = np.float32(draw + (array.ndim == 1) if ends is None else ends)
    return {
        name: tiny.as_float(tiny.as_bfloat16(w)).reshape(w.shape) for name, w in weights.items()
    }


def publish(root, weights):
    """A source whose audio tower is coded, as the published ones are, and what it decodes to."""
    tiny.write_root(root, settings())
    decoded = tiny.publish(root / "PQ5", weights, tiny.pure(5))
    return Source(root / "PQ5", "PQ5"), decoded


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of many shards, and the decoded weights."""
    root = tmp_path_factory.mktemp("towers")
    source, decoded = publish(root, make_weights())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(output, "SHARD_BYTES", 60_000)
        convert.convert(source, root / "out")
    return root / "out", decoded


@pytest.fixture
def own(made, tmp_path):
    """A copy of the folder, free to be damaged."""
    return shutil.copytree(made[0], tmp_path / "own")


def shards_of(folder, kind):
    """The shards that hold nothing but one tower's tensors."""
    weight_map = json.loads((folder / INDEX_NAME).read_text())["weight_map"]
    others = {file for name, file in weight_map.items() if not name.startswith(prefixes(kind))}
    return sorted(set(weight_map.values()) - others)


def test_a_tower_is_not_read_before_the_first_sound(own, tmp_path):
    audio = shards_of(own, "audio")
    assert audio
    for file in audio:
        shutil.move(own / file, tmp_path / file)
    model = loading.load(own)
    assert np.isfinite(tiny.logits(model)).all()
    assert model.image_features(IMAGE, PLACES).shape == (1, 128)
    with pytest.raises(SourceError, match=rf"\[{audio[0]}\] needed to read"):
        model.audio_features(MEL)
    names = {name for name, _ in tree_flatten(model.parameters())}
    assert not any(name.startswith(prefixes("audio")) for name in names)
    for file in audio:
        shutil.move(tmp_path / file, own / file)
    assert model.audio_features(MEL).shape == (4, 128)


def test_coded_layers_compute_what_their_decoded_weights_do(made):
    folder, decoded = made
    model = loading.load(folder)
    got = {"audio": model.audio_features(MEL), "vision": model.image_features(IMAGE, PLACES)}
    args = Gemma4Config.from_dict(settings())
    for kind, inputs in {"audio": (MEL,), "vision": (IMAGE, PLACES)}.items():
        dense = make_tower(args, kind)
        own = {name: w for name, w in decoded.items() if name.startswith(prefixes(kind))}
        dense.load_weights([(name, mx.array(weight)) for name, weight in own.items()])
        encoded = dense.model[f"{kind}_tower"](*inputs)
        wanted = dense.model[f"embed_{kind}"](encoded, mx.float32)
        np.testing.assert_allclose(np.array(got[kind]), np.array(wanted), rtol=0, atol=1e-4)
    audio = model.resources.load_tower("audio").model.audio_tower
    coded = {type(layer) for layer in (audio.output_proj, audio.layers[0].self_attn.post.linear)}
    assert coded == {HLWQLinear}


def test_stock_mlx_lm_gets_the_same_towers(made):
    folder, _ = made
    config = json.loads((folder / "config.json").read_text()) | {FOLDER_KEY: str(folder)}
    theirs = stock.Model(stock.ModelArgs.from_dict(config))
    weights = {}
    for file in sorted(folder.glob("model*.safetensors")):
        weights |= mx.load(str(file))
    theirs.load_weights(list(theirs.sanitize(weights).items()), strict=True)
    wanted = loading.load(folder).audio_features(MEL)
    assert mx.array_equal(theirs.audio_features(MEL), wanted)


def test_what_a_tower_of_a_folder_lacks_is_listed(own):
    index = own / INDEX_NAME
    value = json.loads(index.read_text())
    for name in (f"{QUERY}.norms", BIAS):
        file = own / value["weight_map"].pop(name)
        tensors, metadata = mx.load(str(file), return_metadata=True)
        tensors["model.audio_tower.more"] = tensors.pop(name)
        mx.eval(list(tensors.values()))
        file.unlink()
        mx.save_safetensors(str(file), tensors, metadata)
    index.write_text(json.dumps(value))
    model = loading.load(own)
    with pytest.raises(CheckpointError) as caught:
        model.audio_features(MEL)
    problems = str(caught.value).replace(f"{own / 'config.json'}: ", "")
    assert re.findall(r"\[(\S+)\]", problems) == [
        *(f"{QUERY}.norms", BIAS, "model.audio_tower.more"),
    ]


def test_a_source_without_towers_stays_without(tmp_path):
    weights = {n: w for n, w in make_weights().items() if not n.startswith(TOWER_PREFIXES)}
    source, _ = publish(tmp_path, weights)
    convert.convert(source, tmp_path / "out")
    model = loading.load(tmp_path / "out")
    assert np.isfinite(tiny.logits(model)).all()
    with pytest.raises(RequestError, match=r"got none: this checkpoint has no audio tower\."):
        model.audio_features(MEL)


def test_a_partial_tower_is_refused(tmp_path):
    weights = make_weights()
    del weights[BIAS]
    weights["model.vision_tower.std_bias"] = np.zeros(48, np.float32)
    weights["model.embed_audio.embedding_projection.weight"] = np.zeros((128, 25), np.float32)
    source, _ = publish(tmp_path, weights)
    with pytest.raises(CheckpointError) as caught:
        convert.convert(source, tmp_path / "out")
    problems = str(caught.value).replace(f"{tmp_path / 'config.json'}: ", "")
    assert re.split(r" (?=\[)", problems) == [
        f"[{BIAS}] needed in the source, got no such tensor. Download the variant again.",
        "[model.embed_audio.embedding_projection.weight] needed shape (128, 24) by config.json, "
        "got (128, 25). The files do not belong together.",
        "[model.vision_tower.std_bias] needed no such tensor, got one. Check config.json.",
    ]


def test_a_tower_that_the_config_does_not_have():
    blind = Gemma4Config.from_dict(settings() | {"vision_config": None})
    with pytest.raises(RequestError, match=r"this checkpoint has no vision tower\."):
        make_tower(blind, "vision")


def test_a_config_without_its_folder_says_what_to_import():
    with pytest.raises(
        CheckpointError, match=r"^\[config\] needed the folder of the model, got non"
    ):
        stock.ModelArgs.from_dict(settings())
