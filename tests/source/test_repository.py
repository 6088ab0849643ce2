"""Repositories of every layout, opened: golden files, names, variants, and what is refused."""

import json
import re
import shutil
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import tiny
from golden import GOLDEN, MULTI, VARIANTS, read
from safetensors.numpy import load_file, save_file

from hlwq_mlx.errors import CheckpointError, SourceError
from hlwq_mlx.quant import codec, packing
from hlwq_mlx.source import hub
from hlwq_mlx.source.detect import is_odd
from hlwq_mlx.source.layout import list_variants
from hlwq_mlx.source.locate import find
from hlwq_mlx.source.repository import Source

INPUTS = ("*.json", "codes.safetensors", "bf16.safetensors", "model*.safetensors")
UP = "model.language_model.layers.0.mlp.up_proj.weight"


def copy_inputs(folder, target):
    """Copy a golden checkpoint without the answers beside it."""
    target.mkdir(parents=True)
    for pattern in INPUTS:
        for path in folder.glob(pattern):
            shutil.copy(path, target)
    return target


def decode(source, name):
    tensor, reading = source.coded[name], source.readings[name]
    codes = tensor.rows(0, tensor.shape[0], reading.order)
    return codec.decode(codes, tensor.norms, reading.centroids)


def check_golden(folder, target, answers="expected_f32.safetensors", step=2**-23, cancelled=0.0):
    """Compare every decoded weight with the expected one, within one `step` of its own dtype.

    `cancelled` is what is left, for the largest weight, of a table that was itself rounded.
    """
    source = Source(copy_inputs(folder, target))
    expected = read(folder / answers)
    assert source.coded.keys() == expected.keys()
    assert not any(is_odd(source.coded[name], source.readings[name]) for name in expected)
    for name, wanted in expected.items():
        got = decode(source, name)[:, : wanted.shape[1]]
        left = max(1e-17, cancelled * np.abs(wanted).max())
        np.testing.assert_allclose(got, wanted, rtol=step, atol=left)
    return source


@pytest.mark.parametrize("variant", MULTI)
def test_golden_variants_decode(variant, tmp_path):
    source = check_golden(GOLDEN / "multi" / variant, tmp_path / variant)
    assert source.plain.keys() == read(GOLDEN / "multi" / variant / "bf16.safetensors").keys()
    widths = Counter(tensor.bits for tensor in source.coded.values())
    assert widths.keys() == ({2, 4} if variant == "PQ2-Mixed" else {int(variant[2:])})


@pytest.mark.parametrize("name", VARIANTS)
def test_golden_layouts_decode(name, tmp_path):
    """Files of the package hold a float32 table scaled by 1/sqrt(128), whose way back rounds."""
    folder = GOLDEN / "variants" / name
    cancelled = 2**-24 if (folder / "polar_config.json").is_file() else 0.0
    if name == "package_writer_llama":
        check_golden(folder, tmp_path / name, "expected_bf16.safetensors", 2**-7, cancelled)
    else:
        check_golden(folder, tmp_path / name, cancelled=cancelled)


@pytest.mark.parametrize("variant", ["PQ1", "PQ2-Mixed", "PQ5"])
def test_golden_variants_decode_among_their_siblings(variant, tmp_path):
    for other in MULTI:
        if other != variant:
            copy_inputs(GOLDEN / "multi" / other, tmp_path / other)
    check_golden(GOLDEN / "multi" / variant, tmp_path / variant)


def test_golden_plain_tensors_are_the_sources_own(tmp_path):
    folder = GOLDEN / "multi" / "PQ5"
    source = Source(copy_inputs(folder, tmp_path / "PQ5"))
    for name, wanted in read(folder / "bf16.safetensors").items():
        tensor = source.plain[name]
        assert (tensor.spec.dtype, tensor.shape) == ("BF16", wanted.shape)
        if wanted.shape:
            rows = tensor.float_rows(0, tensor.matrix[0])
            np.testing.assert_array_equal(rows.reshape(wanted.shape), wanted)


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A repository with PQ4 and PQ5, both of a tiny model."""
    settings = tiny.config()
    root = tiny.write_root(tmp_path_factory.mktemp("hub") / "Tiny-HLWQ", settings)
    weights = tiny.make_weights(settings)
    for bits in (4, 5):
        tiny.publish(root / f"PQ{bits}", weights, tiny.pure(bits))
    return root


@pytest.fixture
def own(repository, tmp_path):
    """A copy of that repository, free to be damaged."""
    return shutil.copytree(repository, tmp_path / "Tiny-HLWQ")


@pytest.mark.parametrize(
    ("name", "variant"),
    [("", "PQ5"), ("", "pq5"), ("PQ5", None), ("PQ5", "PQ5"), ("PQ5", "pq5"), ("pq5", None)],
)
def test_a_local_variant_is_found(repository, name, variant):
    model = str(repository / name)
    assert find(model, variant) == (repository / "PQ5", "PQ5")
    assert find(f"{model}/", variant) == (repository / "PQ5", "PQ5")


def test_the_home_folder_is_found(repository, monkeypatch):
    monkeypatch.setenv("HOME", str(repository.parent))
    assert find("~/Tiny-HLWQ/PQ4", None) == (repository / "PQ4", "PQ4")


def test_the_only_variant_is_found(own):
    shutil.rmtree(own / "PQ4")
    assert find(str(own), None) == (own / "PQ5", "PQ5")


def test_a_folder_of_another_name_is_found(own):
    (own / "PQ5").rename(own / "mine")
    assert find(str(own / "mine"), None) == (own / "mine", None)


def test_own_weights_are_found(own):
    tiny.save_plain(own / "model.safetensors", {"a": np.zeros(2)})
    assert find(str(own), "bf16") == (own, None)
    assert list_variants(own) == ["PQ4", "PQ5"]
    for name in ("PQ4", "PQ5"):
        shutil.rmtree(own / name)
    assert find(str(own), None) == (own, None)


def test_chunks_are_found(tmp_path):
    for file in ("polar_state_chunk0", "polar_state_chunk1", "bf16_kept"):
        tiny.save_plain(tmp_path / f"{file}.safetensors", {file: np.zeros(2)})
    assert find(str(tmp_path), None) == (tmp_path, None)
    assert len(Source(tmp_path).plain) == 3


@pytest.mark.parametrize(
    ("name", "variant", "message"),
    [
        ("", None, r"needed one variant, got PQ4, PQ5\. Choose with --variant\."),
        ("", "PQ6", r"needed PQ6, got PQ4, PQ5\. Name a folder"),
        ("PQ6", None, r"needed PQ6, got PQ4, PQ5\. Name a folder"),
        ("PQ6", "PQ5", r"needed one variant, got PQ6 in the name and --variant PQ5"),
        ("PQ5", "PQ4", r"needed variant PQ4, got the folder of PQ5\. Name the repository root"),
        ("../none/of/this", None, r"needed a folder that exists, or a hub id"),
        (
            "~no-such-user/model",
            None,
            r"\[~no-such-user/model\] needed a folder that exists, or a hub id",
        ),
    ],
)
def test_a_variant_that_is_not_there_is_refused(repository, name, variant, message):
    with pytest.raises(SourceError, match=message):
        find(name if name.startswith("~") else str(repository / name), variant)


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(SourceError, match=r"needed a model, got no weights at all\. Name a folder"):
        find(str(tmp_path), None)


def test_torchao_weights_are_refused(tmp_path):
    (tmp_path / "model_int4.pt").write_bytes(b"")
    (tmp_path / "polar_config.json").write_text('{"weight_format": "torchao_int4"}')
    with pytest.raises(
        CheckpointError, match=r"needed HLWQ codes, got weight_format 'torchao_int4'"
    ):
        find(str(tmp_path), None)


@pytest.mark.parametrize(
    ("model", "variant", "wanted"),
    [
        ("owner/name", None, ("owner/name", None)),
        ("owner/name", "PQ5", ("owner/name", "PQ5")),
        ("owner/name/PQ5", None, ("owner/name", "PQ5")),
        ("owner/name/PQ5/", None, ("owner/name", "PQ5")),
        ("owner/name/PQ5", "pq5", ("owner/name", "pq5")),
    ],
)
def test_hub_ids_come_apart(model, variant, wanted):
    assert hub.split_model(model, variant) == wanted


@pytest.mark.parametrize("model", ["name", "a/b/c/d", "/a/b", "./a/b", "~/a", "a//b", ""])
def test_what_is_no_hub_id_is_refused(model):
    with pytest.raises(
        SourceError, match=r"needed a folder that exists, or a hub id like owner/name"
    ):
        hub.split_model(model, None)


def test_two_variants_in_one_name_are_refused():
    with pytest.raises(SourceError, match=r"got PQ5 in the name and --variant PQ4\. Name it once"):
        hub.split_model("owner/name/PQ5", "PQ4")


FILES = [
    *("config.json", "tokenizer.json", "chat_template.jinja", "README.md", "tokenizer.model"),
    *("PQ4/codes.safetensors", "PQ4/bf16.safetensors", "PQ4/notes.json"),
    *("PQ5/codes.safetensors", "PQ5/bf16.safetensors", "PQ5/plot.png", "PQ5/old/a.safetensors"),
    *("model-00001-of-00001.safetensors", "model.safetensors.index.json", "pytorch_model.bin"),
]


@pytest.mark.parametrize(("asked", "got"), [("PQ5", "PQ5"), ("pq4", "PQ4"), ("BF16", None)])
def test_a_hub_variant_is_matched(asked, got):
    assert hub.choose_variant("a/b", FILES, asked) == got


def test_the_only_hub_variant_is_taken():
    assert hub.choose_variant("a/b", ["PQ5/codes.safetensors", "PQ5/x"], None) == "PQ5"
    assert hub.choose_variant("a/b", ["model.safetensors"], None) is None


@pytest.mark.parametrize(
    ("files", "variant", "message"),
    [
        (FILES, None, r"\[a/b\] needed one variant, got PQ4, PQ5\. Choose with --variant"),
        (FILES, "PQ6", r"\[a/b\] needed variant PQ6, got PQ4, PQ5, bf16\. Choose one of these"),
        (["model.safetensors"], "PQ6", r"needed variant PQ6, got bf16\. Choose"),
        (["PQ5/codes.safetensors"], "bf16", r"needed variant bf16, got PQ5\. Choose"),
        (["config.json"], "PQ6", r"needed variant PQ6, got no variant at all"),
    ],
)
def test_a_hub_variant_that_is_not_there_is_refused(files, variant, message):
    with pytest.raises(SourceError, match=message):
        hub.choose_variant("a/b", files, variant)


def test_only_one_variants_files_are_wanted():
    root = {"config.json", "tokenizer.json", "chat_template.jinja", "tokenizer.model"}
    index = {"model.safetensors.index.json"}
    own = {"PQ5/codes.safetensors", "PQ5/bf16.safetensors"}
    assert own <= (wanted := set(hub.wanted_files(FILES, "PQ5")))
    assert wanted - own - {"PQ5/old/a.safetensors"} == root | index
    shard = {"model-00001-of-00001.safetensors"}
    assert set(hub.wanted_files(FILES, None)) == root | index | shard


def test_config_and_side_files_lie_above_or_beside(own):
    (own / "polar_config.json").write_text("{}")
    (own / "model.safetensors.index.json").write_text("{}")
    (own / "README.md").write_text("")
    above = Source(own / "PQ5")
    assert above.config == tiny.config()
    assert [path.name for path in above.side_files] == sorted(tiny.SIDE_FILES)
    shutil.copy(own / "config.json", own / "PQ5")
    beside = Source(own / "PQ5")
    assert (beside.config, beside.side_files) == (tiny.config(), [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"needed config\.json in this folder or the one above, got none"),
        ("{", r"\[config\.json\] needed a JSON object in .*config\.json, got Expecting"),
        ("[]", r"\[config\.json\] needed a JSON object in .*config\.json, got a list"),
    ],
)
def test_a_missing_or_broken_config_is_refused(own, text, message):
    (own / "config.json").unlink()
    if text is not None:
        (own / "config.json").write_text(text)
    source = Source(own / "PQ5")
    with pytest.raises(SourceError, match=message):
        _ = source.config
    if text is None:
        with pytest.raises(SourceError, match=message):
            _ = source.root_files


def test_a_missing_half_of_a_variant_is_refused(own):
    (own / "PQ5" / "bf16.safetensors").unlink()
    message = r"\[PQ5\] needed bf16.safetensors beside codes.safetensors, got none"
    with pytest.raises(SourceError, match=message):
        Source(own / "PQ5")


def test_a_cut_off_file_is_refused(own):
    path = own / "PQ5" / "codes.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"\[codes.safetensors\] needed a whole safetensors"):
        Source(own / "PQ5")


def test_a_shard_that_an_index_names_but_is_not_there_is_refused(tmp_path):
    tiny.save_plain(tmp_path / "model-1.safetensors", {"a": np.zeros(2)})
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(SourceError, match=r"needed weight files, got no model-2\.safetensors\."):
        Source(tmp_path)


@pytest.mark.parametrize("files", [None, ["model-1.safetensors"], {"a": 1}])
def test_an_index_that_is_none_is_refused(tmp_path, files):
    tiny.save_plain(tmp_path / "model-1.safetensors", {"a": np.zeros(2)})
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    message = (
        r"\[model.safetensors.index.json\] needed a weight_map from tensors to files in .*, got"
    )
    with pytest.raises(SourceError, match=message):
        Source(tmp_path)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(SourceError, match=r"needed weight files, got no safetensors file\."):
        Source(tmp_path)


def change(path, edit):
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


def key(name, role):
    return f"{name.replace('.', '__')}__{role}"


def add_plain(tensors):
    tensors[UP] = np.zeros((2, 2), dtype=np.float16)


def copy_codes(tensors):
    tensors[UP.removesuffix(".weight") + ".norms"] = np.zeros((2, 2), dtype=np.float16)


def spoil_meta(tensors):
    tensors[key(UP, "meta")] = np.array([256, 1, 128, 99])


def spoil_norms(tensors):
    tensors[key(UP, "norms")] = np.full_like(tensors[key(UP, "norms")], np.nan)


def drop_norms(tensors):
    del tensors[key(UP, "norms")]


def add_words(tensors):
    tensors["model.other.weight_packed"] = np.zeros((2, 2), dtype=np.int32)


def add_doubles(tensors):
    tensors["a.b"] = np.zeros(2, dtype=np.float16)
    tensors["model.language_model.norm.weight"] = np.zeros(128, dtype=np.float16)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (add_plain, rf"\[{UP}\] needed to be coded or plain, got both\."),
        (
            spoil_meta,
            rf"\[{UP}\] needed meta \[256, 1, 128, 32768\] from .* got \[256, 1, 128, 99\]",
        ),
        (spoil_norms, rf"\[{UP}\] needed finite norms, got 256 that are NaN, infinite or negative"),
        (drop_norms, rf"\[{UP}\] needed codes and norms, got no norms\."),
        (add_words, r"weight_packed\] needed BF16, F16, F32, got I32\. The file is not an HLWQ"),
        (add_doubles, r"\[model.language_model.norm.weight\] needed in one file, got two\."),
    ],
)
def test_a_damaged_tensor_is_named(own, edit, message):
    change(own / "PQ5" / "codes.safetensors", edit)
    with pytest.raises(CheckpointError, match=message):
        _ = Source(own / "PQ5").coded


def test_two_codings_of_one_tensor_are_refused(tmp_path):
    parts = {"norms": np.ones((2, 1), np.float16), "codes": np.ones((2, 128), np.uint8)}
    for number, form in enumerate(("a.b.{}", "a__b__{}"), start=1):
        path = tmp_path / f"model-{number}.safetensors"
        save_file({form.format(role): array for role, array in parts.items()}, path)
    with pytest.raises(CheckpointError) as caught:
        _ = Source(tmp_path).plain
    assert sorted(re.split(r" (?=\[)", str(caught.value))) == [
        f"[{role} of a.b.weight] needed in one file, got two. The files do not belong together."
        for role in ("codes", "norms")
    ]


def recode(folder, bits, order):
    """Pack a variant's codes in another order."""

    def edit(tensors):
        for name in list(tensors):
            if name.endswith("__packed"):
                count = tensors[name].size * 8 // bits
                codes = packing.unpack(tensors[name], bits, count, "msb")
                tensors[name] = packing.pack(codes, bits, order)

    change(folder / "codes.safetensors", edit)


def test_five_bits_packed_the_other_way_round_are_told_by_histogram(own):
    wanted = decode(Source(own / "PQ5"), UP)
    recode(own / "PQ5", 5, "lsb")
    source = Source(own / "PQ5", "PQ5")
    np.testing.assert_array_equal(decode(source, UP), wanted)
    assert list(source.evidence()) == [
        "5 bits: 25 tensors, order lsb by histogram, table clip4_100 by block energy"
    ]


@pytest.mark.parametrize("order", ["lsb", "half"])
def test_four_bits_packed_otherwise_are_told_by_the_variant_beside(own, order):
    wanted = decode(Source(own / "PQ4"), UP)
    recode(own / "PQ4", 4, order)
    source = Source(own / "PQ4", "PQ4")
    np.testing.assert_array_equal(decode(source, UP), wanted)
    assert list(source.evidence()) == [
        f"4 bits: 25 tensors, order {order} by another width of the same tensor, "
        "table clip4_100 as another width of the model"
    ]
    shutil.rmtree(own / "PQ5")
    assert not np.allclose(decode(Source(own / "PQ4"), UP), wanted, atol=0.01)
    asked = Source(own / "PQ4", bit_order=order, table="inf_100")
    assert asked.readings[UP].table == "inf_100"
    assert asked.readings[UP].order == order


@pytest.mark.parametrize("damage", ["codes", "norms"])
def test_a_damaged_variant_beside_is_passed_over(own, damage):
    path = own / "PQ5" / "codes.safetensors"
    if damage == "codes":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        change(path, spoil_norms)
    evidence = list(Source(own / "PQ4").evidence())
    assert evidence == ["4 bits: 25 tensors, order msb by key style, table clip4_100 by key style"]


def test_four_bits_packed_otherwise_are_told_by_gate_proj(tmp_path):
    """gate_proj is 16-bit beside them, and its columns vary as those of up_proj do."""
    settings = tiny.config()
    weights = tiny.make_weights(settings)
    shared = np.random.default_rng(1).standard_normal((4, 128)).astype(np.float32)
    for i in range(2):
        for part in ("up", "gate"):
            name = UP.replace("layers.0", f"layers.{i}").replace("up_", f"{part}_")
            draw = np.random.default_rng([i, len(part)]).standard_normal((256, 4))
            weights[name] += (draw @ shared).astype(np.float32) / 20
    tiny.write_root(tmp_path, settings)
    decoded = tiny.publish(tmp_path / "PQ4", weights, tiny.pure(4), order="lsb")
    source = Source(tmp_path / "PQ4")
    np.testing.assert_array_equal(decode(source, UP), decoded[UP])
    assert "order lsb by comparison with gate_proj" in next(source.evidence())


def test_what_is_coded_is_what_the_keys_say(repository):
    source = Source(repository / "PQ5", "PQ5")
    gate = UP.replace("up_proj", "gate_proj")
    assert (UP in source.coded, gate in source.plain) == (True, True)
    assert tiny.AUDIO in source.coded
    assert source.coded[tiny.AUDIO].shape == (48, 256)  # the layout does not say 200
    assert source.plain[tiny.VISION].shape == (32, 48)
    assert source.weight_bytes == sum(path.stat().st_size for path in source.weight_files)


def test_finding_a_local_model_imports_no_client_of_the_web_and_no_mlx(tmp_path):
    root = tiny.write_root(tmp_path, tiny.config())
    tiny.publish(root / "PQ5", tiny.make_weights(tiny.config()), tiny.pure(5))
    script = (
        "import sys; from hlwq_mlx.source.locate import find; print(find(sys.argv[1], None)[1]);"
        "print(*{'mlx', 'numpy', 'huggingface_hub', 'httpx'} & sys.modules.keys())"
    )
    command = [sys.executable, "-c", script, str(root)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.stdout == "PQ5\n\n", ran.stderr
