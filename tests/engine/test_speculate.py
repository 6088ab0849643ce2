"""Drafts change how many passes an answer takes and nothing else, bit for bit."""

import random
from itertools import product
from types import SimpleNamespace

import demo
import mlx.core as mx
import numpy as np
import pytest
import tiny
from mlx import nn
from mlx.utils import tree_flatten
from oracle import model as oracle_model
from test_answer import IMAGE, SHOWN, features_for
from test_worker import Bench, Broken, Even, alone, make_tasks

from hlwq_mlx import library
from hlwq_mlx.engine import speculate
from hlwq_mlx.engine.answer import generate_tokens, make_chooser, prefill
from hlwq_mlx.engine.decoding import Decoding
from hlwq_mlx.engine.draft import Course
from hlwq_mlx.engine.lookup import Lookup
from hlwq_mlx.engine.prefix_cache import PrefixCache
from hlwq_mlx.engine.request import Prepared, Request
from hlwq_mlx.engine.sampling import Sampling
from hlwq_mlx.engine.speculate import DraftingStep, make_step, row_cost
from hlwq_mlx.engine.step import PlainStep, Row, start_row
from hlwq_mlx.engine.task import Failed, Task, Token
from hlwq_mlx.errors import RequestError
from hlwq_mlx.gemma4.caches import WHOLE, Caching, FullCache
from hlwq_mlx.quant.backends import choose
from hlwq_mlx.quant.layers import usual_bits
from hlwq_mlx.source.rules import class_rule
from scripts.benchmarks.launches import coded_model

PROMPT = [2, *np.random.default_rng(3).integers(7, 320, 20).tolist()]
TOKENS = 28  # far past the window of 8, and past the bounds
# Of the bounds, two are less than the prompt, which leaves more in the cache than they say.
KINDS = [WHOLE, Caching(8, 32), *(Caching(max_kv_size=each) for each in (24, 16, 6))]
MEDIA = 300


@pytest.fixture(scope="module")
def model():
    settings = tiny.config() | {"image_token_id": MEDIA}
    return tiny.dense_model(settings, tiny.make_weights(settings, has_towers=False))


class Prompter:
    """Drafts a known answer, with an error at a place drawn by chance; drafting costs nothing."""

    needs_hidden = False
    cost = -1.0

    def __init__(self, answer, wrong=(-1, 5, MEDIA, 320)):
        self.answer, self.wrong, self.draw = answer, wrong, np.random.default_rng(11)

    def draft(self, seen, count):
        done = len(seen.ids) - len(PROMPT)
        drafts = self.answer[done : done + self.draw.integers(1, count + 1)]
        if self.wrong:
            at = self.draw.integers(0, 8)
            drafts[at:] = [self.draw.choice(self.wrong)] * len(drafts[at:])
        return drafts


def decode(model, step, decoding, caching=WHOLE, tokens=TOKENS, ends=()):
    """Tokens, scores and how many passes they took, and the caches at the end."""
    request = Request(Prepared(PROMPT), caching=caching)
    caches = model.make_cache(caching)
    chooser = make_chooser(model, decoding, PROMPT)
    row = Row(caches, -1, chooser, ends, tokens, course=Course(PROMPT))
    found, passes = [start_row(row, prefill(model, request, caches))], 0
    while not row.is_over:
        [outcome] = step([row])
        found += outcome
        passes += 1
    return found, passes, caches


def assert_same(found, wanted):
    assert [each.token for each in found] == [each.token for each in wanted]
    for each, other in zip(found, wanted, strict=True):
        assert np.array_equal(np.array(each.scores), np.array(other.scores))


def assert_same_caches(found, wanted):
    for each, other in zip(found, wanted, strict=True):
        assert each.offset == other.offset
        for array, same in zip(each.peek(), other.peek(), strict=True):
            array, same = (x if isinstance(x, tuple) else (x,) for x in (array, same))
            assert all(
                np.array_equal(*map(np.array, pair)) for pair in zip(array, same, strict=True)
            )


WARM = {"sampling": Sampling(temp=1.5, top_p=0.95)}
DECODINGS = {
    "greedy": Decoding,
    "sampled": lambda: Decoding(Sampling(temp=1.5, top_p=0.95, top_k=50), seed=7),
    "penalties": lambda: Decoding(
        repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.2
    ),
    "sampled, with all": lambda: Decoding(
        Sampling(temp=1.0), 1.1, 0.4, 0.2, {5: 3.0, 6: -100}, 9, Even()
    ),
}


@pytest.mark.parametrize(
    ("how", "caching"),
    [
        *product(["greedy", "sampled, with all"], KINDS),
        *product(["sampled", "penalties"], [WHOLE]),
    ],
)
def test_a_drafted_answer_is_the_plain_one(model, caching, how):
    """Past the window, with shared keys: tokens, scores and caches, bit for bit."""
    wanted, plain_passes, plain = decode(model, PlainStep(model), DECODINGS[how](), caching)
    drafter = Prompter([each.token for each in wanted])
    found, passes, caches = decode(model, make_step(model, drafter), DECODINGS[how](), caching)
    assert_same(found, wanted)
    assert_same_caches(caches, plain)
    assert passes < plain_passes or caching.max_kv_size == 6
    assert sum(not each.is_drafted for each in found) == passes + 1


@pytest.mark.parametrize("drafts", [None, [10**30], [[1], [2, 3]]], ids=str)
def test_a_drafter_that_returns_no_ids_is_told(model, drafts):
    drafter = SimpleNamespace(needs_hidden=False, cost=-1.0, draft=lambda seen, count: drafts)
    with pytest.raises(RequestError, match=r"^\[draft\] needed a drafter that returns token ids"):
        decode(model, make_step(model, drafter), Decoding())


def test_more_drafts_than_were_asked_for_change_nothing(model):
    caching = Caching(max_kv_size=24)
    wanted, _, _ = decode(model, PlainStep(model), Decoding(), caching)
    ids = [each.token for each in wanted]
    drafter = SimpleNamespace(
        needs_hidden=False, cost=-1.0, draft=lambda seen, count: ids[len(seen.ids) - len(PROMPT) :]
    )
    assert_same(decode(model, make_step(model, drafter), Decoding(), caching)[0], wanted)


def prompter(plain, **options):
    return Prompter([each.token for each in plain], **options)


def test_a_stop_token_among_accepted_drafts_ends_the_answer(model):
    """Nothing behind it is told or kept."""
    plain, _, _ = decode(model, PlainStep(model), Decoding(seed=3, **WARM))
    for end in range(5, 9):
        ends = {plain[end].token}
        wanted, _, kept = decode(model, PlainStep(model), Decoding(seed=3, **WARM), ends=ends)
        step = make_step(model, prompter(plain, wrong=()))
        found, _, caches = decode(model, step, Decoding(seed=3, **WARM), ends=ends)
        assert_same(found, wanted)
        assert_same_caches(caches, kept)


@pytest.mark.parametrize("tokens", [1, 2, 5, 7])
def test_an_answer_has_no_more_tokens_than_it_may(model, tokens):
    plain, _, _ = decode(model, PlainStep(model), Decoding())
    step = make_step(model, prompter(plain, wrong=()))
    found, _, caches = decode(model, step, Decoding(), tokens=tokens)
    assert_same(found, plain[:tokens])
    assert caches[0].offset == len(PROMPT) + tokens - 1


@pytest.mark.parametrize("taken", [1, 2, 4, 6])
def test_a_caller_that_stops_early_leaves_what_a_plain_answer_leaves(model, taken):
    """In the midst of a pass, whose other tokens nobody saw: the next prompt goes on from it."""
    plain = [each.token for each in decode(model, PlainStep(model), Decoding())[0]]
    prefixes = PrefixCache(model.make_cache, 10**8)
    drafter = Prompter(plain, wrong=())
    stream = generate_tokens(model, Request(Prepared(PROMPT), prefill_step=5), prefixes, drafter)
    found = [next(stream).token for _ in range(taken)]
    stream.close()
    match = prefixes.find([*PROMPT, *found, 9, 9])
    assert match.length - len(PROMPT) in (taken - 1, taken)
    read = match.length - len(PROMPT) + 1
    _, _, wanted = decode(model, PlainStep(model), Decoding(), tokens=read)
    assert_same_caches(match.restore(), wanted)


@pytest.mark.parametrize("name", ["mask", "accept"])
def test_an_error_of_a_constraint_comes_behind_the_tokens_before_it(model, name):
    """As in a plain answer, though a pass goes on where it breaks."""

    def tell(drafter):
        bench = Bench(model, drafter=drafter)
        bench.ask(Task(PROMPT, decoding=Decoding(constraint=Broken(name)), max_tokens=9))
        bench.run()
        return bench.told[0]

    wanted = tell(None)
    found = tell(Prompter([*(each.id for each in wanted[1:-1]), 8, 10, 8, 10], wrong=()))
    assert found[:-1] == wanted[:-1]
    assert isinstance(found[-1], Failed)


@pytest.mark.parametrize("needs_hidden", [False, True])
def test_an_answer_is_shown_to_no_drafter_that_drafts_nothing(model, monkeypatch, needs_hidden):
    monkeypatch.setattr(Course, "seen", None)
    wanted, _, _ = decode(model, PlainStep(model), Decoding())
    drafter = SimpleNamespace(needs_hidden=needs_hidden, cost=2.0)  # more than may be lost
    assert_same(decode(model, make_step(model, drafter), Decoding())[0], wanted)


class Rereader:
    """Drafts from known texts, with errors; it counts what it was asked for."""

    needs_hidden = False
    cost = -1.0

    def __init__(self, texts):
        self.texts, self.asked, self.draw = texts, 0, np.random.default_rng(5)

    def draft(self, seen, count):
        self.asked += 1
        begun = seen.ids.tolist()
        text = next(each for each in self.texts if each[: len(begun)] == begun)
        drafts = text[len(begun) :][:count]
        return [*drafts[: self.draw.integers(0, 5)], 9]


def test_a_stream_that_is_joined_and_left_alone_again_is_the_plain_one():
    """Scheduler and worker: a lone answer is drafted, answers in company are not."""
    model, rng = oracle_model(), random.Random(8)
    makers = make_tasks(model, rng, 5, 40, 20)
    wanted = [alone(model, make(), prefill_step=16) for make in makers]
    texts = [
        [*make().keys, *(each.id for each in told if isinstance(each, Token))]
        for make, told in zip(makers, wanted, strict=True)
    ]
    drafter = Rereader(texts)
    bench = Bench(model, prefill_step=16, drafter=drafter)
    for make in makers:
        bench.ask(make())
        bench.run(rng.randrange(1, 9))
    bench.run()
    assert bench.told == wanted
    tally = bench.scheduler.tally
    assert 0 < drafter.asked < tally.passes < tally.tokens


def test_answers_to_pictures_are_the_plain_ones():
    """Soft tokens in the prompt, negative among the keys, in blocks that see each other whole."""
    model = oracle_model("bidirectional")
    prompt = Prepared(SHOWN, features_for(model, SHOWN), [-i if i == IMAGE else i for i in SHOWN])
    wanted = [*generate_tokens(model, Request(prompt, max_tokens=30))]
    drafter = Rereader([[*prompt.keys, *(each.token for each in wanted)]])
    assert_same([*generate_tokens(model, Request(prompt, max_tokens=30), None, drafter)], wanted)


@pytest.mark.parametrize("is_dense", [pytest.param(True, marks=pytest.mark.slow), False])
def test_coded_weights_answer_as_plainly_as_others(monkeypatch, is_dense):
    """The demo, thinking, which quotes: by decoded weights and by images."""
    monkeypatch.setattr(choose, "DENSE_WEIGHTS", choose.DENSE_WEIGHTS if is_dense else 0)
    model, tokenizer = demo.load() if is_dense else library.load(demo.folder())
    story = [{"role": "user", "content": f"{demo.STORY}\n{demo.STORY_QUESTION}"}]
    prompt = library.prompt_ids(tokenizer, story, thinking=True)
    request = Request(Prepared(prompt), max_tokens=60)
    wanted = [*generate_tokens(model, request)]
    texts = Rereader([[*prompt, *(each.token for each in wanted)]])
    for drafter in (texts, Lookup()):
        found = [*generate_tokens(model, request, None, drafter)]
        assert_same(found, wanted)
        assert any(each.is_drafted for each in found)


class Markov(nn.Module):
    """A model whose next token depends on the last one alone."""

    def __init__(self, table):
        super().__init__()
        self.table = table
        text = SimpleNamespace(vocab_size=len(table), num_experts=None, top_k_experts=None)
        self.args = SimpleNamespace(media_token_ids=(), text_config=text)

    def check(self, inputs, caches):
        caches[0].offset += inputs.shape[1]
        return mx.zeros((1, inputs.shape[1], 1)), self.table[inputs[0]]


def test_sampled_pairs_have_the_models_distribution():
    """Two tokens behind a given one, over many seeds: chi square with 8 degrees of freedom."""
    table = np.random.default_rng(2).standard_normal((3, 3)) / 2
    chance = np.exp(table) / np.exp(table).sum(axis=1, keepdims=True)
    model = Markov(mx.array(table, mx.float32))
    step = DraftingStep(model, Prompter([0, 1, 2, 1], wrong=(2,)), PlainStep(model))
    counts, seeds = np.zeros((3, 3)), 500
    for seed in range(seeds):
        chooser = Decoding(Sampling(temp=1.0), seed=seed).chooser(3)
        row = Row([FullCache()], 0, chooser, course=Course([*PROMPT, 0]))
        found = []
        while len(found) < 2:
            found += [each.token for each in step([row])[0]]
        counts[tuple(found[:2])] += 1
    wanted = seeds * chance[0][:, None] * chance
    assert ((counts - wanted) ** 2 / wanted).sum() < 26.1  # exceeded by one in a thousand


def test_a_row_of_a_model_with_experts_costs_those_that_it_chooses(monkeypatch):
    """Many weights are experts', at 2 bits; few are read, and they do not tell the usual width."""
    rule = class_rule({"experts": 2, "attention": 6, "mlp": 6, "embedding": 6})
    model = coded_model(tiny.experts_config(), rule, mx.float32)
    counts = {True: 0, False: 0}
    for name, array in tree_flatten(model.parameters()):
        if name.endswith(".norms"):
            counts[".experts." in name] += 128 * array.size
    own, shared = counts[True] * 2 / 6, counts[False]  # 2 of 6 experts
    assert usual_bits(model) == 6 and counts[True] > shared
    read = own + shared + speculate.HOST_WEIGHTS
    assert row_cost(model) == pytest.approx((0.4 * shared + own) / read)
    monkeypatch.setattr(speculate, "native_library", lambda: None)
    assert row_cost(model) == pytest.approx((shared + own) / read)
    monkeypatch.setattr(speculate, "has_metal", lambda: True)
    assert row_cost(model) == pytest.approx((0.03 * 6 * shared + 2 * own) / (6 * shared + 2 * own))
