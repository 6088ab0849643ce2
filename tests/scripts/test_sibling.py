"""The demo's sibling with experts: all of them are used, and mixtures keep more than one width."""

import mlx.core as mx
import numpy as np
import pytest

from hlwq_mlx.gemma4.experts import Router
from hlwq_mlx.memory.inventory import take
from hlwq_mlx.memory.mixture import choices_of, choose, loss_of, total
from hlwq_mlx.source.repository import Source
from hlwq_mlx.source.rules import unit_rule
from hlwq_mlx.write import loss
from hlwq_mlx.write.convert import convert
from hlwq_mlx.write.leftovers import KEEP
from hlwq_mlx.write.quantize import Coding, Encoder
from scripts.benchmarks.fidelity import Subject, compare, unseen_texts
from scripts.benchmarks.fit_table import KINDS, by_class
from scripts.training import demo_exam
from scripts.training.sibling import assemble

FEWEST = 0.05  # of the tokens, for each expert of each layer


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return Source(assemble(tmp_path_factory.mktemp("sibling") / "source"))


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    output = tmp_path_factory.mktemp("whole") / "out"
    convert(source, output)
    return Subject(output)


def test_it_answers_about_stories_that_it_never_read(whole):
    assert demo_exam.stories(whole.answerer, 10) >= 0.5  # one of eight words by chance


def test_every_expert_is_used_on_unseen_text(whole, monkeypatch):
    chosen = []

    def watched(router, x, call=Router.__call__):
        found = call(router, x)
        chosen.append((router, np.array(found.experts)))
        return found

    monkeypatch.setattr(Router, "__call__", watched)
    for ids in unseen_texts(whole.tokenizer)[:12]:
        whole.model(mx.array([ids]))
    routers = {id(router) for router, _ in chosen}
    assert len(routers) == whole.model.args.text_config.num_hidden_layers
    for router in routers:
        experts = np.concatenate([each.reshape(-1, 2) for of, each in chosen if id(of) == router])
        shares = np.bincount(experts.reshape(-1), minlength=8) / len(experts)
        assert shares.min() >= FEWEST


def test_what_fit_chooses_keeps_more_than_one_width_in_the_same_bytes(source, whole, tmp_path):
    texts = unseen_texts(whole.tokenizer)[:10]
    reference = [whole.scores(ids) for ids in texts]
    choices = choices_of(take(str(source.folder)), loss.measure(source.plain, Encoder("clip4_100")))
    uniform = by_class(choices, dict.fromkeys(KINDS, 2))
    fitted = choose(choices, total(choices, uniform))
    assert total(choices, fitted) <= total(choices, uniform)
    assert loss_of(choices, fitted) < loss_of(choices, uniform)
    divergences = []
    for name, widths in (("uniform", uniform), ("fitted", fitted)):
        coding = Coding(name, unit_rule(widths), Encoder("clip4_100"))
        convert(source, tmp_path / name, KEEP, coding)
        divergences.append(compare(Subject(tmp_path / name), texts, reference)[1])
    assert divergences[1] < divergences[0]
