"""A conversation's messages through answers, calls, results and interruptions."""

import pytest
import tiny_tokenizer

from hlwq_mlx.dialog.conversation import Conversation
from hlwq_mlx.dialog.grammar import BrokenCall, Content, Thought, ToolCall
from hlwq_mlx.dialog.tokenizer import load_tokenizer
from hlwq_mlx.errors import RequestError

Q = '<|"|>'
CALLS = f"<|tool_call>call:f{{a:{Q}x{Q}}}<tool_call|><|tool_call>call:g{{}}<tool_call|>"
TOOLS = [{"name": "f"}, {"name": "g"}]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(tiny_tokenizer.write(tmp_path_factory.mktemp("tokenizer")))


def started(answer="", **settings):
    conversation = Conversation(**settings)
    conversation.add_user("Hi")
    if answer:
        list(conversation.take(answer))
    return conversation


def test_an_answer_comes_as_events_and_becomes_a_message():
    conversation = started()
    pieces = ["<|channel>thought\nHm", "\n<channel|>Hel", "lo<turn|>"]
    events = list(conversation.take(pieces))
    assert events == [Thought("Hm"), Content("Hel"), Content("lo")]
    assert conversation.messages == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello", "reasoning_content": "Hm"},
    ]


def test_what_looked_like_a_marker_is_kept_when_the_answer_ends():
    conversation = started()
    assert list(conversation.take(["a <|chan"])) == [Content("a "), Content("<|chan")]
    assert conversation.messages[-1]["content"] == "a <|chan"


def test_an_answer_to_a_prompt_that_opens_a_thought():
    conversation = started()
    prompt = "<|turn>model\n<|channel>thought\n"
    assert list(conversation.take(["Hm\n<channel|>A"], prompt=prompt)) == [
        Thought("Hm"),
        Content("A"),
    ]


def test_calls_wait_for_their_results(tokenizer):
    conversation = started(CALLS, tools=TOOLS)
    assert conversation.pending == (ToolCall("f", {"a": "x"}), ToolCall("g", {}))
    with pytest.raises(RequestError, match=r"\[conversation\] needed the result of every call fir"):
        conversation.prompt(tokenizer)
    with pytest.raises(RequestError, match=r"got none for f, g\. Add them"):
        conversation.add_user("?")
    conversation.add_result({"n": 1})
    conversation.add_result("two")
    assert conversation.pending == ()
    assert conversation.messages[2:] == [
        {"role": "tool", "tool_call_id": "call_1_0", "name": "f", "content": {"n": 1}},
        {"role": "tool", "tool_call_id": "call_1_1", "name": "g", "content": "two"},
    ]
    assert conversation.prompt(tokenizer).text.endswith(
        f"<|turn>model\n{CALLS}<|tool_response>response:f{{n:1}}<tool_response|>"
        f"<|tool_response>response:g{{value:{Q}two{Q}}}<tool_response|>"
    )
    list(conversation.take(["Done."]))
    conversation.add_user("Thanks")
    assert conversation.prompt(tokenizer).text.endswith(
        "Done.<turn|>\n<|turn>user\nThanks<turn|>\n<|turn>model\n"
    )


def test_calls_of_later_answers_have_other_ids():
    conversation = started("<|tool_call>call:f{}<tool_call|>")
    conversation.add_result("1")
    list(conversation.take(["<|tool_call>call:f{}<tool_call|>"]))
    conversation.add_result("2")
    ids = [each["tool_call_id"] for each in conversation.messages if each["role"] == "tool"]
    assert len(set(ids)) == 2


def test_a_result_without_a_call_is_refused():
    with pytest.raises(RequestError, match=r"\[conversation\] needed a tool call that waits"):
        started("Hello").add_result("1")


def test_a_broken_call_stays_in_the_message_as_text():
    conversation = started()
    (event,) = conversation.take(["<|tool_call>call:f{a<tool_call|>"])
    assert isinstance(event, BrokenCall)
    assert conversation.messages[-1] == {"role": "assistant", "content": "call:f{a"}
    assert conversation.pending == ()


def test_an_answer_that_is_closed_is_kept_without_its_calls():
    conversation = started()
    events = conversation.take(["A", CALLS, "B"])
    assert [next(events), next(events)] == [Content("A"), ToolCall("f", {"a": "x"})]
    events.close()
    assert conversation.messages[-1] == {"role": "assistant", "content": "A"}
    assert conversation.pending == ()


def test_an_answer_that_dies_is_kept_as_far_as_it_came():
    def pieces():
        yield "A"
        raise KeyboardInterrupt

    conversation = started()
    with pytest.raises(KeyboardInterrupt):
        list(conversation.take(pieces()))
    assert conversation.messages[-1] == {"role": "assistant", "content": "A"}


def test_an_answer_that_never_came_leaves_no_message():
    def pieces():
        yield "<|chan"
        raise KeyboardInterrupt

    conversation = started()
    with pytest.raises(KeyboardInterrupt):
        list(conversation.take(pieces()))
    assert [each["role"] for each in conversation.messages] == ["user"]


def test_settings_shape_the_prompt(tokenizer):
    conversation = started(system="Be brief.", tools=TOOLS, thinking=True)
    prompt = conversation.prompt(tokenizer).text
    assert prompt.startswith("<bos><|turn>system\n<|think|>\nBe brief.<|tool>declaration:f{")
    conversation.system, conversation.thinking = "", False
    assert "<|think|>" not in conversation.prompt(tokenizer).text
    assert "Be brief." not in conversation.prompt(tokenizer).text


def test_tools_are_checked_at_once():
    with pytest.raises(RequestError, match=r"\[tools\[0\]\]"):
        Conversation(tools=["f"])


def test_undo_takes_back_the_last_question():
    conversation = started("Hello")
    conversation.add_user("Call!")
    list(conversation.take([CALLS]))
    conversation.undo()
    assert [each["content"] for each in conversation.messages] == ["Hi", "Hello"]
    conversation.undo()
    conversation.undo()
    assert conversation.messages == []


def test_reset_keeps_the_settings():
    conversation = started(CALLS, system="Be brief.")
    conversation.reset()
    assert conversation.messages == [{"role": "system", "content": "Be brief."}]
    assert conversation.pending == ()
