"""Sources of every mixture converted: the same numbers in a folder of stock shape."""

import json
import re
from functools import cache
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file

from hlwq_mlx import cli
from hlwq_mlx import convert as command
from hlwq_mlx.dialog import trial
from hlwq_mlx.disk.sizes import format_bytes
from hlwq_mlx.disk.tensorfile import TensorFile, TensorSpec, TensorWriter
from hlwq_mlx.errors import CheckpointError, ConfigError, SourceError
from hlwq_mlx.folder import checksums, loading
from hlwq_mlx.folder.folder import is_ours
from hlwq_mlx.folder.identity import MANIFEST_KEY, METADATA_KEY
from hlwq_mlx.folder.names import INDEX_NAME, coded_names
from hlwq_mlx.folder.rows import FILE_NAME as ROW_STORE
from hlwq_mlx.gemma4.experts import canonical
from hlwq_mlx.quant.packing import unpack_p32
from hlwq_mlx.quant.tables import centroids
from hlwq_mlx.source.repository import PlainTensor, Source
from hlwq_mlx.write import convert, output

# float32 logits up to 6 through 4 layers. A coded layer rotates its input where the other decodes
# its weight: the same product in another order, up to 6e-5 apart. Coding itself changes them by 1.
TOLERANCE = 2e-4
DEAD = frozenset(tiny.dead_names())
UP = f"{tiny.TEXT}layers.0.mlp.up_proj.weight"
NORM = f"{tiny.TEXT}norm.weight"


def embedding_only(name, shape):
    return 6 if name == tiny.EMBEDDING else None


def rows_only(name, shape):
    return 8 if name == tiny.ROWS else None


def one_of_a_pair(name, shape):
    """up_proj coded beside a 16-bit gate_proj, k_proj beside a 16-bit q_proj; audio too."""
    return 3 if any(part in name for part in ("up_proj", "k_proj", "audio_tower.layers")) else None


MIXTURES = {
    "pure": tiny.pure(5),
    "pure at 1 bit": tiny.pure(1),
    "mixed": tiny.mixed,
    "all": tiny.all_coded,
    "embedding": embedding_only,
    "rows": rows_only,
    "one of a pair": one_of_a_pair,
}


def make_source(root, rule, even=True, settings=None, **options):
    """Publish a tiny model and return its source and what it decodes to."""
    settings = settings or tiny.config(even)
    tiny.write_root(root, settings)
    decoded = tiny.publish(root / "PQ5", tiny.make_weights(settings, **options), rule)
    return Source(root / "PQ5", "PQ5"), decoded


def reference(settings, decoded, is_rows_coded):
    """Logits of the decoded weights; a row store made from codes is float16."""
    table = decoded[tiny.ROWS]
    rounded = table.astype(np.float16).astype(np.float32) if is_rows_coded else table
    return tiny.logits(tiny.dense_model(settings, decoded | {tiny.ROWS: rounded}))


@cache
def original(even):
    """Logits of the weights before they were coded."""
    settings = tiny.config(even)
    return tiny.logits(tiny.dense_model(settings, tiny.make_weights(settings)))


@pytest.mark.parametrize("even", [True, False], ids=["whole blocks", "padded blocks"])
@pytest.mark.parametrize("mixture", MIXTURES)
def test_a_mixture_computes_what_its_weights_do(mixture, even, tmp_path):
    rule = MIXTURES[mixture]
    bare = mixture in ("embedding", "rows")
    source, decoded = make_source(tmp_path, rule, even, has_dead=not bare, has_towers=not bare)
    summary = convert.convert(source, tmp_path / "out")
    assert summary.left_out == (0 if bare else len(tiny.dead_names()))
    got = tiny.logits(loading.load(tmp_path / "out"))
    wanted = reference(tiny.config(even), decoded, tiny.ROWS in source.coded)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=TOLERANCE)
    assert np.abs(wanted - original(even)).max() > 10 * TOLERANCE  # the test can see the codes


@pytest.mark.parametrize("mixture", ["pure", "embedding", "all"])
def test_a_model_with_experts_computes_what_its_weights_do(mixture, tmp_path, monkeypatch):
    monkeypatch.setattr(output, "_SLICE_BYTES", 1 << 16)  # less than an expert
    settings = tiny.experts_config()
    source, decoded = make_source(tmp_path, MIXTURES[mixture], settings=settings, has_dead=False)
    summary = convert.convert(source, tmp_path / "out")
    got = tiny.logits(loading.load(tmp_path / "out"))
    wanted = tiny.logits(tiny.dense_model(settings, decoded))
    np.testing.assert_allclose(got, wanted, rtol=0, atol=TOLERANCE)
    check_same(tmp_path / "out", source, dead=())
    # Of its experts a token reads two of six.
    text = sum(
        array.nbytes
        for name, array in read_shards(tmp_path / "out").items()
        if name.startswith(tiny.TEXT)
    )
    stacks = [a.nbytes for n, a in read_shards(tmp_path / "out").items() if ".experts." in n]
    assert summary.token_bytes[1] == text - sum(stacks) + sum(stacks) // 3


def read_shards(folder):
    tensors = {}
    for path in folder.glob("model*.safetensors"):
        shard, metadata = mx.load(str(path), return_metadata=True)
        assert metadata.keys() == {"format", METADATA_KEY}
        assert shard.keys().isdisjoint(tensors)
        tensors |= shard
    return tensors


def check_same(folder, source, dead=DEAD):
    """Compare every tensor of a folder with the source's, bit by bit, none more and none less."""
    tensors = read_shards(folder)
    for name, tensor in source.coded.items():
        if name in dead or name == tiny.ROWS:
            continue
        names = coded_names(name)
        words = np.array(tensors.pop(names.codes))
        reading = source.readings[name]
        codes = tensor.rows(0, tensor.shape[0], reading.order)
        np.testing.assert_array_equal(unpack_p32(words, tensor.bits), codes)
        np.testing.assert_array_equal(np.array(tensors.pop(names.norms)), tensor.norms)
        table = np.array(tensors.pop(names.centroids))
        np.testing.assert_array_equal(table[: 1 << tensor.bits], reading.centroids)
    for name, tensor in source.plain.items():
        if name in dead or name == tiny.ROWS:
            continue
        array = tensors.pop(canonical(name))
        assert array.dtype == mx.bfloat16
        bits = np.array(array.view(mx.uint16))
        np.testing.assert_array_equal(bits, tensor.file.view(name))
    assert tensors == {}


def test_shards_hold_the_source_bit_by_bit(tmp_path):
    for mixture in ("pure", "all"):
        source, _ = make_source(tmp_path / mixture, MIXTURES[mixture], even=False)
        convert.convert(source, tmp_path / mixture / "out")
        check_same(tmp_path / mixture / "out", source)


def test_row_slices_do_not_change_a_byte(tmp_path, monkeypatch):
    source, _ = make_source(tmp_path, MIXTURES["all"], even=False)
    convert.convert(source, tmp_path / "whole")
    monkeypatch.setattr(output, "_SLICE_BYTES", 20000)
    convert.convert(source, tmp_path / "sliced")
    files = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "sliced").iterdir())
    for name in files:
        sliced = (tmp_path / "sliced" / name).read_bytes()
        if name != checksums.FILE_NAME:  # of other runs of bytes
            assert (tmp_path / "whole" / name).read_bytes() == sliced
    for folder in ("whole", "sliced"):
        assert checksums.verify(tmp_path / folder, [].append) == len(files) - 1


def test_shards_stay_below_the_limit_and_agree_with_the_index(tmp_path, monkeypatch):
    limit = 120_000
    monkeypatch.setattr(output, "SHARD_BYTES", limit)
    source, decoded = make_source(tmp_path, tiny.pure(5))
    convert.convert(source, tmp_path / "out")
    index = json.loads((tmp_path / "out" / INDEX_NAME).read_text())
    shards = sorted((tmp_path / "out").glob("model*.safetensors"))
    count = len(shards)
    assert count > 5
    wanted = [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    assert [path.name for path in shards] == wanted
    size = 0
    for path in shards:
        specs = TensorFile(path).specs
        assert path.stat().st_size <= limit
        assert {name for name, file in index["weight_map"].items() if file == path.name} == set(
            specs
        )
        size += sum(spec.nbytes for spec in specs.values())
    assert index["metadata"] == {"total_size": size}
    check_same(tmp_path / "out", source)
    got = tiny.logits(loading.load(tmp_path / "out"))
    wanted = reference(tiny.config(), decoded, False)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=TOLERANCE)


def test_a_tensor_above_the_limit_has_a_shard_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(output, "SHARD_BYTES", 1000)
    source, _ = make_source(tmp_path, tiny.pure(5))
    convert.convert(source, tmp_path / "out")
    for path in (tmp_path / "out").glob("model*.safetensors"):
        assert path.stat().st_size <= 1000 or len(TensorFile(path).specs) == 1
    check_same(tmp_path / "out", source)


def test_the_row_store_lies_outside_the_shards(tmp_path):
    source, _ = make_source(tmp_path, tiny.pure(5))
    convert.convert(source, tmp_path / "out")
    assert not Path(ROW_STORE).match("model*.safetensors")
    assert tiny.ROWS not in read_shards(tmp_path / "out")
    stored = TensorFile(tmp_path / "out" / ROW_STORE)
    assert stored.specs == {tiny.ROWS: TensorSpec("BF16", (320, 256))}
    np.testing.assert_array_equal(stored.view(tiny.ROWS), source.plain[tiny.ROWS].rows(0, 320))


def test_a_coded_row_table_is_decoded_and_cut_to_its_columns(tmp_path):
    source, decoded = make_source(tmp_path, rows_only, even=False)
    convert.convert(source, tmp_path / "out")
    stored = load_file(tmp_path / "out" / ROW_STORE)
    assert source.coded[tiny.ROWS].shape == (320, 128)  # the source does not say 96
    assert decoded[tiny.ROWS].shape == (320, 96)
    np.testing.assert_array_equal(stored[tiny.ROWS], decoded[tiny.ROWS].astype(np.float16))


def test_a_model_without_per_layer_embeddings_has_no_row_store(tmp_path):
    settings = tiny.config()
    settings["text_config"] |= {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 1}
    tiny.write_root(tmp_path, settings)
    weights = tiny.make_weights(settings)
    decoded = tiny.publish(tmp_path / "PQ5", weights, tiny.pure(5))
    convert.convert(Source(tmp_path / "PQ5"), tmp_path / "out")
    assert not (tmp_path / "out" / ROW_STORE).exists()
    got = tiny.logits(loading.load(tmp_path / "out"))
    dense = tiny.dense_model(settings, decoded | {tiny.ROWS: np.zeros((320, 0), np.float32)})
    np.testing.assert_allclose(got, tiny.logits(dense), rtol=0, atol=TOLERANCE)


def test_the_config_carries_the_manifest(tmp_path):
    source, _ = make_source(tmp_path, tiny.mixed)
    convert.convert(source, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    manifest = config.pop("quantization_config")
    assert len(manifest.pop(MANIFEST_KEY)) == 64
    assert config == tiny.config() | {"model_type": "hlwq_gemma4"}
    tensors = manifest.pop("tensors")
    tables = {
        f"clip4_100/{bits}": [float(c) for c in centroids("clip4_100", bits)] for bits in (2, 4)
    }
    assert manifest == {
        "quant_method": "hlwq",
        "format": 1,
        "block": 128,
        "variant": "PQ5",
        "tables": tables,
        "leftovers": {"choice": "keep", "classes": {}, "strong_means": []},
        "templates": [trial.digest((tmp_path / "chat_template.jinja").read_text())],
    }
    assert tensors.keys() == source.coded.keys() - set(tiny.dead_names())
    assert tensors[UP] == {"bits": 2, "table": "clip4_100"}


def test_side_files_are_copied(tmp_path):
    source, _ = make_source(tmp_path, tiny.pure(5))
    (tmp_path / "processor_config.json").write_text("{}")
    (tmp_path / "README.md").write_text("")
    summary = convert.convert(source, tmp_path / "out")
    for name in (*tiny.SIDE_FILES, "processor_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / name).read_bytes()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *tiny.SIDE_FILES,
        *("processor_config.json", "config.json", INDEX_NAME, ROW_STORE),
        checksums.FILE_NAME,
        "model-00001-of-00001.safetensors",
    }
    assert summary.warnings == ()


def test_without_a_tokenizer_it_converts_and_warns(tmp_path):
    source, _ = make_source(tmp_path, tiny.pure(5))
    (tmp_path / "tokenizer.json").unlink()
    summary = convert.convert(source, tmp_path / "out")
    assert [*summary.lines()][-1] == (
        f"warning: {tmp_path} has no tokenizer files; add them to the folder before generating"
    )
    loading.load(tmp_path / "out")


def test_the_summary_counts_what_was_done(tmp_path):
    source, _ = make_source(tmp_path, tiny.mixed)
    summary = convert.convert(source, tmp_path / "out")
    before = sum(path.stat().st_size for path in (tmp_path / "PQ5").iterdir())
    after = sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    specs = TensorFile(tmp_path / "out" / "model-00001-of-00001.safetensors").specs.values()
    kept = sum(spec.nbytes for spec in specs if spec.dtype == "BF16")
    rows = sum(spec.nbytes for spec in TensorFile(tmp_path / "out" / ROW_STORE).specs.values())
    was_read, is_read = map(format_bytes, summary.token_bytes)
    lines = list(summary.lines())
    assert lines == [
        "2 bits: 12 tensors, order msb by key style, table clip4_100 by key style",
        "4 bits: 16 tensors, order msb by key style, table clip4_100 by key style",
        "coded at 2 bits: 12 tensors, 393,216 weights",
        "coded at 4 bits: 12 tensors, 245,760 weights",
        f"kept as BF16: 46 tensors, {kept / 1e3:.2f} kB",
        f"row store {ROW_STORE}: {rows / 1e3:.2f} kB, stays on disk",
        "left out: 6 tensors that no layer reads",
        f"weights that a token reads: {was_read} before, {is_read} after",
        f"on disk: {format_bytes(before)} before, {format_bytes(after)} after",
    ]


def test_a_text_only_source_is_converted(tmp_path):
    """A flat config, shorter names, float32 and float16 tensors, and a copy of the tied head."""
    settings = tiny.config()
    weights = tiny.make_weights(settings, has_towers=False)
    tiny.write_root(tmp_path, settings["text_config"])
    short = {name.replace(tiny.TEXT, "model."): weight for name, weight in weights.items()}
    short["lm_head.weight"] = weights[tiny.EMBEDDING]
    decoded = tiny.publish(tmp_path / "PQ5", short, tiny.pure(5))
    plain = dict(mx.load(str(tmp_path / "PQ5" / "bf16.safetensors")))
    plain["model.norm.weight"] = plain["model.norm.weight"].astype(mx.float32)
    plain["model.embed_tokens.weight"] = plain["model.embed_tokens.weight"].astype(mx.float16)
    mx.eval(list(plain.values()))
    (tmp_path / "PQ5" / "bf16.safetensors").unlink()
    mx.save_safetensors(str(tmp_path / "PQ5" / "bf16.safetensors"), plain)
    summary = convert.convert(Source(tmp_path / "PQ5"), tmp_path / "out")
    assert summary.plain.keys() == {"BF16", "F16", "F32"}
    # published rules code lm_head; it is the embedding again, and nothing reads it
    assert "lm_head.weight" not in read_shards(tmp_path / "out")
    decoded.pop("lm_head.weight")
    decoded = {name.replace("model.", tiny.TEXT, 1): weight for name, weight in decoded.items()}
    embedding = decoded[tiny.EMBEDDING].astype(np.float16).astype(np.float32)
    wanted = reference(settings, decoded | {tiny.EMBEDDING: embedding}, False)
    got = tiny.logits(loading.load(tmp_path / "out"))
    np.testing.assert_allclose(got, wanted, rtol=0, atol=TOLERANCE)


def refuse(tmp_path, message, error=CheckpointError, edit=lambda weights: None, settings=None):
    settings = settings or tiny.config()
    tiny.write_root(tmp_path, settings)
    weights = tiny.make_weights(tiny.config())
    edit(weights)
    tiny.publish(tmp_path / "PQ5", weights, tiny.pure(5))
    with pytest.raises(error, match=message) as caught:
        convert.convert(Source(tmp_path / "PQ5"), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.glob("*out*")) == []
    (line,) = str(caught.value).splitlines()
    return re.split(r" (?=\[model)", line.replace(f"{tmp_path / 'config.json'}: ", ""))


def test_all_that_does_not_fit_the_config_is_listed(tmp_path):
    def edit(weights):
        del weights[NORM]
        weights[UP] = weights[UP][:-1]
        weights[f"{tiny.TEXT}more.weight"] = np.ones(3, np.float32)

    assert refuse(tmp_path, "needed", edit=edit) == [
        f"[{NORM}] needed in the source, got no such tensor. Download the variant again.",
        f"[{UP}] needed shape (256, 128) by config.json, got (255, 128). "
        "The files do not belong together.",
        f"[{tiny.TEXT}more.weight] needed no such tensor, got one. Check config.json.",
    ]


def test_a_tensor_under_two_names_is_refused(tmp_path):
    """Of a text-only and a multimodal spelling, one would be lost."""

    def edit(weights):
        weights["model.norm.weight"] = weights[NORM] + 1

    assert refuse(tmp_path, "needed one tensor", edit=edit) == [
        f"[{NORM}] needed one tensor of that meaning, got {NORM} and model.norm.weight. "
        "The files do not belong together."
    ]


def test_only_a_coded_tensor_may_be_padded(tmp_path):
    settings = tiny.config(even=False)
    weights = tiny.make_weights(settings)
    gate = UP.replace("up_proj", "gate_proj")
    weights[gate] = np.pad(weights[gate], ((0, 0), (0, 32)))
    tiny.write_root(tmp_path, settings)
    tiny.publish(tmp_path / "PQ5", weights, tiny.pure(5))
    with pytest.raises(
        CheckpointError, match=rf"config\.json: {gate}\] needed shape \(200, 96\) .* \(200, 128\)"
    ):
        convert.convert(Source(tmp_path / "PQ5"), tmp_path / "out")


def test_a_missing_row_table_is_refused(tmp_path):
    message = rf"\[{tmp_path}/config\.json: {tiny.ROWS}\] needed in the source, got no such tensor"
    refuse(tmp_path, message, edit=lambda weights: weights.pop(tiny.ROWS))


@pytest.mark.parametrize("key", ["head_dim", "rope_parameters", "num_kv_shared_layers"])
def test_a_config_without_a_key_is_refused(tmp_path, key):
    settings = tiny.config()
    del settings["text_config"][key]
    message = rf"\[{tmp_path}/config\.json: text_config\] needed key {key}, got none"
    refuse(tmp_path, message, ConfigError, settings=settings)


def test_another_model_is_refused(tmp_path):
    message = rf"\[{tmp_path}/config\.json\] needed model_type gemma4, .*, got 'llama'"
    refuse(tmp_path, message, SourceError, settings={"model_type": "llama"})


def test_an_output_that_exists_is_refused_before_anything_is_read(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    arguments = ["--model", "no/such/folder", "--output", str(tmp_path / "out")]
    assert cli.run(command.main, arguments) == 2
    assert capsys.readouterr().err == (
        f"error: [output] needed a new folder, got {tmp_path / 'out'}, which exists. "
        "Remove it or choose another --output.\n"
    )


@pytest.mark.parametrize("form", ["root and variant", "folder", "the only variant"])
def test_the_command_converts(tmp_path, capsys, form):
    make_source(tmp_path, tiny.pure(5))
    model = str(tmp_path / "PQ5" if form == "folder" else tmp_path)
    variant = ["--variant", "pq5"] if form == "root and variant" else []
    out = str(tmp_path / "out")
    assert cli.run(command.main, ["--model", model, *variant, "--output", out]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{out}\n"
    assert (
        "5 bits: 25 tensors, order msb by histogram, table clip4_100 by block energy" in printed.err
    )
    assert "coded at 5 bits: 21 tensors" in printed.err
    assert "100%" in printed.err
    assert is_ours(tmp_path / "out")


def test_the_command_takes_an_order_and_a_table(tmp_path, capsys):
    make_source(tmp_path, tiny.pure(4))
    arguments = ["--hf-path", str(tmp_path / "PQ5"), "--mlx-path", str(tmp_path / "out")]
    arguments += ["--bit-order", "lsb", "--centroids", "inf", "--leftovers", "keep"]
    assert cli.run(command.main, arguments) == 0
    assert (
        "4 bits: 25 tensors, order lsb as asked, table inf_100 as asked" in capsys.readouterr().err
    )
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    wanted = [float(c) for c in centroids("inf_100", 4)]
    assert config["quantization_config"]["tables"] == {"inf_100/4": wanted}


def test_codes_that_can_hardly_be_right_are_named(tmp_path):
    make_source(tmp_path, tiny.pure(5))
    source = Source(tmp_path / "PQ5", bit_order="lsb")
    warnings = convert.convert(source, tmp_path / "out").warnings
    assert len(warnings) == 1
    assert re.search(r"^\d+ tensors have not the energy of coded weights: model\.", warnings[0])


def test_a_converted_folder_is_no_source(tmp_path, capsys):
    source, _ = make_source(tmp_path, tiny.pure(5))
    convert.convert(source, tmp_path / "out")
    arguments = ["--model", str(tmp_path / "out"), "--output", str(tmp_path / "again")]
    assert cli.run(command.main, arguments) == 2
    assert "The file is not HLWQ, or it is converted already." in capsys.readouterr().err


def test_the_largest_table_is_planned_in_slices(tmp_path):
    """262144 x 10752, as in the largest Gemma 4: nothing here may touch its bytes."""
    N, K = 262144, 10752
    with TensorWriter(tmp_path / "a", {"t": TensorSpec("BF16", (N, K))}):
        pass  # a sparse file
    file = TensorFile(tmp_path / "a")
    source = PlainTensor("t", file, file.specs["t"])
    at = 0
    for pieces in output.copy_of("t", source).slices():
        ((name, offset, piece),) = pieces()
        assert (name, offset) == ("t", at)
        assert piece.nbytes <= 1 << 24
        assert not piece.flags.owndata
        at += piece.nbytes
    assert at == 2 * N * K
    for row_bytes in (8 * K, 16 * K):
        slices = list(output.row_slices(N, row_bytes))
        assert [start for start, _ in slices[1:]] == [stop for _, stop in slices[:-1]]
        assert (slices[0][0], slices[-1][1]) == (0, N)
        assert max(stop - start for start, stop in slices) * row_bytes <= 1 << 24
