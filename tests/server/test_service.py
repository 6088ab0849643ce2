"""Between the engine's updates and a dialect's events: order, signs of life, what is cancelled."""

import asyncio

import demo
import pytest

from hlwq_mlx.engine.feature_cache import FeatureCache
from hlwq_mlx.engine.sampling import Sampling
from hlwq_mlx.engine.task import Admitted, Failed, Finished, Token
from hlwq_mlx.errors import BusyError, DeviceError, HLWQError
from hlwq_mlx.folder import side_files
from hlwq_mlx.folder.folder import Folder
from hlwq_mlx.prompt import ReadPrompt
from hlwq_mlx.server import events, mailbox, service
from hlwq_mlx.server.metrics import Metrics
from hlwq_mlx.server.prompts import Ready
from hlwq_mlx.server.request import ChatRequest


class Ticket:
    load_s = 0.0
    is_cancelled = False
    is_whole = False

    def cancel(self):
        self.is_cancelled = True

    def finish(self):
        self.is_whole = True


class Engine:
    """Answers each task with the updates it was given; `takes` is how many it accepts.

    They come at once, or with a gap between them.
    """

    def __init__(self, updates, takes=8, gap_s=None):
        self.updates = updates
        self.takes = takes
        self.gap_s = gap_s
        self.tickets = []
        self.tasks = []

    def submit(self, task, deliver, keep_alive_s=None):
        if len(self.tickets) == self.takes:
            raise BusyError("[server] needed room, got none. Ask again.", 3)
        self.tickets.append(Ticket())
        self.tasks.append(task)
        for number, update in enumerate(self.updates):
            if self.gap_s is None:
                deliver(update)
            else:
                asyncio.get_running_loop().call_later(number * self.gap_s, deliver, update)
        return self.tickets[-1]


@pytest.fixture(scope="module")
def tokenizer():
    return side_files.open_tokenizer(Folder.open(demo.folder()))


def asked(tokenizer, engine, **options):
    made = service.Service(engine, tokenizer, Sampling(), Metrics(), FeatureCache(), 1024)
    ready = Ready(ReadPrompt([2, 5], [2, 5]), 9, False, False, False)
    return made.submit(ChatRequest(messages=["-"], **options), ready)


def taken(tokenizer, updates, count=100, gap_s=None, **options):
    """Return the first events of a request, and the engine."""
    engine = Engine(updates, gap_s=gap_s)

    async def read():
        found = []
        stream = asked(tokenizer, engine, **options).events()
        async for each in stream:
            found.append(each)
            if len(found) == count:
                await stream.aclose()
                break
        return found

    return asyncio.run(read()), engine


def tokens(tokenizer, text):
    return [Token(id, -0.5) for id in tokenizer.encode(text, add_special_tokens=False)]


def test_updates_become_events(tokenizer):
    end = tokenizer.eos_token_id
    updates = [Admitted(1), *tokens(tokenizer, "Hello!"), Token(end, 0.0), Finished("stop")]
    found, engine = taken(tokenizer, updates)
    begun, *contents, done = [event for _, event in found]
    assert begun == events.Begun(2, 1)
    assert "".join(content.text for content in contents) == "Hello!"
    assert (done.reason, done.usage.cached, done.usage.prompt) == ("stop", 1, 2)
    assert done.usage.completion == len(updates) - 2
    assert engine.tasks[0].max_tokens == 9


def test_a_stop_string_ends_the_engines_work_too(tokenizer):
    updates = [Admitted(0), *tokens(tokenizer, "one two three")]
    found, engine = taken(tokenizer, updates, stop=["two"])
    assert found[-1][1].stop == "two"
    assert (engine.tickets[0].is_whole, engine.tickets[0].is_cancelled) == (True, False)


def test_a_client_sees_signs_of_life_from_the_first_second(tokenizer, monkeypatch):
    assert service.FIRST_WAIT_S <= 1
    assert service.WAIT_S <= 10  # 15 seconds of silence end some clients' patience
    monkeypatch.setattr(service, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(service, "WAIT_S", 0.01)
    found, engine = taken(tokenizer, [], count=3)
    assert found == [(0, events.Waiting())] * 3
    assert engine.tickets[0].is_cancelled  # since the reader left


def test_a_long_call_is_no_silence(tokenizer, monkeypatch):
    """Its tokens come one by one, but the call is told as a whole, minutes later."""
    monkeypatch.setattr(service, "FIRST_WAIT_S", 0.02)
    monkeypatch.setattr(service, "WAIT_S", 0.02)
    begun = tokens(tokenizer, "<|tool_call>call:write{text:" + "many words " * 20)
    updates = [Admitted(0), *begun, Finished("length")]
    found, _ = taken(tokenizer, updates, count=10**6, gap_s=0.004)
    assert found.count((0, events.Waiting())) >= len(begun) * 0.004 / 0.02 / 2


@pytest.mark.parametrize("kind", [events.Content, events.Thought])
def test_quick_tokens_are_told_together(tokenizer, monkeypatch, kind):
    """The first one at once, the others soon: here, at the end."""
    monkeypatch.setattr(mailbox, "PAUSE_S", 3600.0)
    marker = "<|channel>thought\n" if kind is events.Thought else ""
    words = tokens(tokenizer, marker + "one two three four five six seven eight nine ten. " * 2)
    updates = [Admitted(0), *words, Finished("length")]
    found, _ = taken(tokenizer, updates, gap_s=0.001, logprobs=1)
    told = [event for _, event in found if isinstance(event, kind)]
    assert len(told) <= 2
    text = tokenizer.decode([word.id for word in words]).removeprefix(marker)
    assert "".join(each.text for each in told) == text
    if kind is events.Content:
        scores = [score for each in told for score in each.scores]
        assert b"".join(score.token for score in scores).decode() == text


def test_a_reader_that_may_end_the_answer_waits_for_nothing(tokenizer, monkeypatch):
    monkeypatch.setattr(mailbox, "PAUSE_S", 3600.0)
    updates = [Admitted(0), *tokens(tokenizer, "one two three")]  # no end: it would wait an hour
    found, engine = taken(tokenizer, updates, gap_s=0.001, stop=["two"])
    assert (found[-1][1].stop, engine.tickets[0].is_whole) == ("two", True)


def test_calls_at_once_do_not_multiply_those_that_can_wait():
    async def count():
        loop = asyncio.get_running_loop()
        box = mailbox.Mailbox(mailbox.Bell(loop))
        begun, gets, urgent = loop.time(), 0, 0

        async def fill():
            nonlocal urgent
            for number in range(150):
                is_urgent = number % 40 == 20  # amid a pause
                urgent += is_urgent
                box.put(number, at_once=is_urgent)
                await asyncio.sleep(0.004)

        filling = asyncio.ensure_future(fill())
        while not filling.done():
            gets += bool(await box.get(loop.time() + 0.2))
        return gets, (loop.time() - begun) / mailbox.PAUSE_S, urgent

    gets, pauses, urgent = asyncio.run(count())
    assert gets <= pauses + urgent + 1


@pytest.mark.parametrize("whole", [True, False])
def test_an_answer_that_cannot_be_read_ends_alone(tokenizer, monkeypatch, whole):
    def fail(reader, token, score):
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr("hlwq_mlx.server.answers.ChatReader.add", fail)
    updates = [Admitted(0), *tokens(tokenizer, "Hi"), Finished("stop")]
    if whole:
        with pytest.raises(HLWQError, match="a defect"):
            asyncio.run(wholes(tokenizer, updates))
        return
    found, engine = taken(tokenizer, updates)
    assert [type(event) for _, event in found] == [events.Begun, events.Failed]
    assert (found[-1][1].status, engine.tickets[0].is_cancelled) == (500, True)


def test_a_failure_is_told_and_ends(tokenizer):
    problem = DeviceError("[memory] needed more, got none. Ask for less.")
    found, _ = taken(tokenizer, [Admitted(0), Failed(problem)])
    assert found[-1] == (0, events.Failed(problem, 503))


def test_several_answers_have_numbers_and_seeds_of_their_own(tokenizer):
    updates = [Admitted(0), *tokens(tokenizer, "Hi"), Finished("length")]
    assert {number for number, _ in taken(tokenizer, updates)[0]} == {0}
    answers = asyncio.run(wholes(tokenizer, updates))
    assert [answer.content for answer in answers] == ["Hi"] * 3
    assert {answer.done.reason for answer in answers} == {"length"}


async def wholes(tokenizer, updates):
    engine = Engine(updates)
    answers = await asked(tokenizer, engine, count=3, seed=7).wholes()
    assert [task.decoding.seed for task in engine.tasks] == [7, 8, 9]
    return answers


def test_if_one_of_several_is_refused_the_others_are_cancelled(tokenizer):
    engine = Engine([], takes=2)

    async def ask():
        with pytest.raises(BusyError):
            asked(tokenizer, engine, count=3)

    asyncio.run(ask())
    assert [ticket.is_cancelled for ticket in engine.tickets] == [True, True]
