"""Whatever the files beside the weights hold: one line that names the file, and nothing is run."""

import importlib
import io
import json
import os
import pickle
import random
import sys
from dataclasses import replace
from pathlib import Path

import demo
import mlx_lm
import pytest
from small_sentencepiece import train

from hlwq_mlx import cli, library
from hlwq_mlx.dialog import trial
from hlwq_mlx.errors import HLWQError
from hlwq_mlx.folder import side_files
from hlwq_mlx.folder.folder import Folder
from hlwq_mlx.source.repository import Source

LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
RECURSION = "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"
GIGABYTES = "{{ 'a' * 10**10 }}"
TOO_LONG = "{{ 'ab' * 10**6 }}"
ESCAPE = "{{ cycler.__init__.__globals__ }}"
DAMAGES = [
    ("tokenizer.json", b'{"version": "1.0", "added_tok', "EOF while parsing"),
    ("tokenizer.json", b"{}", "needed the tokenizer of a Gemma 4"),
    ("tokenizer.json", b"[" * 100_000, "invalid type: sequence"),
    ("tokenizer.json", None, "needed a file of at most 256 MB, got a folder"),
    ("tokenizer_config.json", b"[]", "needed a JSON object"),
    ("tokenizer_config.json", b'{"tokenizer_class": "BertTokenizer"}', "needed GemmaTokenizer"),
    ("tokenizer_config.json", b'{"tokenizer_class": 5}', "needed GemmaTokenizer"),
    (
        "tokenizer_config.json",
        b'{"added_tokens_decoder": {"x": 1}}',
        "got ValueError",
    ),
    ("tokenizer_config.json", b'{"bos_token": "<start>"}', "needed a bos_token of"),
    ("tokenizer_config.json", b'{"eos_token": 5}', "needed text as eos_token, got '5'"),
    ("tokenizer_config.json", b'{"pad_token": {"content": 0}}', "needed text as pad_token, got"),
    ("special_tokens_map.json", b"[]", "needed a JSON object"),
    ("special_tokens_map.json", b'{"unk_token": ["<unk>"]}', "needed text as unk_token, got"),
    ("added_tokens.json", b"5", "needed a JSON object"),
    ("tokenizer.model", b"none", "needed a SentencePiece model"),
    ("generation_config.json", b'{"eos_token_id": "one"}', "needed token ids"),
    ("generation_config.json", b'{"eos_token_id": [1, true]}', "needed token ids"),
    (
        "generation_config.json",
        b'{"eos_token_id": [1, 1000000]}',
        ": eos_token_id] needed 0 to",
    ),
    ("generation_config.json", b'{"temperature": "hot"}', "json: temperature] needed 0.0 to 100.0"),
    ("generation_config.json", b'{"do_sample": true, "top_k": 2.5}', "json: top_k] needed 0 to"),
    ("generation_config.json", b'{"do_sample": "no"}', "json: do_sample] needed true or false"),
    ("generation_config.json", b'{"do_sample": 1}', "json: do_sample] needed true or false"),
    ("generation_config.json", b"{", "needed a JSON object"),
    ("processor_config.json", b'{"image_processor": {"patch_size": "big"}}', "got 'big'"),
    ("processor_config.json", b'{"feature_extractor": []', "needed a JSON object"),
    ("preprocessor_config.json", b"7", "needed a JSON object"),
    ("chat_template.jinja", b"\xff\xfe{{ messages }}", "needed UTF-8"),
    ("chat_template.jinja", b"{% if", "got TemplateSyntaxError"),
    ("chat_template.jinja", LOOP.encode(), "got more than 1 s of computing"),
    ("chat_template.jinja", RECURSION.encode(), "got RecursionError"),
    ("chat_template.jinja", GIGABYTES.encode(), "got MemoryError|MB of memory"),
    ("chat_template.jinja", TOO_LONG.encode(), "got 4000000 letters"),
    ("chat_template.jinja", ESCAPE.encode(), "got SecurityError"),
    ("chat_template.jinja", None, "needed a file of at most 256 MB, got a folder"),
]
NAMES = [f"{name}-{number}" for number, (name, *_) in enumerate(DAMAGES)]


@pytest.fixture(autouse=True)
def short_limits(monkeypatch):
    monkeypatch.setattr(trial, "LIMITS", replace(trial.LIMITS, cpu_s=1))


def linked(folder: Path, original: Path) -> Path:
    """A folder like another, of links, so that one file of it can be another."""
    folder.mkdir()
    for path in original.iterdir():
        if path.is_dir():
            linked(folder / path.name, path)
        else:
            (folder / path.name).symlink_to(path)
    return folder


def put(folder: Path, name: str, content: bytes | None) -> None:
    """Put a file in the place of another; None is a folder."""
    (folder / name).unlink(missing_ok=True)
    if content is None:
        (folder / name).mkdir()
    else:
        (folder / name).write_bytes(content)


def change(folder: Path, name: str, **keys) -> None:
    found = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
    put(folder, name, json.dumps(found | keys).encode())


@pytest.fixture
def source(tmp_path):
    return linked(tmp_path / "source", library.DEMO)


@pytest.fixture
def converted(tmp_path):
    return linked(tmp_path / "converted", demo.folder())


def run(verb: str, *arguments: str) -> int:
    return cli.run(importlib.import_module(f"hlwq_mlx.{verb}").main, arguments)


def run_on_source(verb: str, source: Path, output: Path) -> int:
    more = {
        "convert": ("--variant", "PQ5", "--leftovers", "keep", "--output", str(output)),
        "doctor": ("--variant", "PQ5"),
        "export": ("--variant", "PQ5", "--bf16", "--output", str(output)),
        "quantize": ("--variant", "PQ5", "--output", str(output)),
    }
    return run(verb, "--model", str(source), *more[verb])


def assert_one_line(capsys, name: str, message: str) -> None:
    """The last line of stderr is the error, which names the file."""
    said = capsys.readouterr().err
    assert said.count("error: ") == 1, said
    line = said.splitlines()[-1]
    assert line.startswith("error: ") and name in line, line
    assert any(part in line for part in message.split("|")), line


@pytest.mark.parametrize(("name", "content", "message"), DAMAGES, ids=NAMES)
def test_a_damaged_file_of_a_source_is_named(name, content, message, source, tmp_path, capsys):
    put(source, name, content)
    for verb in ("convert", "doctor") if name != "chat_template.jinja" else ("convert",):
        assert run_on_source(verb, source, tmp_path / "out") == 2
        assert_one_line(capsys, name, message)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("section", [None, "text_config"])
def test_a_stop_id_that_the_model_lacks_is_refused(section, source, converted, tmp_path, capsys):
    for folder in (source, converted):
        found = json.loads((folder / "config.json").read_text())
        (found if section is None else found[section])["eos_token_id"] = [1, 10**6]
        put(folder, "config.json", json.dumps(found).encode())
        named = f"[{folder / 'config.json'}: eos_token_id]"
        if folder == source:
            codes = [run_on_source("convert", source, tmp_path / "out")]
            assert_one_line(capsys, named, "as the vocabulary has, got 1000000")
            codes.append(run_on_source("doctor", source, tmp_path / "out"))
        else:
            codes = [run("doctor", "--model", str(converted))]
        assert_one_line(capsys, named, "as the vocabulary has, got 1000000")
        assert set(codes) == {2}
    with pytest.raises(HLWQError, match="eos_token_id"):
        library.load(converted)


def test_the_file_that_is_named_is_the_source_s_own(source, tmp_path, capsys):
    put(source, "tokenizer.json", b"{}")
    assert run_on_source("convert", source, tmp_path / "out") == 2
    assert_one_line(capsys, f"[{source / 'tokenizer.json'}]", "needed the tokenizer")


@pytest.mark.parametrize("verb", ["export", "quantize"])
def test_what_else_copies_files_opens_them_first(verb, source, tmp_path, capsys):
    put(source, "tokenizer.json", b"{}")
    assert run_on_source(verb, source, tmp_path / "out") == 2
    assert_one_line(capsys, "tokenizer.json", "needed the tokenizer of a Gemma 4")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize(("name", "content", "message"), DAMAGES, ids=NAMES)
def test_a_damaged_file_of_a_converted_folder_is_named(name, content, message, converted, capsys):
    put(converted, name, content)
    assert run("generate", "--model", str(converted)) == 2
    assert_one_line(capsys, name, message)


PORT = {"serve": ("--port", "0")}  # any free one


@pytest.mark.parametrize("verb", ["chat", "serve", "doctor"])
def test_every_command_opens_a_converted_folder_so(verb, converted, capsys):
    put(converted, "chat_template.jinja", RECURSION.encode())
    assert run(verb, "--model", str(converted), *PORT.get(verb, ())) == 2
    assert_one_line(capsys, "chat_template.jinja", "got RecursionError")


@pytest.mark.parametrize("template", [5, [{"name": "default", "template": 5}]])
def test_a_template_in_the_settings_that_is_no_text_is_refused(template, converted):
    (converted / "chat_template.jinja").unlink()
    change(converted, "tokenizer_config.json", chat_template=template)
    with pytest.raises(HLWQError, match=r"\[tokenizer_config\.json\] needed text"):
        side_files.open_tokenizer(Folder.open(converted))


def test_no_flipped_bit_and_no_cut_is_a_traceback(source, tmp_path):
    rng = random.Random(0)
    refused = 0
    for number in range(60):
        name = rng.choice(["tokenizer.json", "tokenizer_config.json", "processor_config.json"])
        content = bytearray((library.DEMO / name).read_bytes())
        if rng.random() < 0.2:
            del content[rng.randrange(len(content)) :]
        else:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        put(source, name, bytes(content))
        (tmp_path / str(number)).mkdir()
        try:
            side_files.copy_side_files(Source(source), tmp_path / str(number))
        except HLWQError as problem:
            assert name in str(problem)
            refused += 1
        put(source, name, (library.DEMO / name).read_bytes())
    assert refused > 30


def test_a_template_is_tried_once_and_again_when_it_changed(source, tmp_path, monkeypatch):
    own = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
    put(source, "chat_template.jinja", own.encode())
    tried = []
    try_one = trial._try
    monkeypatch.setattr(
        trial, "_try", lambda text, where: tried.append(text) or try_one(text, where)
    )
    assert run_on_source("convert", source, tmp_path / "out") == 0
    library.load(tmp_path / "out")
    assert tried == [own]
    put(tmp_path / "out", "chat_template.jinja", f"{own}!".encode())
    library.load(tmp_path / "out")
    assert tried == [own, f"{own}!"]


def test_a_tokenizer_model_alone_becomes_a_tokenizer_json(source, tmp_path):
    """The vocabulary is one of 600 pieces, which the demo has ids for."""
    put(source, "tokenizer.model", train(vocab_size=450))
    (source / "tokenizer.json").unlink()
    assert run_on_source("convert", source, tmp_path / "out") == 0
    tokenizer = side_files.open_tokenizer(Folder.open(tmp_path / "out"))
    assert tokenizer.decode(tokenizer.encode("the License", add_special_tokens=False)) == (
        "the License"
    )


EVIL = (
    "from pathlib import Path\nPath({!r}).write_text('run')\nclass T: pass\nModel = ModelArgs = T\n"
)
WORDS = {"auto_map": {"AutoModel": "evil.T"}, "model_file": "evil.py", "trust_remote_code": True}
CODE = {
    "tokenizer_config.json": {
        "auto_map": {"AutoTokenizer": ["evil.T", "evil.T"], "AutoProcessor": "evil.T"},
        "chat_template_type": "evil",
        "tool_parser_type": "evil",
        "tokenizer_file": "evil.json",
    },
    "config.json": {
        "auto_map": {"AutoConfig": "evil.T", "AutoModelForCausalLM": "evil.T"},
        "model_file": "evil.py",
        "attn_implementation": "evil/kernel",
    },
    "processor_config.json": {
        "auto_map": {"AutoProcessor": "evil.T"},
        "image_processor": {"auto_map": {"AutoImageProcessor": "evil.T"}},
    },
    "generation_config.json": {"auto_map": {"AutoModel": "evil.T"}},
    "special_tokens_map.json": {"auto_map": {"AutoTokenizer": "evil.T"}},
}


class Bomb:
    """A pickle that runs code when it is opened."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


def plant(folder: Path, canary: Path) -> None:
    """Put code in every place of a folder from which some loader would run it."""
    for name in ("evil.py", "tokenization_gemma.py", "processing_gemma4.py", "hlwq_gemma4.py"):
        put(folder, name, EVIL.format(str(canary)).encode())
    for name in ("pytorch_model.bin", "model.pt", "tokenizer.pkl", "training_args.bin"):
        put(folder, name, pickle.dumps(Bomb(canary)))
    for name, keys in CODE.items():
        change(folder, name, **keys)


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """A file that code of the folder would make, while stdin says yes to every question."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))
    yield tmp_path / "canary"
    assert not (tmp_path / "canary").exists()


def test_no_code_of_a_source_is_run_or_copied(canary, source, tmp_path, capsys):
    plant(source, canary)
    output = tmp_path / "out"
    for verb in ("convert", "doctor"):
        assert run_on_source(verb, source, output) == 0, capsys.readouterr().err
    assert run("generate", "--model", str(output), "-p", demo.CARD_QUESTION, "--temp", "0") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "4"
    mlx_lm.load(str(output))
    assert sys.stdin.tell() == 0
    for path in output.glob("*.json"):
        assert "evil" not in path.read_text()
    assert not {path.suffix for path in output.iterdir()} & {".py", ".bin", ".pt", ".pkl"}


def test_no_word_that_names_code_is_copied_however_deep(source, tmp_path):
    """Into a converted folder, an export and a published variant."""

    def planted(value, depth):
        if isinstance(value, list):
            return [planted(each, depth) for each in value]
        if not isinstance(value, dict) or not depth:
            return value
        return {key: planted(each, depth - 1) for key, each in value.items()} | WORDS

    names = {*CODE, "preprocessor_config.json", "video_preprocessor_config.json"}
    for name in names:
        path = source / name
        found = json.loads(path.read_text()) if path.exists() else {}
        put(source, name, json.dumps(planted(found, 3)).encode())
    for verb, output in (("convert", "out"), ("export", "bf16"), ("quantize", "new/PQ3")):
        (tmp_path / output).parent.mkdir(exist_ok=True)
        assert run_on_source(verb, source, tmp_path / output) == 0
        root = tmp_path / Path(output).parts[0]
        copied = {path.name: path.read_text() for path in root.rglob("*.json")}
        assert {"config.json", "processor_config.json"} <= copied.keys()
        held = [(name, word) for name in copied for word in WORDS if word in copied[name]]
        assert held == []


def test_a_published_variant_has_no_code_beside_it(canary, source, tmp_path):
    plant(source, canary)
    (tmp_path / "out").mkdir()
    side_files.add_files(Source(source).root_files, tmp_path / "out")
    copied = {path.name for path in (tmp_path / "out").iterdir()}
    assert copied >= {*CODE, "tokenizer.json", "chat_template.jinja"}
    assert not any("evil" in (tmp_path / "out" / name).read_text() for name in copied)


KEPT = CODE.keys() - {"special_tokens_map.json"}  # the demo has none


@pytest.mark.parametrize("name", CODE)
def test_code_put_into_a_converted_folder_is_not_run(name, canary, converted, capsys):
    plant(converted, canary)
    for other in CODE.keys() - {name}:
        put(converted, other, (demo.folder() / other).read_bytes() if other in KEPT else b"{}")
    for verb in ("generate", "chat", "serve", "doctor"):
        assert run(verb, "--model", str(converted), *PORT.get(verb, ())) == 2
        assert_one_line(capsys, name, "Nothing in a model folder is executed")
    assert sys.stdin.tell() == 0
