"""What a publisher left in 16 bits: how narrow it is coded, what that costs, what is left alone."""

import json
from functools import cache

import numpy as np
import pytest
import tiny

from hlwq_mlx import cli
from hlwq_mlx import convert as command
from hlwq_mlx.disk.tensorfile import TensorFile
from hlwq_mlx.folder import loading
from hlwq_mlx.folder import rows as ple
from hlwq_mlx.folder.names import coded_names
from hlwq_mlx.quant import codec, means
from hlwq_mlx.quant.packing import unpack_p32
from hlwq_mlx.quant.tables import centroids, error_energy
from hlwq_mlx.source import rules
from hlwq_mlx.source.detect import Reading
from hlwq_mlx.source.repository import Source
from hlwq_mlx.write import convert, leftovers

GATE = f"{tiny.TEXT}layers.1.mlp.gate_proj.weight"
PROJECTION = f"{tiny.TEXT}per_layer_model_projection.weight"
# float32, through 4 layers of coded weights: see test_convert.
TOLERANCE = 2e-4


def own(*widths):
    """The error energy of codes of these widths, a weight of each."""
    return sum(error_energy(centroids("clip4_100", bits)) for bits in widths) / len(widths)


# What auto and small choose for gate_proj (mlp), the embedding and the small matrices.
OUTCOMES = {
    "PQ1": (own(1), (4, 4, 8), (1, 4, 8)),
    "PQ2": (own(2), (5, 5, 8), (2, 4, 8)),
    "PQ3": (own(3), (6, 6, 8), (3, 4, 8)),
    "PQ4": (own(4), (7, 7, 8), (4, 4, 8)),
    "PQ5": (own(5), (8, 8, 8), (5, 5, 8)),
    "PQ6": (own(6), (8, 8, 8), (6, 6, 8)),
    "PQ8": (own(8), (None, None, None), (8, 8, 8)),
    "PQ2-Mixed": (own(*[2] * 6, 4), (5, 5, 8), (3, 4, 8)),
    "bf16": (0.0, (None, None, None), (None, None, None)),
}


def test_every_variant_has_an_outcome():
    assert OUTCOMES.keys() == {*rules.VARIANTS, "bf16"}


@pytest.mark.parametrize("variant", OUTCOMES)
def test_the_rule(variant):
    energy, *outcomes = OUTCOMES[variant]
    for choice, wanted in zip(("auto", "small"), outcomes, strict=True):
        got = [leftovers.width(choice, kind, energy) for kind in ("mlp", "embedding", "ple")]
        assert tuple(got) == wanted
        assert leftovers.width(choice, "vision", energy) == wanted[2]
    assert leftovers.width("keep", "mlp", energy) is None


@pytest.mark.parametrize("choice", ["auto", "small"])
def test_a_width_is_the_narrowest_within_its_share(choice):
    for bits in range(1, 9):
        limit = leftovers.SHARES[choice] * own(bits)
        chosen = leftovers.width(choice, "mlp", own(bits))
        if chosen is None:
            assert error_energy(centroids("converged", 8)) > limit
            continue
        assert error_energy(centroids("converged", chosen)) <= limit
        assert chosen == 1 or error_energy(centroids("converged", chosen - 1)) > limit


@cache
def weights_of(edit):
    weights = tiny.make_weights(tiny.config())
    if edit == "strong mean":
        weights[GATE] = tiny.as_float(tiny.as_bfloat16(weights[GATE] + 1))
    return weights


def make_source(root, rule, edit=None):
    tiny.write_root(root, tiny.config())
    decoded = tiny.publish(root / "PQ5", weights_of(edit), rule)
    return Source(root / "PQ5", "PQ5"), decoded


def test_the_variants_own_energy_is_that_of_its_text_weights():
    class Tensor:
        def __init__(self, blocks):
            self.norms = np.zeros((blocks, 1))

    def read(bits):
        return Reading("msb", "clip4_100", centroids("clip4_100", bits), "")

    coded = {
        f"{tiny.TEXT}layers.0.mlp.up_proj.weight": (Tensor(6), read(2)),
        f"{tiny.TEXT}layers.0.self_attn.q_proj.weight": (Tensor(1), read(4)),
        tiny.AUDIO: (Tensor(1000), read(8)),
    }
    np.testing.assert_allclose(leftovers.own_energy(coded), own(*[2] * 6, 4), rtol=1e-12)
    assert leftovers.own_energy({}) == 0.0


def manifest_of(folder):
    return json.loads((folder / "config.json").read_text())["quantization_config"]


def test_auto_codes_what_was_left(tmp_path):
    source, decoded = make_source(tmp_path, tiny.pure(5))
    summary = convert.convert(source, tmp_path / "out", "auto")
    manifest = manifest_of(tmp_path / "out")
    for name in (GATE, tiny.EMBEDDING, PROJECTION):
        assert manifest["tensors"][name] == {"bits": 8, "table": "converged"}
        shard = TensorFile(tmp_path / "out" / "model-00001-of-00001.safetensors")
        names = coded_names(name)
        codes = unpack_p32(shard.view(names.codes), 8)
        norms = np.array(shard.view(names.norms))
        wanted = codec.encode(decoded[name], centroids("converged", 8))
        np.testing.assert_array_equal(codes, wanted[0])
        np.testing.assert_array_equal(norms, wanted[1])
        values = codec.decode(codes, norms, centroids("converged", 8))
        decoded[name] = values[:, : decoded[name].shape[1]]
    assert manifest["tables"].keys() == {"clip4_100/5", "converged/8"}
    assert manifest["leftovers"]["choice"] == "auto"
    gate = manifest["leftovers"]["classes"]["mlp.gate_proj"]
    assert gate["bits"] == 8
    assert gate["weights"] == 4 * 256 * 128
    assert gate["relative_error"] ** 2 < 0.05 * own(5)
    assert any(line.startswith("mlp.gate_proj") for line in summary.lines())
    check_logits(tmp_path / "out", decoded)


def check_logits(folder, decoded, settings=None):
    """Compare a folder with the weights that its own codes, and means, stand for."""
    weights = dict(decoded)
    tensors = {}
    for path in folder.glob("model*.safetensors"):
        file = TensorFile(path)
        tensors |= {name: file.view(name) for name in file.specs}
    for name, entry in manifest_of(folder)["tensors"].items():
        names = coded_names(name)
        table = np.array(tensors[names.centroids])[: 1 << entry["bits"]]
        codes = unpack_p32(tensors[names.codes], entry["bits"])
        shape = decoded[name].shape
        values = codec.decode(codes, np.array(tensors[names.norms]), table)[:, : shape[-1]]
        if "means" in entry:
            values += means.spread(np.array(tensors[names.means]), shape[-1])
        weights[name] = values.reshape(shape)
    wanted = tiny.logits(tiny.dense_model(settings or tiny.config(), weights))
    got = tiny.logits(loading.load(folder))
    np.testing.assert_allclose(got, wanted, rtol=0, atol=TOLERANCE)


def test_small_codes_rows_too(tmp_path):
    source, decoded = make_source(tmp_path, tiny.pure(3))
    convert.convert(source, tmp_path / "out", "small")
    classes = manifest_of(tmp_path / "out")["leftovers"]["classes"]
    widths = {name: entry["bits"] for name, entry in classes.items()}
    assert widths["mlp.gate_proj"] == 3
    assert widths["language_model.embed_tokens"] == 4
    assert widths["language_model.per_layer_model_projection"] == 8
    store = ple.RowStore(tmp_path / "out" / ple.FILE_NAME)
    rows = np.array(store(np.arange(320)))
    wanted = decoded[tiny.ROWS]
    error = ((rows - wanted) ** 2).sum() / (wanted**2).sum()
    assert 0 < error < 4e-5
    check_logits(tmp_path / "out", decoded | {tiny.ROWS: rows})


def test_small_rows_of_a_coded_table_are_those_it_decodes_to(tmp_path):
    def rows_and_mlp(name, shape):
        return 8 if name == tiny.ROWS else 3 if "up_proj" in name else None

    source, decoded = make_source(tmp_path, rows_and_mlp)
    convert.convert(source, tmp_path / "out", "small")
    rows = np.array(ple.RowStore(tmp_path / "out" / ple.FILE_NAME)(np.arange(320)))
    wanted = ple.decode_rows(*ple.code_rows(decoded[tiny.ROWS]))
    np.testing.assert_array_equal(rows, wanted)


def test_a_strong_mean_is_kept_beside_the_codes(tmp_path):
    source, decoded = make_source(tmp_path, tiny.pure(5), edit="strong mean")
    summary = convert.convert(source, tmp_path / "out", "auto")
    manifest = manifest_of(tmp_path / "out")
    assert manifest["tensors"][GATE] == {"bits": 8, "table": "converged", "means": True}
    other = GATE.replace("layers.1", "layers.0")
    assert manifest["tensors"][other] == {"bits": 8, "table": "converged"}
    assert manifest["leftovers"]["strong_means"] == [GATE]
    line = f"means kept beside codes: {GATE}, 100.0% of whose blocks have a strong one"
    assert line in list(summary.lines())
    # Without them the table would cut off half of the weights' energy.
    gate = manifest["leftovers"]["classes"]["mlp.gate_proj"]
    assert gate["relative_error"] ** 2 < 0.05 * own(5)
    check_logits(tmp_path / "out", decoded)


@pytest.mark.parametrize(("rule", "choice"), [(tiny.pure(8), "auto"), (tiny.pure(5), "keep")])
def test_where_nothing_is_coded_the_folder_is_that_of_keep(rule, choice, tmp_path):
    source, _ = make_source(tmp_path, rule)
    convert.convert(source, tmp_path / "kept")
    convert.convert(source, tmp_path / "out", choice)
    name = "model-00001-of-00001.safetensors"
    kept, out = ((tmp_path / folder / name).read_bytes() for folder in ("kept", "out"))
    assert out == kept
    assert manifest_of(tmp_path / "out")["leftovers"]["classes"] == {}


def test_only_matrices_that_shrink_are_coded(tmp_path):
    """A tower's 48 columns fill half a block: coded at 8 bits they would take more."""
    source, _ = make_source(tmp_path, tiny.mixed)
    convert.convert(source, tmp_path / "out", "auto")
    coded = manifest_of(tmp_path / "out")["tensors"]
    assert tiny.VISION not in coded
    assert coded[tiny.AUDIO]["bits"] == 8
    assert not any("norm" in name or "conv" in name for name in coded)


def test_bytes_of_a_token_are_counted(tmp_path):
    source, decoded = make_source(tmp_path, tiny.pure(5))
    kept = convert.convert(source, tmp_path / "kept", "keep").token_bytes
    small = convert.convert(source, tmp_path / "small", "small").token_bytes
    dead = tiny.dead_names()
    before = 0
    for name, weight in decoded.items():
        if name.startswith(tiny.TEXT) and name not in (tiny.ROWS, *dead):
            is_coded = name in source.coded
            blocks = weight.size // 128
            before += blocks * (80 + 2) if is_coded else 2 * weight.size
    assert kept[0] == small[0] == before
    tables = 32 * 4 * sum(name not in dead for name in source.coded if tiny.TEXT in name)
    assert kept[1] == before + tables
    assert small[1] < before


def test_the_command_codes_leftovers_unless_told_otherwise(tmp_path, capsys):
    make_source(tmp_path, tiny.pure(5))
    for choice in ([], ["--leftovers", "keep"]):
        out = tmp_path / f"out{len(choice)}"
        arguments = ["--model", str(tmp_path), "--output", str(out), *choice]
        assert cli.run(command.main, arguments) == 0
        said = capsys.readouterr().err
        assert ("leftovers, auto: coded with the converged table" in said) == (not choice)
        assert "weights that a token reads: " in said
        assert (GATE in manifest_of(out)["tensors"]) == (not choice)


def test_the_commands_choices_are_those_there_are():
    assert cli.LEFTOVERS == leftovers.CHOICES
