"""Pictures through stock mlx-lm's processor hook: its library, its command and its server."""

import base64
import dataclasses
import subprocess
import sys

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
import tiny_media
from mlx_lm.processors import load_processor
from PIL import Image
from served import served

from hlwq_mlx import library
from hlwq_mlx.dialog import template
from hlwq_mlx.errors import RequestError
from hlwq_mlx.prompt import prepare

COMMAND = "import hlwq_mlx, importlib; importlib.import_module('mlx_lm.{}').main()"
THINKING_OFF = '{"enable_thinking": false}'


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_media.converted(tmp_path_factory.mktemp("seeing") / "model")


@pytest.fixture(scope="module")
def stock(folder):
    model, tokenizer, config = mlx_lm.load(str(folder), return_config=True)
    return model, tokenizer, load_processor(model, config)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return tiny_media.write_media(tmp_path_factory.mktemp("media"))


@pytest.fixture(scope="module")
def prepared(folder, files):
    """What our own library makes of a prompt about two pictures."""
    model, tokenizer = library.load(folder)
    parts = [{"type": "image", "path": str(files[name])} for name in ("a.png", "b.jpg")]
    spelled = template.render(tokenizer, [{"role": "user", "content": [*parts, "Well?"]}])
    return spelled.text, *prepare(model, tokenizer, spelled)[:2]


def test_the_hook_makes_the_embeddings_that_we_make(stock, files, prepared):
    model, tokenizer, processor = stock
    text, ids, embeddings = prepared
    images = [np.asarray(Image.open(files[name]).convert("RGB")) for name in ("a.png", "b.jpg")]
    spelled, pixel_values = processor(text, images=images)
    assert tokenizer.encode(spelled, add_special_tokens=False) == ids
    found = model.embed_inputs(mx.array(ids), pixel_values=pixel_values)
    assert np.array_equal(np.array(found), np.array(embeddings[0]))


def test_the_hook_takes_no_files_and_counts(stock):
    _, _, processor = stock
    with pytest.raises(RequestError, match="got a file name or something unknown"):
        processor("<|image|>", images=["/etc/hostname"])
    with pytest.raises(RequestError, match=r"needed one image for each <\|image\|>, got 1 for 0\."):
        processor("Well?", images=[tiny_media.picture()])


def test_the_hook_takes_no_more_than_the_context_holds(stock):
    _, _, processor = stock
    assert processor.context == 4096
    with pytest.raises(RequestError, match="at most 3 soft tokens, the model's context, got 4 or"):
        dataclasses.replace(processor, context=3)("<|image|>", images=[tiny_media.picture()])


def test_stock_samplers_never_see_media_tokens(stock, folder):
    model, _, _ = stock
    ours, _ = library.load(folder)
    ids = mx.array([[2, 105, 449]])
    found, wanted = np.array(model(ids)), np.array(ours(ids))
    media = list(ours.args.media_token_ids)
    assert media == list(range(60, 67))
    assert np.isneginf(found[..., media]).all() and np.isfinite(wanted).all()
    wanted[..., media] = -np.inf
    # Stock mlx-lm's own loader leaves plain matrices to stock MLX.
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.slow  # the server goes the same way
def test_the_command(folder, files, prepared):
    _, ids, _ = prepared
    images = (str(files["a.png"]), str(files["b.jpg"]))
    arguments = [
        *("--model", str(folder), "--max-tokens", "2", "--chat-template-config", THINKING_OFF),
        *("--prompt", "<|image|><|image|>Well?", "--image", *images),
    ]
    ran = subprocess.run(
        [sys.executable, "-c", COMMAND.format("generate"), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert f"Prompt: {len(ids)} tokens" in ran.stdout


@pytest.mark.slow
def test_the_server(folder, files, prepared):
    _, ids, _ = prepared
    content = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}}
        for encoded in (
            base64.b64encode(files[n].read_bytes()).decode() for n in ("a.png", "b.jpg")
        )
    ]
    content.append({"type": "text", "text": "Well?"})
    server = ("-c", COMMAND.format("server"), "--chat-template-args", THINKING_OFF)
    with served(folder, server) as client:
        answer = client.chat.completions.create(
            model="default_model", messages=[{"role": "user", "content": content}], max_tokens=2
        )
    assert answer.usage.prompt_tokens == len(ids)
    assert answer.usage.completion_tokens == 2
