"""From a request to the engine's ids: what is begun goes on, what is raw stays, what cannot fit."""

import demo
import pytest

from hlwq_mlx.dialog import template
from hlwq_mlx.errors import ContextError, RequestError
from hlwq_mlx.folder import side_files
from hlwq_mlx.folder.folder import Folder
from hlwq_mlx.media.origin import Access
from hlwq_mlx.media.processor import Processor
from hlwq_mlx.server import prompts
from hlwq_mlx.server.prompts import PromptMaker
from hlwq_mlx.server.request import Calls, ChatRequest, ToolChoice

CONTEXT = 1000
QUESTION = [{"role": "user", "content": "What is 2+2?"}]
TOOLS = [{"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}]


@pytest.fixture(scope="module")
def maker():
    folder = Folder.open(demo.folder())
    tokenizer = side_files.open_tokenizer(folder)
    access = Access(files=False)
    return PromptMaker(folder.args, tokenizer, Processor(), access, CONTEXT)


def make(maker, messages=(), **options):
    return maker.make(ChatRequest(messages=messages, **options))


def text(maker, ready):
    return maker.tokenizer.decode(ready.read.ids)


def test_a_prompt_is_what_the_template_renders(maker):
    ready = make(maker, QUESTION)
    rendered = template.render(maker.tokenizer, QUESTION)
    assert ready.read.ids == template.encode(maker.tokenizer, rendered)
    assert ready.max_tokens == CONTEXT - len(ready.read.ids)
    assert not ready.in_thought and not ready.is_raw


def test_a_begun_answer_goes_on(maker):
    begun = {"role": "assistant", "content": "The answer <turn|> is"}
    ready = make(maker, [*QUESTION, begun])
    assert text(maker, ready).endswith("<|turn>model\nThe answer <turn|> is")
    ends = maker.tokenizer.convert_tokens_to_ids("<turn|>")
    assert ready.read.ids.count(ends) == make(maker, QUESTION).read.ids.count(ends)


def test_an_assistant_message_with_calls_is_not_begun(maker):
    call = {"function": {"name": "now", "arguments": "{}"}}
    asked = {"role": "assistant", "content": "", "tool_calls": [call]}
    result = {"role": "tool", "content": "12:00"}
    assert "12:00" in text(maker, make(maker, [*QUESTION, asked, result], tools=TOOLS))


def test_a_raw_prompt_is_its_authors(maker):
    spelled = "<|turn>user\nHi<turn|>\n<|turn>model\n"
    ready = make(maker, raw=spelled)
    assert ready.is_raw
    assert text(maker, ready) == f"<bos>{spelled}"
    assert make(maker, raw=ready.read.ids).read.ids == ready.read.ids
    with pytest.raises(RequestError, match="token ids"):
        make(maker, raw=[0, 10**9])


def test_tools_that_may_not_be_called_are_not_offered(maker):
    offered = make(maker, QUESTION, tools=TOOLS)
    silent = make(maker, QUESTION, tools=TOOLS, tool_choice=ToolChoice(Calls.NONE))
    assert "now" in text(maker, offered)
    assert silent.read.ids == make(maker, QUESTION).read.ids


def test_the_end_of_the_instructions_is_worth_keeping(maker):
    system = {"role": "system", "content": "Be brief."}
    ready = make(maker, [system, *QUESTION])
    first = ready.read.ids[: ready.instructions]
    assert maker.tokenizer.decode(first).endswith("Be brief.<turn|>")
    assert make(maker, QUESTION).instructions == 0
    assert make(maker, QUESTION, tools=TOOLS).instructions > 10


def test_what_cannot_fit_is_refused_with_both_numbers(maker):
    long = [{"role": "user", "content": "a 1 " * 400}]
    with pytest.raises(ContextError, match=rf"fewer than {CONTEXT} tokens.* got 1\d\d\d\."):
        make(maker, long)
    assert maker.count(ChatRequest(messages=long)) > CONTEXT
    assert make(maker, QUESTION, max_tokens=10**6).max_tokens < CONTEXT
    assert make(maker, QUESTION, max_tokens=7).max_tokens == 7


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": "x" * 10**8}],
        [{"role": "assistant", "content": "hm"}] * (CONTEXT + 2),
        [{"role": role, "content": "hm"} for role in ("user", "assistant") * (CONTEXT // 4)],
    ],
    ids=["letters", "messages", "turns"],
)
def test_what_is_far_too_long_costs_no_work(maker, messages, monkeypatch):
    """Rendering and tokenizing it would take minutes."""
    make(maker, QUESTION)
    monkeypatch.delattr(template, "render")
    with pytest.raises(ContextError):
        make(maker, messages)


def test_the_least_that_a_turn_takes_is_no_more_than_it_takes(maker):
    empty = [{"role": "user", "content": ""}] * 20
    assert len(make(maker, empty).read.ids) >= 20 * prompts.TURN_TOKENS
