"""Transcriptions and translations: forms become messages, answers become text, JSON or events."""

import json

import openai
import pytest
from support.answer_events import META, TEXT, USAGE, chunks, written
from support.canned import Canned, canned

from hlwq_mlx.dialog.messages import normalize_messages
from hlwq_mlx.errors import CheckpointError, RequestError
from hlwq_mlx.server.dialects.dialect import Dialect
from hlwq_mlx.server.dialects.openai_audio import is_plain, transcriptions, translations
from hlwq_mlx.server.events import Content, Done, Failed, Thought, Waiting, join
from hlwq_mlx.server.request import ChatRequest

SOUND = b"RIFF....WAVE"
DIALECTS: tuple[Dialect, ...] = (transcriptions, translations)


def heard(dialect=transcriptions, **fields):
    """Return the request of a form, and the words of its message behind the sound."""
    request = dialect.read({"file": SOUND, "model": "whisper-1", **fields})
    [message] = normalize_messages(request.messages)
    sound, words = message["content"]
    assert (message["role"], sound) == ("user", ("audio", SOUND))
    return request, words["text"]


def test_a_form_becomes_one_message():
    request, words = heard()
    assert words.startswith("Write down word for word")
    assert (request.model, request.thinking, request.is_streamed) == ("whisper-1", False, False)
    assert request.sampling == {"temp": 0.0}
    assert heard(translations)[1].startswith("Translate")


def test_every_field_acts():
    assert heard(language="de")[1].endswith("The language of the recording is de.")
    assert heard(prompt="Wien, HLWQ")[1].endswith("as in this text: Wien, HLWQ")
    assert heard(temperature="0.4")[0].sampling == {"temp": 0.4}
    assert heard(language="", prompt="", temperature="", response_format="") == heard()
    assert heard(stream="true")[0].is_streamed
    assert is_plain({"response_format": "text"})
    assert not is_plain({}) and not is_plain({"response_format": "json"})


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    ("fields", "param", "told"),
    [
        ({"file": None}, "file", "needed a value, got none"),
        ({"file": "text"}, "file", "needed a file"),
        ({"response_format": "srt"}, "response_format", "not when"),
        ({"response_format": "vtt"}, "response_format", "not when"),
        (
            {"response_format": "verbose_json"},
            "response_format",
            "needed nothing or 'json' or 'text'",
        ),
        ({"response_format": "diarized_json"}, "response_format", "nor by whom"),
        ({"timestamp_granularities[]": ["word"]}, None, "[timestamp_granularities[]] needed"),
        ({"timestamp_granularities": "word"}, "timestamp_granularities", "not when"),
        ({"include[]": ["logprobs"]}, None, "[include[]] needed nothing"),
        ({"chunking_strategy": "server_vad"}, "chunking_strategy", "as the model hears"),
        ({"known_speaker_names": "Ann"}, "known_speaker_names", "nor by whom"),
        ({"language": "<|turn>"}, "language", "needed text like"),
        ({"temperature": "hot"}, "temperature", "needed a number"),
        ({"temperature": "-1"}, "temperature", "needed at least 0"),
        ({"stream": "perhaps"}, "stream", "needed true or false"),
        ({"stream": "true", "response_format": "text"}, "response_format", "json for a stream"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(dialect, fields, param, told):
    with pytest.raises(RequestError) as caught:
        dialect.read({"file": SOUND, **fields})
    body = dialect.error(caught.value, 400)["error"]
    assert (body["param"], body["type"]) == (param, "invalid_request_error")
    assert told in body["message"]


def test_a_whole_answer():
    events = [Thought("hm"), Content(" Hi "), Content("there\n"), Done("stop", USAGE)]
    told = transcriptions.whole(ChatRequest(), [join(events)], META)
    assert told["text"] == "Hi there"
    assert told["usage"] == {
        "type": "tokens",
        "input_tokens": 9,
        "output_tokens": 5,
        "total_tokens": 14,
    }


def test_a_stream_has_its_parts_in_order():
    data = written(transcriptions, ChatRequest(), [Waiting(), *TEXT])
    assert data.startswith(b": keep-alive\n\n")
    events, is_done = chunks(data)
    assert [(each["type"], each.get("delta"), each.get("text")) for each in events] == [
        ("transcript.text.delta", "Hé", None),
        ("transcript.text.delta", "llo", None),
        ("transcript.text.done", None, "Héllo"),
    ]
    assert events[-1]["usage"]["total_tokens"] == 14 and not is_done


def test_the_client_reads_the_stream_and_its_error():
    data = written(transcriptions, ChatRequest(), TEXT)
    failed = written(transcriptions, ChatRequest(), [Failed(CheckpointError("[x] needed y."))])
    for body in (data, failed):
        with (
            canned(Canned(body, "text/event-stream")) as url,
            openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
        ):
            stream = client.audio.transcriptions.create(
                file=("a.wav", SOUND), model="gemma", stream=True
            )
            if body is data:
                assert [event.type for event in stream][-1] == "transcript.text.done"
            else:
                with pytest.raises(openai.APIError, match="needed y"):
                    list(stream)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # its translations are being retired
def test_the_client_reads_whole_answers():
    told = transcriptions.whole(ChatRequest(), [join(TEXT)], META)
    with (
        canned(Canned(json.dumps(told).encode())) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        heard = client.audio.transcriptions.create(file=("a.wav", SOUND), model="gemma")
        english = client.audio.translations.create(file=("a.wav", SOUND), model="gemma")
    assert heard.text == english.text == "Héllo"
    assert heard.usage.total_tokens == 14
