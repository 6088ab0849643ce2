"""Pictures, sounds and videos sent to `python -m hlwq_mlx.serve` by the openai client."""

import base64
from types import SimpleNamespace

import openai
import pytest
import tiny_media
from media_files import sound_file
from served import served

from hlwq_mlx import library
from hlwq_mlx.dialog import template
from hlwq_mlx.dialog.placeholders import clip_span, picture_span
from hlwq_mlx.errors import RequestError
from hlwq_mlx.gemma4.config import Gemma4Config
from hlwq_mlx.media.origin import Access
from hlwq_mlx.mlxlm.server_media import inliner, media_url, vision_maker
from hlwq_mlx.prompt import PreparedMedium, prepare


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_media.converted(tmp_path_factory.mktemp("seeing") / "model")


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
    ],
)
def test_parts_that_cannot_be_served(client, part, said):
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, part)
    assert said in refused.value.response.json()["error"]


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"type": "image", "path": "/etc/hostname"}, "got a file name or something unknown"),
        ({"type": "image", "base64": "aGVsbG8="}, "needed an image that Pillow reads"),
    ],
)
def test_media_that_cannot_be_read(client, part, said):
    """mlx-lm's server answers what fails this late with 404."""
    with pytest.raises(openai.NotFoundError) as refused:
        ask(client, part)
    assert said in refused.value.response.json()["error"]
    assert ask(client).usage.completion_tokens == 2


def test_a_part_says_where_its_medium_comes_from():
    url = media_url({"type": "video", "url": "data:,x"})
    assert (url, url.kind) == ("data:,x", "video")
    assert media_url({"type": "text", "text": "Hi"}) is None


def test_a_model_that_cannot_hear_refuses_sounds_at_once():
    args = Gemma4Config.from_dict(tiny_media.config() | {"audio_config": None})
    inline = inliner(args, Access(files=False))
    heard = {"type": "input_audio", "input_audio": {"data": "UklG"}}
    with pytest.raises(RequestError, match=r"this checkpoint has no audio tower\."):
        inline([{"role": "user", "content": [heard]}])
    inline([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": None}])


def made(prompt, urls, *spans):
    views = [PreparedMedium(span, ()) for span in spans]
    make = vision_maker(SimpleNamespace, soft_token_ids=(61, 66))
    return make(prompt, urls=urls, pixel_values=views, token_id=61)


def test_places_of_media_are_marked_by_what_they_hold():
    spans = picture_span(2), clip_span(["00:00", "00:01"], [1, 2])
    found = made([2, 60, 61, 61, 62, 9, 66, 8, 66, 66, 62], ["a", "b"], *spans)
    picture_mark, clip_mark = found.cache_key[2], found.cache_key[6]
    assert found.starts == [2, 6]
    assert found.cache_key == [
        *(2, 60, picture_mark, picture_mark, 62),
        *(9, clip_mark, 8, clip_mark, clip_mark, 62),
    ]
    assert len({picture_mark, clip_mark}) == 2 and max(picture_mark, clip_mark) < 0


def test_a_tokenizer_that_does_not_know_a_marker():
    with pytest.raises(RequestError, match=r"needed media in the tokens \[61, 66\], got them as"):
        made([2, 7, 8], ["a"], picture_span(2))
