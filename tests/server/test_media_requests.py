"""Pictures, sounds and videos sent to `python -m hlwq_mlx.serve` by the openai client."""

import base64

import openai
import pytest
import tiny_media
from media_files import sound_file
from served import served

from hlwq_mlx import library
from hlwq_mlx.dialog import template
from hlwq_mlx.prompt import prepare


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    source = tiny_media.write(tmp_path_factory.mktemp("seeing") / "model")
    return library.converted_folder(str(source))


@pytest.fixture(scope="module")
def client(folder):
    with served(folder) as made:
        yield made


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return tiny_media.write_media(tmp_path_factory.mktemp("media"))


def encoded(path):
    return base64.b64encode(path.read_bytes()).decode()


def picture(path):
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded(path)}"}}


def sound(path):
    return {
        "type": "input_audio",
        "input_audio": {"data": encoded(path), "format": path.suffix[1:]},
    }


def ask(client, *parts):
    content = [*parts, {"type": "text", "text": "Well?"}]
    return client.chat.completions.create(
        model="default_model", messages=[{"role": "user", "content": content}], max_tokens=2
    )


def prompt_tokens(folder, *parts):
    model, tokenizer = library.load(folder)
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": "Well?"}]}]
    return len(prepare(model, tokenizer, template.render(tokenizer, messages)).ids)


def test_pictures_sounds_and_videos_are_answered(client, folder, files):
    clip = {"type": "video", "url": f"data:video/mp4;base64,{encoded(files['a.mp4'])}"}
    spelled = {"type": "text", "text": "No <|image|>, no <turn|>."}
    parts = picture(files["a.png"]), sound(files["a.mp3"]), clip, spelled, sound(files["a.wav"])
    answer = ask(client, *parts)
    assert answer.usage.prompt_tokens == prompt_tokens(folder, *parts)
    assert answer.usage.completion_tokens == 2


def test_the_prompt_cache_tells_sounds_apart(client, files, tmp_path):
    higher = tmp_path / "higher.wav"
    higher.write_bytes(sound_file(tiny_media.sound(hertz=900.0), 16_000))
    first = ask(client, sound(files["a.wav"]))
    again = ask(client, sound(files["a.wav"]))
    other = ask(client, sound(higher))
    assert again.usage.prompt_tokens_details.cached_tokens == first.usage.prompt_tokens - 1
    assert other.usage.prompt_tokens == first.usage.prompt_tokens
    assert other.usage.prompt_tokens_details.cached_tokens < 10  # what comes before the sound


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/a.png"}}, "a web address"),
        ({"type": "image_url", "image_url": {"url": "/etc/hostname"}}, "needed a URL that begins"),
        ({"type": "input_audio", "input_audio": {}}, "needed data in base64 and a format"),
        ({"type": "hologram"}, "needed a part of type text (with its text), image, "),
        ({"type": "image", "path": "/etc/hostname"}, "got a file name or something unknown"),
        ({"type": "image", "base64": "aGVsbG8="}, "needed an image that Pillow reads"),
        ({"type": "file", "file": {"file_data": "data:application/pdf;base64,"}}, "file"),
    ],
)
def test_parts_that_cannot_be_served(client, part, said):
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, part)
    assert said in refused.value.response.json()["error"]["message"]
    assert ask(client).usage.completion_tokens == 2
