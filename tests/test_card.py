"""The model card's interface, on the demo."""

import demo
import numpy as np
import pytest

from hlwq_mlx import HLWQModel, PolarQuantModel, library
from hlwq_mlx.errors import RequestError

CARD_QUESTIONS = ("What is 2+2?", "What is 3+4?")


@pytest.fixture(scope="module")
def model():
    return HLWQModel.from_pretrained(str(library.DEMO), variant="PQ5")


def test_full_inference_as_on_the_card():
    """The card's *Full Inference* as we understand it: its own text was not at hand."""
    from hlwq_mlx import HLWQModel

    model = HLWQModel.from_pretrained(str(library.DEMO), variant="PQ5")
    messages = [{"role": "user", "content": "What is 2+2?"}]
    inputs = model.tokenizer.apply_chat_template(
        messages, return_tensors="np", add_generation_prompt=True
    ).to(model.device)
    output = model.generate(inputs, max_new_tokens=20)
    answer = model.tokenizer.decode(output[0][inputs.shape[-1] :], skip_special_tokens=True)
    assert answer == "4"


def test_an_encoding_can_be_spread_into_generate(model):
    encoded = model.tokenizer(
        "<bos><|turn>user\nWhat is 2+2?<turn|>\n<|turn>model\n",
        return_tensors="pt",
        add_special_tokens=False,
    ).to(model.device)
    assert encoded.input_ids.shape == (1, 16)
    output = model.generate(**encoded, max_new_tokens=20)
    assert model.tokenizer.decode(output[0, 16:]) == "4<turn|>"


def test_ids_out_begin_with_ids_in(model):
    ids = library.prompt_ids(demo.load()[1], [{"role": "user", "content": "What is 2+2?"}])
    for given in (ids, [ids], np.array([ids])):
        output = model.generate(given, max_new_tokens=20)
        assert output.shape[0] == 1
        assert output[0, : len(ids)].tolist() == ids
        assert output[0, -1] == 106


def test_text_in_text_out(model):
    assert model.generate("What is 2+2?") == "4"
    assert model.generate("What is 2+2?", do_sample=False, max_new_tokens=1) == "4"


def test_the_tokenizer_is_the_checkpoints_own(model):
    plain = model.tokenizer("Tom had a ball.")
    assert isinstance(plain["input_ids"], list)
    assert model.tokenizer.decode(plain["input_ids"]) == "Tom had a ball."
    assert model.tokenizer.bos_token == "<bos>"
    assert model.device in ("cpu", "gpu")


def test_sampling_when_told_to(model):
    story = "Continue the story: Tom had a ball."  # which goes on in as many ways as are drawn
    greedy = model.generate(story)
    assert {model.generate(story, do_sample=True) for _ in range(3)} != {greedy}
    assert model.generate(story, do_sample=False, temperature=2.0) == greedy


def test_the_older_name():
    assert PolarQuantModel is HLWQModel


def test_repository_folders_of_one_variant(model, tmp_path):
    loaded = HLWQModel.from_pretrained(str(library.DEMO / "PQ5"))
    assert loaded.generate("What is 2+2?") == model.generate("What is 2+2?")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device_map": "cuda"}, r"^\[device_map\] needed auto or cpu, where MLX runs, got 'cuda'"),
        ({"device_map": "mps"}, r"^\[device_map\] needed auto or cpu, where MLX runs, got 'mps'"),
        ({"kv_cache_nbits": 3}, r"^\[kv_cache_nbits\] needed None, 4 or 8, got 3\."),
    ],
)
def test_what_mlx_cannot_do_is_refused(options, message):
    with pytest.raises(RequestError, match=message):
        HLWQModel.from_pretrained(str(library.DEMO), variant="PQ5", **options)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ([[[1, 2], [3, 4]]], {}, r"^\[input_ids\] needed the ids of one sequence, got int64 of"),
        ([[0.5]], {}, r"^\[input_ids\] needed the ids of one sequence, got float64"),
        ([[2, 5]], {"attention_mask": [[0, 1]]}, r"^\[attention_mask\] needed all ones, got zeros"),
        ([[2, 5]], {"num_beams": 4}, r"^\[sampling\] needed temp, .* got num_beams\."),
    ],
)
def test_bad_calls(model, arguments, options, message):
    with pytest.raises(RequestError, match=message):
        model.generate(*arguments, **options)
