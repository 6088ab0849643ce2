"""A model whose matrices all have strong means: quantized, listed, loaded, shared out, gone on."""

import hub_server
import mlx.core as mx
import numpy as np
import pytest
import tiny
from test_leftovers import check_logits

from hlwq_mlx import cli, quantize
from hlwq_mlx.disk import atomic
from hlwq_mlx.disk.jsonfile import read_json
from hlwq_mlx.disk.tensorfile import TensorFile
from hlwq_mlx.errors import CheckpointError, SourceError
from hlwq_mlx.folder import loading
from hlwq_mlx.folder.folder import Folder
from hlwq_mlx.memory import inventory
from hlwq_mlx.memory.mixture import choices_of
from hlwq_mlx.sharding import reading
from hlwq_mlx.sharding.shares import Run, Share
from hlwq_mlx.source import rules
from hlwq_mlx.source.repository import Source
from hlwq_mlx.write import loss, staged
from hlwq_mlx.write.quantize import Encoder

BITS = "mlp=4,attention=5,embedding=6"
SETTINGS = {
    "per-layer embeddings": (tiny.config(), BITS),
    "no whole blocks": (tiny.config(even=False), BITS),
    "experts": (tiny.experts_config(), f"{BITS},experts=3,router=8"),
}
UP = f"{tiny.TEXT}layers.0.mlp.up_proj"


def weights_of(settings, mean):
    """Weights whose matrices have a mean of so many deviations, in blocks of every other row."""
    weights = tiny.make_weights(settings, has_dead=False, has_towers=False)
    for name, weight in weights.items():
        if len(weight.shape) > 1 and name != tiny.ROWS:
            moved = weight.reshape(-1, weight.shape[-1]).copy()
            moved[::2] += mean * weight.std()
            weights[name] = tiny.as_float(tiny.as_bfloat16(moved.reshape(weight.shape)))
    return weights


def save(root, settings, mean=1.0):
    weights = weights_of(settings, mean)
    tiny.save_plain(tiny.write_root(root, settings) / "model.safetensors", weights)
    return weights


def make(root, bits, *more):
    arguments = ["--model", str(root), "--bits", bits, "--output", str(root / "out"), *more]
    assert cli.run(quantize.main, arguments) == 0
    return root / "out"


@pytest.fixture(scope="module")
def coded(tmp_path_factory):
    root = tmp_path_factory.mktemp("plain")
    settings, bits = SETTINGS["per-layer embeddings"]
    save(root, settings)
    return make(root, bits)


@pytest.mark.parametrize("kind", SETTINGS)
@pytest.mark.parametrize("by", ["by the library", "by stock MLX"])
def test_a_model_computes_what_codes_and_means_stand_for(kind, by, tmp_path, request):
    settings, bits = SETTINGS[kind]
    if by == "by stock MLX":
        request.getfixturevalue("by_stock")
    weights = save(tmp_path, settings)
    out = make(tmp_path, bits)
    manifest = read_json(out / "config.json")["quantization_config"]
    assert all(entry["means"] for entry in manifest["tensors"].values())
    check_logits(
        out,
        {f"{n}.weight" if ".experts." in n else n: w for n, w in weights.items()},
        settings=settings,
    )


def test_tokens_score_the_same_alone_and_in_company(coded):
    model, ids = loading.load(coded), mx.array([[2, 9, 77, 5]])
    alone, both = model(ids), model(mx.concatenate([ids, ids + 1]))
    np.testing.assert_array_equal(np.array(alone[0]), np.array(both[0]))


def test_it_is_listed_whole_with_every_byte(coded):
    found = inventory.take(str(coded))
    assert list(inventory.doubts(found)) == []
    (entry,) = [each for each in found.entries if each.name == f"{UP}.weight"]
    assert entry.stored_bytes == 256 * (128 * 4 // 8 + 2 + 2) + 4 * 16
    loading.require_loadable(Folder.open(coded))


def test_what_would_be_made_is_counted_as_it_is_made(coded):
    plain = Source(coded.parent)
    strong = loss.with_strong_means(plain.plain)
    found = inventory.with_means(inventory.take(str(plain.folder)), strong)
    made = inventory.as_quantized(found, rules.class_rule(rules.parse_bits(BITS)), "keep")
    tables = {3: 32, 4: 64, 5: 128, 6: 256}
    wanted = {
        each.name: each.stored_bytes - tables[each.bits]
        for each in inventory.take(str(coded)).entries
        if each.bits is not None
    }
    counted = {each.name: each.stored_bytes for each in made.entries if each.bits is not None}
    assert counted == wanted
    units = {rules.unit_of(each.name, each.shape) for each in made.entries}
    choices = choices_of(found, {unit: {} for unit in units})
    assert choices[rules.Unit("mlp", 0)].sizes[4] == sum(
        size for name, size in wanted.items() if ".layers.0.mlp." in name
    )


def test_a_share_of_means_is_that_of_their_blocks(coded):
    file = TensorFile(next(coded.glob("model*.safetensors")))
    down = f"{UP.replace('up', 'down')}.means"
    whole = reading.read(file, down, Share(), 4)
    own = reading.read(file, down, Share((Run(32, 96),), Run(128, 256)), 4)
    assert whole.shape == (128, 2)
    assert mx.array_equal(own, whole[32:96, 1:])


def test_means_that_lack_are_named(coded, tmp_path):
    for path in coded.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (shard,) = tmp_path.glob("model*.safetensors")
    arrays, metadata = mx.load(str(shard), return_metadata=True)
    del arrays[f"{UP}.means"]
    mx.save_safetensors(str(shard), arrays, metadata)
    with pytest.raises(CheckpointError, match=rf"\[{UP}.means\] needed in"):
        loading.load(tmp_path)


def test_a_loss_is_that_of_codes_beside_means(tmp_path):
    settings, _ = SETTINGS["per-layer embeddings"]
    lost = []
    for mean in (0.0, 2.0):
        save(tmp_path / str(mean), settings, mean)
        source = Source(tmp_path / str(mean))
        losses = loss.measure(source.plain, Encoder("converged"))
        lost.append(sum(each[5] for each in losses.values()))
    assert lost[1] < 1.05 * lost[0]


NAME = "owner/Tiny"


@pytest.fixture
def server(tmp_path, monkeypatch):
    settings, _ = SETTINGS["per-layer embeddings"]
    save(tmp_path / "hub", settings)
    with hub_server.standing_in(NAME, tmp_path / "hub", monkeypatch, tmp_path) as running:
        yield running


def test_a_discarded_source_leaves_the_same_folder(server, coded, tmp_path, capsys):
    arguments = ["--model", NAME, "--bits", BITS, "--output", str(tmp_path / "out")]
    assert cli.run(quantize.main, [*arguments, "--discard-source"]) == 0
    said = capsys.readouterr().err
    assert f"means kept beside codes: {UP}.weight, 50.0% of whose blocks have a strong one" in said
    files = [TensorFile(next(out.glob("model*.safetensors"))) for out in (coded, tmp_path / "out")]
    assert files[0].specs == files[1].specs
    for name in files[0].specs:
        np.testing.assert_array_equal(files[0].view(name), files[1].view(name))
    configs = [read_json(out / "config.json") for out in (coded, tmp_path / "out")]
    assert configs[0] == configs[1]


def test_a_job_of_another_version_is_refused(tmp_path):
    work = atomic.resumable_folder(tmp_path / "out")
    work.mkdir()
    (work / "job.json").write_text('{"request": {}}')
    with pytest.raises(SourceError, match="needed a job of format 2, got None"):
        next(staged.run({}, tmp_path / "out", lambda: None, lambda path: None, lambda *_: False))
    assert (work / "job.json").exists()
