"""One list of models that OpenAI's and Anthropic's clients read, and those that ask for lengths."""

import json

import anthropic
import openai
import pytest
from support.canned import Canned, canned

from hlwq_mlx.server.dialects.models import list_models, model
from hlwq_mlx.server.model_card import ModelCard

CARD = ModelCard("gemma-4-e4b", "PQ5", 32768, 1790000000.9)


def test_the_list_has_the_model_and_its_name_for_claude_code():
    told = list_models(CARD)
    assert [each["id"] for each in told["data"]] == ["gemma-4-e4b", "claude-gemma-4-e4b"]
    assert (told["object"], told["has_more"]) == ("list", False)
    assert (told["first_id"], told["last_id"]) == ("gemma-4-e4b", "claude-gemma-4-e4b")
    assert len(list_models(ModelCard("claude-x", "PQ5", 9, 0))["data"]) == 1


@pytest.mark.parametrize("name", ["", "gpt-4o"])
def test_a_model_has_any_name_and_the_length_that_fits(name):
    told = model(CARD, name)
    assert told["id"] == (name or "gemma-4-e4b")
    assert (told["object"], told["type"], told["owned_by"]) == ("model", "model", "hlwq_mlx")
    assert (told["created"], told["created_at"]) == (1790000000, "2026-09-21T14:13:20Z")
    assert told["display_name"] == "gemma-4-e4b PQ5"
    lengths = ("context_length", "loaded_context_length", "max_context_length", "max_model_len")
    assert {told[key] for key in (*lengths, "max_input_tokens")} == {32768}


def test_both_clients_read_the_list():
    with canned(Canned(json.dumps(list_models(CARD)).encode())) as url:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            found = list(client.models.list())
        with anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as other:
            named = list(other.models.list(limit=1000))
    assert [each.id for each in found] == [each.id for each in named]
    assert (found[0].context_length, found[0].owned_by) == (32768, "hlwq_mlx")
    assert (named[1].display_name, named[1].created_at.year) == ("gemma-4-e4b PQ5", 2026)
    assert named[1].max_input_tokens == 32768


def test_the_client_reads_one_model():
    with (
        canned(Canned(json.dumps(model(CARD, "gpt-4o")).encode())) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        assert client.models.retrieve("gpt-4o").id == "gpt-4o"
