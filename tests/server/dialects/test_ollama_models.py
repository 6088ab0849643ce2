"""Ollama's lists: what Zed, VS Code, Continue and Home Assistant require of them."""

import json
import re
from dataclasses import replace

import ollama
import pytest

from hlwq_mlx.errors import RequestError
from hlwq_mlx.server.dialects import ollama_models as models
from hlwq_mlx.server.model_card import ModelCard

CARD = ModelCard(
    name="gemma-4-e4b",
    variant="PQ5",
    context=131_072,
    created=1_790_000_000.5,
    capabilities=("completion", "tools", "thinking", "vision", "audio"),
    parameters=8_000_000_000,
    size_bytes=6_100_000_000,
    memory_bytes=5_900_000_000,
    digest="ab" * 32,
)


def test_tags_have_all_that_zed_requires():
    told = models.tags(CARD)
    entry = told["models"][0]
    assert entry["name"] == entry["model"] == "gemma-4-e4b:latest"
    assert entry["details"] == {
        "parent_model": "",
        "format": "mlx",
        "family": "gemma4",
        "families": ["gemma4"],
        "parameter_size": "8.0B",
        "quantization_level": "PQ5",
    }
    listed = ollama.ListResponse(**told).models[0]
    assert (listed.size, listed.digest, listed.modified_at.year) == (
        CARD.size_bytes,
        "ab" * 32,
        2026,
    )


def test_a_small_model_is_counted_in_millions():
    told = models.show(replace(CARD, parameters=4_270_683))
    assert told["details"]["parameter_size"] == "4.27M"


def test_ps_tells_what_is_loaded_and_until_when():
    told = ollama.ProcessResponse(**models.ps(CARD, 1_790_000_300.0)).models[0]
    assert (told.size_vram, told.context_length) == (CARD.memory_bytes, 131_072)
    assert told.expires_at.isoformat() == "2026-09-21T14:18:20+00:00"
    assert ollama.ProcessResponse(**models.ps(CARD)).models[0].expires_at.year == 9999
    unloaded = ModelCard("m", "PQ5", 4096, 0.0)
    assert models.ps(unloaded) == {"models": []}


def test_show_tells_what_vs_code_and_continue_read():
    told = models.show(CARD)
    shown = ollama.ShowResponse(**told)
    architecture = shown.modelinfo["general.architecture"]
    assert shown.modelinfo[f"{architecture}.context_length"] == 131_072
    assert shown.modelinfo["general.basename"] == "gemma-4-e4b"
    assert shown.capabilities == ["completion", "tools", "thinking", "vision", "audio"]
    for line in shown.parameters.splitlines():
        assert re.fullmatch(r"\S+\s+\S+", line)


def test_the_version_is_one_that_vs_code_takes():
    assert tuple(map(int, models.version()["version"].split("."))) >= (0, 6, 4)


@pytest.mark.parametrize("name", ["gemma-4-e4b", "gemma-4-e4b:latest", "claude-gemma-4-e4b"])
@pytest.mark.parametrize("key", ["model", "name"])
def test_the_model_itself_is_pulled_at_once(name, key):
    stream, is_streamed = models.pull(CARD, {key: name})
    lines = [ollama.ProgressResponse(**json.loads(line)) for line in stream.splitlines()]
    assert (is_streamed, lines[-1].status) == (True, "success")
    whole, is_streamed = models.pull(CARD, {key: name, "stream": False})
    assert (json.loads(whole), is_streamed) == ({"status": "success"}, False)


@pytest.mark.parametrize("body", [{"model": "llama3:latest"}, {"model": ""}, {}])
def test_another_model_is_not_pulled(body):
    with pytest.raises(RequestError, match=r"\[model\] needed gemma-4-e4b, got"):
        models.pull(CARD, body)
