import json
from types import SimpleNamespace

import demo
import jsonschema
import mlx.core as mx
import numpy as np
import pytest

from hlwq_mlx.dialog.constraints import Form, compile_grammar, write_grammar
from hlwq_mlx.dialog.grammar import parse_answer
from hlwq_mlx.dialog.vocabulary import make_tables
from hlwq_mlx.engine.masks import GuideMask
from hlwq_mlx.engine.sampling import Sampling

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "ok": {"type": "boolean"},
    },
    "required": ["name", "age", "ok"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "save", "parameters": SCHEMA}}


@pytest.mark.parametrize("known", [2, 3, 5])
def test_vocabularies_of_other_sizes(known):
    guide = SimpleNamespace(allowed=lambda: np.array([True, False, True, True, True])[:known])
    masked = GuideMask(guide).mask(mx.array([[1.0, 2.0, 3.0]]))
    assert masked.tolist() == [[1.0, -mx.inf, 3.0 if known > 2 else -mx.inf]]
    assert masked.dtype == mx.float32


def answer(form, temp):
    """Return what the demo answers within a form."""
    model, tokenizer = demo.load()
    row = GuideMask(compile_grammar(write_grammar(form), make_tables(tokenizer))())
    vocab_size = model.args.text_config.vocab_size
    choose = Sampling(temp=temp).choose(vocab_size, masked=model.args.media_token_ids)
    prompt = tokenizer.encode("<bos><|turn>user\nWhat is in the sky?<turn|>\n<|turn>model\n")
    caches, ids, answered = model.make_cache(), prompt, []
    while len(answered) < 200:
        scores = model(mx.array([ids]), caches)[:, -1]
        token = choose(row.mask(scores - mx.logsumexp(scores, axis=-1, keepdims=True))).item()
        if token in tokenizer.eos_token_ids:
            return parse_answer(tokenizer.decode(answered))
        row.accept(token)
        answered, ids = [*answered, token], [token]
    raise AssertionError(tokenizer.decode(answered))


@pytest.mark.parametrize("temp", [0.0, 1.0])
def test_the_demo_answers_in_the_form_that_is_asked(temp):
    jsonschema.validate(json.loads(answer(Form(schema=SCHEMA), temp).content), SCHEMA)
    called = answer(Form(tools=[TOOL], must_call=True, parallel=False), temp)
    assert not called.content
    [call] = called.calls
    assert call.name == "save"
    jsonschema.validate(call.arguments, SCHEMA)
