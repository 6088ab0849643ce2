"""12B's and 31B's kinds of model through the house: quantized, listed, fitted, loaded."""

import mlx.core as mx
import numpy as np
import pytest
import tiny

from hlwq_mlx import cli, library
from hlwq_mlx.disk.jsonfile import read_json
from hlwq_mlx.errors import RequestError
from hlwq_mlx.folder import loading
from hlwq_mlx.memory import inventory
from hlwq_mlx.quantize import MLX, TABLES, main
from hlwq_mlx.source.repository import Source
from hlwq_mlx.write import convert

BITS = "mlp=4,attention=5,embedding=6"
TOLERANCE = 2e-4  # as in test_convert
EMBEDDERS = {
    "model.vision_embedder.patch_dense.weight": (48, 192),
    "model.vision_embedder.pos_embedding": (16, 2, 48),
    "model.embed_vision.embedding_projection.weight": (128, 48),
    "model.embed_audio.embedding_projection.weight": (128, 40),
}


@pytest.fixture(scope="module", params=["12B", "31B"])
def made(request, tmp_path_factory):
    """A 16-bit repository and what `quantize` makes of it: its kind, weights and folders."""
    is_unified = request.param == "12B"
    settings = tiny.unified_config() if is_unified else tiny.dense_config()
    weights = tiny.make_weights(settings, has_dead=False, has_towers=False)
    root = tiny.write_root(tmp_path_factory.mktemp("plain"), settings)
    more = {name: np.ones(shape, np.float32) for name, shape in EMBEDDERS.items()}
    tiny.save_plain(root / "model.safetensors", weights | (more if is_unified else {}))
    arguments = ["--model", str(root), "--bits", BITS, "--output", str(root / "coded")]
    assert cli.run(main, arguments) == 0
    return request.param, settings, weights, root


def test_it_computes_what_its_codes_mean(made):
    _, settings, weights, root = made
    widths = {"self_attn": 5, ".mlp.": 4, "embed_tokens": 6}
    decoded = {}
    for name, weight in weights.items():
        bits = next((bits for part, bits in widths.items() if part in name), None)
        if bits is None or weight.ndim != 2:
            decoded[name] = weight
        else:
            decoded[name] = tiny.encode(weight.tobytes(), weight.shape, bits, TABLES[MLX])[2]
    wanted = tiny.logits(tiny.dense_model(settings, decoded))
    got = tiny.logits(loading.load(root / "coded"))
    np.testing.assert_allclose(got, wanted, rtol=0, atol=TOLERANCE)


def test_it_is_listed_with_nothing_odd_and_fits(made, capsys):
    _, _, _, root = made
    for folder in (root, root / "coded"):
        assert list(inventory.doubts(inventory.take(str(folder)))) == []
    assert cli.run(main, ["--model", str(root), "--fit", "16GB"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["attention", "embedding", "mlp"]
    assert "on 16 GB, macOS 15" in lines[-1]


def test_media_of_12b_are_refused_by_name(made):
    kind, _, _, root = made
    model, tokenizer = library.load(root / "coded")
    picture = {"type": "image", "image": np.zeros((8, 8, 3), np.uint8)}
    messages = [{"role": "user", "content": [picture, {"type": "text", "text": "What?"}]}]
    with pytest.raises(RequestError, match=r"12B's way without towers is not implemented"):
        library.generate(model, tokenizer, messages, max_tokens=1)
    config = read_json(root / "coded" / "config.json")
    assert config["model_type"] == "hlwq_gemma4"
    assert config.get("vision_config") is None
    assert config.get("without_towers", False) is (kind == "12B")


def test_a_published_variant_of_12b_keeps_its_embedders_and_converts(made, tmp_path):
    kind, _, _, root = made
    arguments = ["--model", str(root), "--variant", "PQ5", "--layout", "published"]
    assert cli.run(main, [*arguments, "--output", str(tmp_path / "repo")]) == 0
    variant = Source(tmp_path / "repo" / "PQ5", "PQ5")
    assert (EMBEDDERS.keys() <= variant.plain.keys()) is (kind == "12B")
    summary = convert.convert(variant, tmp_path / "out")
    assert summary.left_out == (len(EMBEDDERS) if kind == "12B" else 0)
    assert mx.isfinite(loading.load(tmp_path / "out")(mx.arange(2, 9)[None])).all()
