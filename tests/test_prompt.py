"""From files to input embeddings, on a tiny model that sees and hears."""

import base64
import logging

import mlx.core as mx
import numpy as np
import pytest
import tiny_media

from hlwq_mlx import library
from hlwq_mlx.dialog import template
from hlwq_mlx.dialog.parts import Medium
from hlwq_mlx.engine.feature_cache import FeatureCache
from hlwq_mlx.errors import RequestError, SourceError
from hlwq_mlx.folder import loading
from hlwq_mlx.media.images import image_patches, read_image
from hlwq_mlx.media.origin import Access
from hlwq_mlx.media.processor import Processor
from hlwq_mlx.media.sound import mel_frames, read_sound
from hlwq_mlx.media.video import clip_patches, read_video
from hlwq_mlx.prompt import PREPARERS, embedding_steps, prepare, prepare_media, read_prompt


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_media.write(tmp_path_factory.mktemp("seeing") / "model")


@pytest.fixture(scope="module")
def settings(folder):
    return Processor.from_folder(folder)


@pytest.fixture(scope="module")
def loaded(folder):
    return library.load(folder)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return tiny_media.write_media(tmp_path_factory.mktemp("media"))


def user(*parts):
    return [{"role": "user", "content": list(parts)}]


def read(loaded, *parts, **options):
    model, tokenizer = loaded
    return prepare(model, tokenizer, template.render(tokenizer, user(*parts)), **options)[:2]


def image(path):
    return {"type": "image", "path": str(path)}


def picture_run(count):
    begin, soft, end = tiny_media.IMAGE
    return [begin, *[soft] * count, end]


def test_every_kind_of_medium_gets_its_features(loaded, settings, files):
    """The whole path against its parts, which have tests of their own."""
    model, tokenizer = loaded
    seen = image_patches(read_image(files["a.png"]), settings.image)
    heard = mel_frames(read_sound(files["a.mp3"], settings.sound), settings.sound)
    clip = read_video(files["a.mp4"], settings.video)
    frames = clip_patches(clip, settings.video)
    ids, embeddings = read(
        loaded,
        image(files["a.png"]),
        {"type": "audio", "audio": files["a.mp3"].read_bytes()},
        "and",
        {"type": "video", "url": str(files["a.mp4"])},
    )
    begin, soft, end = tiny_media.VIDEO
    text = "<bos><|turn>user\n", "and00:00 ", " 00:01 ", " 00:02 ", "<turn|>\n<|turn>model\n"
    opening, first, second, third, closing = (
        tokenizer.encode(each, add_special_tokens=False) for each in text
    )
    assert clip.timestamps == (0.0, 1.0, 2.5)
    shown = [begin, *[soft] * frames[0].soft_tokens, end]
    assert ids == [
        *opening,
        *picture_run(seen.soft_tokens),
        *(tiny_media.AUDIO[0], *[tiny_media.AUDIO[1]] * -(-len(heard) // 4), tiny_media.AUDIO[2]),
        *(*first, *shown, *second, *shown, *third, *shown),
        *closing,
    ]
    wanted = model.embed_media(
        mx.array([ids]),
        [model.image_features(mx.array(seen.patches), mx.array(seen.positions))],
        [model.audio_features(mx.array(heard))],
        [model.image_features(mx.array(f.patches), mx.array(f.positions)) for f in frames],
    )
    assert np.array_equal(np.array(embeddings), np.array(wanted))
    at = ids.index(soft)
    assert mx.abs(embeddings[0, at] - model.embed(mx.array([[0]]))[0, 0]).max() > 0.1


def test_pictures_keep_their_order(loaded, files):
    ids, embeddings = read(loaded, image(files["a.png"]), image(files["b.jpg"]))
    swapped_ids, swapped = read(loaded, image(files["b.jpg"]), image(files["a.png"]))
    begin, soft, _ = tiny_media.IMAGE
    first, second = (at for at, token in enumerate(ids) if token == begin)
    counts = [ids[first:second].count(soft), ids[second:].count(soft)]
    assert counts == [4, 5]  # 64 x 48 and 32 x 160 pixels within a budget of 6
    assert swapped_ids.index(begin) == first
    moved = swapped[:, first + counts[1] + 3 :][:, : counts[0]]
    assert np.array_equal(np.array(moved), np.array(embeddings[:, first + 1 :][:, : counts[0]]))


def test_an_image_may_take_more_tokens(loaded, files):
    _, soft, _ = tiny_media.IMAGE
    ids, _ = read(loaded, image(files["a.png"]), image_tokens=70)
    assert tiny_media.BUDGET < ids.count(soft) <= 70
    with pytest.raises(RequestError, match=r"needed one of 70, 140, 280, 560, 1120, got 71\."):
        read(loaded, image(files["a.png"]), image_tokens=71)


def test_a_long_sound_is_heard_in_pieces(loaded, caplog):
    begin, soft, _ = tiny_media.AUDIO
    ids, _ = read(loaded, {"type": "audio", "audio": tiny_media.sound(seconds=1.0)})
    assert ids.count(begin) == 2
    assert ids.count(soft) >= 24
    assert "cut into 2 clips" in caplog.text


def test_media_in_every_form_give_the_same_ids(loaded, settings, files):
    data = base64.b64encode(files["a.png"].read_bytes()).decode()
    wave = base64.b64encode(files["a.wav"].read_bytes()).decode()
    spelled = [
        [image(files["a.png"]), {"type": "audio", "path": files["a.wav"]}],
        [
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
            {"type": "input_audio", "input_audio": {"data": wave, "format": "wav"}},
        ],
        [
            {"type": "image", "image": read_image(files["a.png"])},
            {"type": "audio", "audio": read_sound(files["a.wav"], settings.sound)},
        ],
    ]
    (ids, wanted), *others = (read(loaded, *parts) for parts in spelled)
    for other_ids, embeddings in others:
        assert other_ids == ids
        assert np.array_equal(np.array(embeddings), np.array(wanted))


def test_media_stop_being_read_where_the_context_ends(settings, monkeypatch):
    media = [Medium("image", tiny_media.picture())] * 4  # of 4 soft tokens
    assert len(prepare_media(media, settings, Access(), context=16)) == 4
    seen, viewed = [], PREPARERS["image"]
    monkeypatch.setitem(PREPARERS, "image", lambda *given: seen.append(given) or viewed(*given))
    with pytest.raises(RequestError, match=r"at most 7 soft tokens, .* got 8 or more\."):
        prepare_media(media, settings, Access(), context=7)
    assert len(seen) == 2


def test_a_video_may_be_frames(loaded):
    frames = np.stack([tiny_media.picture(seed=seed) for seed in range(2)])
    ids, _ = read(loaded, {"type": "video", "video": frames})
    assert ids.count(tiny_media.VIDEO[0]) == 2


def test_progress_counts_pictures_frames_and_sounds(loaded, files):
    seen = []
    parts = image(files["a.png"]), {"type": "video", "path": files["a.mp4"]}
    read(loaded, *parts, on_media=lambda done, total: seen.append((done, total)))
    assert seen == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_server_encodes_a_medium_once_and_knows_it_by_its_bytes(loaded, settings, files):
    model, tokenizer = loaded
    features = FeatureCache()

    def steps(*names):
        """Return how many pictures were encoded for a prompt, and its embeddings."""
        rendered = template.render(tokenizer, user(*(image(files[name]) for name in names)))
        asked = read_prompt(model.args, settings, tokenizer, rendered, Access())
        *encoded, prepared = embedding_steps(model, asked, features)
        assert encoded == [None] * len(encoded)
        return len(encoded), np.array(prepared.embeddings)

    first, alone = steps("a.png")
    again, same = steps("a.png")
    assert (first, again) == (1, 0)
    assert np.array_equal(alone, same)
    assert steps("a.png", "b.jpg")[0] == 1
    features.clear()
    assert steps("a.png", "b.jpg")[0] == 2


def test_features_that_were_used_least_recently_go_first():
    features = FeatureCache(max_bytes=8)
    for mark in (-1, -2):
        features.put(mark, (mx.zeros(1),))
    assert features.get(-1) is not None
    features.put(-3, (mx.zeros(1),))
    assert [features.get(mark) is not None for mark in (-1, -2, -3)] == [True, False, True]
    assert features.nbytes == 8


def test_towers_load_when_a_prompt_needs_them(folder, files, monkeypatch):
    loaded, load = [], loading.load_tower
    monkeypatch.setattr(
        loading, "load_tower", lambda *given: (loaded.append(given[-1]), load(*given))[1]
    )
    model, tokenizer = library.load(folder)
    sound = {"type": "audio", "path": files["a.wav"]}
    for content, wanted in (
        ("Hi", []),
        ([sound], ["audio"]),
        ([image(files["a.png"]), sound], ["audio", "vision"]),
    ):
        library.generate(model, tokenizer, [{"role": "user", "content": content}], max_tokens=1)
        assert loaded == wanted


@pytest.mark.parametrize("prefill_step", [3, 512])
def test_an_answer_is_that_of_the_whole_prompt(loaded, files, prefill_step):
    model, tokenizer = loaded
    parts = image(files["a.png"]), {"type": "audio", "path": files["a.wav"]}, "Well?"
    ids, embeddings = read(loaded, *parts)
    first = next(library.stream_generate(model, tokenizer, user(*parts), prefill_step=prefill_step))
    logits = model(mx.array([ids]), input_embeddings=embeddings)[0, -1]
    wanted = np.array(logits - mx.logsumexp(logits))
    assert first.prompt_tokens == len(ids)
    assert np.abs(np.array(first.logprobs) - wanted).max() < 1e-4
    assert first.token == wanted.argmax()


@pytest.mark.parametrize(
    ("part", "error", "said"),
    [
        ({"type": "image", "path": "nowhere.png"}, SourceError, "nowhere.png"),
        ({"type": "image", "image": b"no picture"}, RequestError, "needed an image that Pillow"),
        ({"type": "audio", "audio": b"no sound"}, RequestError, "needed a sound that FFmpeg reads"),
        ({"type": "video", "video": b"no video"}, RequestError, "needed a video that FFmpeg reads"),
        ({"type": "image", "url": "http://127.0.0.1:9/a.png"}, RequestError, "a web address"),
    ],
)
def test_media_that_cannot_be_read(loaded, part, error, said):
    with pytest.raises(error) as raised:
        read(loaded, part)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_web_is_asked_when_it_may_be(loaded):
    with pytest.raises(SourceError, match="needed a download, got"):
        read(loaded, {"type": "image", "url": "http://127.0.0.1:9/a.png"}, http=True)


@pytest.mark.parametrize(("kind", "tower"), [("image", "vision"), ("audio", "audio")])
def test_a_model_without_towers_says_so(tmp_path, files, kind, tower):
    blind = library.load(tiny_media.write(tmp_path / "model", towers=False))
    with pytest.raises(RequestError, match=rf"this checkpoint has no {tower} tower\."):
        read(blind, {"type": kind, "path": files["a.png"]})


def test_a_folder_without_a_processor_file(tmp_path, files, caplog):
    plain = library.load(tiny_media.write(tmp_path / "model", has_processor=False))
    ids, _ = read(plain, image(files["a.png"]), image_tokens=70)
    assert 6 < ids.count(tiny_media.IMAGE[1]) <= 70
    notes = [each.message for each in caplog.records if each.levelno == logging.WARNING]
    assert len(notes) == 1 and "using Gemma 4's documented constants" in notes[0]


def test_text_that_names_more_than_there_is(loaded, files):
    model, tokenizer = loaded
    with pytest.raises(RequestError, match=r"needed one image for each <\|image\|>, got 0 for 1\."):
        library.generate(model, tokenizer, "What is <|image|>?")
    said = [{"role": "user", "content": "What is <|image|>?"}]
    assert tiny_media.IMAGE[1] not in library.prompt_ids(tokenizer, said)
