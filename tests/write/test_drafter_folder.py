"""A drafter's checkpoint: converted, coded, found beside its model, and refused by name."""

import json

import drafters
import mlx.core as mx
import numpy as np
import oracle
import pytest
import tiny
from mlx.utils import tree_flatten
from safetensors.numpy import save_file

from hlwq_mlx import convert as convert_command
from hlwq_mlx import library, quantize
from hlwq_mlx.disk.tensorfile import TensorFile
from hlwq_mlx.errors import CheckpointError, HLWQError, SourceError
from hlwq_mlx.folder import checksums, loading
from hlwq_mlx.folder.folder import DrafterFolder, Folder
from hlwq_mlx.gemma4.attention import SharedKV
from hlwq_mlx.memory.disk import disk_need
from hlwq_mlx.quant import codec
from hlwq_mlx.quant.tables import centroids
from hlwq_mlx.source import hub
from hlwq_mlx.source.repository import Source
from hlwq_mlx.write import convert
from hlwq_mlx.write.cache import open_drafter, open_folder

ORDER = "masked_embedding.token_ordering"
CENTROIDS = "masked_embedding.centroids.weight"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return drafters.write(tmp_path_factory.mktemp("drafter") / "source")


def score(drafter, seed=1):
    """Scores and the next state of one draft from random inputs."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return mx.array(rng.standard_normal(shape).astype(np.float32))

    shared = {}
    for kind, width in (("sliding_attention", 16), ("full_attention", 32)):
        keys, values = draw(1, 2, 5, width), draw(1, 2, 5, width)
        shared[kind] = SharedKV(keys, values, None, 5, None)
    scores, state = drafter(draw(1, 1, 64), draw(1, 1, 64), shared)
    ids = np.arange(320) if scores.ids is None else np.array(scores.ids)[0, 0]
    order = np.argsort(ids)
    return ids[order], np.array(scores.values)[0, 0][order], np.array(state)


def test_a_converted_drafter_drafts_as_before(source, tmp_path):
    summary = convert.convert(Source(source), tmp_path / "out")
    folder = DrafterFolder.open(tmp_path / "out")
    for got, wanted in zip(
        score(loading.load_drafter(folder)), score(drafters.drafter()), strict=True
    ):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5)
    assert folder.specs[ORDER].dtype == "I64"
    assert Folder.find(tmp_path / "out") is None
    before, after = summary.token_bytes
    assert before == after == sum(each.nbytes for each in drafters.weights().values())


@pytest.fixture(scope="module")
def coded(source, tmp_path_factory):
    output = tmp_path_factory.mktemp("coded") / "out"
    quantize.main(["--model", str(source), "--output", str(output), "--variant", "PQ5"])
    return DrafterFolder.open(output)


def test_quantize_codes_a_drafter(coded):
    """Codes decode to what the codec says; what orders the tokens keeps its dtype and bits."""
    wanted = dict(drafters.weights())
    table = centroids(quantize.TABLES[quantize.MLX], 5)
    names = coded.manifest["tensors"]
    assert {"pre_projection.weight", "model.layers.0.mlp.up_proj.weight"} <= names.keys()
    assert not {CENTROIDS, ORDER, "model.embed_tokens.weight"} & names.keys()
    for name, weight in wanted.items():
        if name in names:
            decoded = codec.decode(*codec.encode(weight, table), table)
            wanted[name] = decoded[:, : weight.shape[1]]
        elif name not in (CENTROIDS, ORDER):
            wanted[name] = tiny.as_float(tiny.as_bfloat16(weight))
    plain = drafters.drafter()
    plain.load_weights([(name, mx.array(weight)) for name, weight in wanted.items()])
    loaded = loading.load_drafter(coded)
    stored = dict(tree_flatten(loaded.parameters()))
    for name in (CENTROIDS, ORDER):
        assert coded.specs[name].dtype == {ORDER: "I64", CENTROIDS: "F32"}[name]
        assert np.array_equal(np.array(stored[name]), drafters.weights()[name])
    (ids, values, state), (wanted_ids, wanted_values, wanted_state) = score(loaded), score(plain)
    assert np.array_equal(ids, wanted_ids)
    np.testing.assert_allclose(values, wanted_values, atol=2e-5)
    np.testing.assert_allclose(state, wanted_state, atol=2e-5)


def write_model(root):
    """Write the model that the drafter is of."""
    settings = oracle.config() | {"vision_config": None, "audio_config": None}
    tiny.write_root(root, settings, side_files=())
    save_file(oracle.weights(), root / "model.safetensors")
    return root


def test_a_drafter_of_another_model_is_refused_before_the_work(tmp_path):
    root = write_model(tmp_path / "model")
    drafters.write(root / "drafter", backbone_hidden_size=128)
    with pytest.raises(CheckpointError, match=r"drafter.*projection"):
        convert.convert(Source(root), tmp_path / "out")
    path = root / "drafter" / "config.json"
    text = drafters.settings()["text_config"] | {"sliding_window": 5}
    path.write_text(json.dumps(drafters.settings() | {"text_config": text}))
    with pytest.raises(CheckpointError, match=r"drafter.config\.json.*sliding_window"):
        convert.convert(Source(root), tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == [root]


def test_a_drafter_beside_its_model_goes_along(tmp_path):
    write_model(tmp_path / "model")
    drafters.write(tmp_path / "model" / "drafter")
    summary = convert.convert(Source(tmp_path / "model"), tmp_path / "out")
    folder = Folder.open(tmp_path / "out")
    assert folder.drafter is not None
    loading.load_drafter(folder.drafter)
    assert any(line.startswith("drafter: ") for line in summary.lines())
    for each in (tmp_path / "out", folder.drafter.path):
        assert checksums.verify(each, lambda count: None) >= 3


def test_models_and_drafters_are_not_taken_for_each_other(source, coded, tmp_path, monkeypatch):
    monkeypatch.setenv("HLWQ_CACHE", str(tmp_path))
    assert open_drafter(str(source)).args.backbone_hidden_size == 64
    assert open_drafter(str(coded.path)).path == coded.path
    for path in (source, coded.path):
        with pytest.raises(SourceError, match="--draft-model"):
            open_folder(str(path))
    model = tiny.write_root(tmp_path / "model", tiny.config())
    tiny.save_plain(model / "model.safetensors", {"x": np.zeros(2, np.float32)})
    with pytest.raises(SourceError, match="a whole model"):
        open_drafter(str(model))


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"backbone_hidden_size": 1 << 40}, "backbone_hidden_size"),
        ({"num_centroids": 0}, "num_centroids"),
        ({"backbone_hidden_size": 128}, "projection"),
        ({"num_centroids": 20}, "masked_embedding.centroids.weight"),
        ({"use_ordered_embeddings": False}, "masked_embedding"),
    ],
)
def test_a_config_that_does_not_fit_is_refused_with_its_file(tmp_path, change, fault):
    root = drafters.write(tmp_path / "source", **change)
    with pytest.raises(HLWQError, match=fault) as refusal:
        convert.convert(Source(root), tmp_path / "out")
    assert "config.json" in str(refusal.value) and not (tmp_path / "out").exists()


def test_more_layers_than_there_are_is_one_line(tmp_path):
    text = oracle.config()["text_config"]  # a type for each of 8 layers
    own = drafters.settings()["text_config"]
    changed = own | {"num_hidden_layers": 8, "num_kv_shared_layers": 8}
    changed |= {"layer_types": text["layer_types"], "per_layer_config": text["per_layer_config"]}
    root = drafters.write(tmp_path / "source", text_config=changed)
    with pytest.raises(CheckpointError, match="num_hidden_layers") as refusal:
        convert.convert(Source(root), tmp_path / "out")
    assert len(str(refusal.value).splitlines()) == 1


def test_a_damaged_folder_is_refused(source, tmp_path):
    convert.convert(Source(source), tmp_path / "out")
    path = tmp_path / "out" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"backbone_hidden_size": 32}))
    with pytest.raises(CheckpointError, match=r"config\.json.*\n?.*projection"):
        loading.load_drafter(DrafterFolder.open(tmp_path / "out"))
    assert TensorFile(next((tmp_path / "out").glob("*.safetensors"))).specs


@pytest.mark.parametrize("id", [320, -1, 1 << 40, 7])
def test_an_order_with_other_ids_is_refused(tmp_path, id):
    """Its ids are rows that are read without further question."""
    root = drafters.write(tmp_path / "source")
    changed = drafters.weights()
    order = changed[ORDER].copy()
    order[order == 5] = id
    save_file(changed | {ORDER: order}, root / "model.safetensors")
    convert.convert(Source(root), tmp_path / "out")
    with pytest.raises(CheckpointError, match="token_ordering") as refusal:
        loading.load_drafter(DrafterFolder.open(tmp_path / "out"))
    assert str(tmp_path / "out") in str(refusal.value)


def test_convert_puts_a_drafter_into_its_models_folder(source, tmp_path):
    convert.convert(Source(write_model(tmp_path / "model")), tmp_path / "out")
    assert Folder.open(tmp_path / "out").drafter is None
    into = str(tmp_path / "out" / "drafter")
    convert_command.main(["--model", str(source), "--output", into, "--leftovers", "keep"])
    loading.require_loadable(Folder.open(tmp_path / "out"))
    found = library.load_drafter(loading.load(tmp_path / "out"))
    assert 0 < found.cost < 1


def test_a_drafter_on_the_hub_needs_room_too(source):
    """As `convert --discard-source` and doctor ask before a download."""
    specs = TensorFile(source / "model.safetensors").specs
    size = (source / "model.safetensors").stat().st_size
    config = json.loads((source / "config.json").read_text())
    headers = hub.Headers(None, config, [hub.Weights(size, size, dict(specs))])
    assert disk_need(headers, "keep", is_discarded=False).line(source, source)
