"""A step with several tokens a pass: a drafter proposes, and one pass of the model checks.

The pass reads a row's last token and the drafted ones. At each position the row's own chooser
chooses as it would alone, from the same scores, with the same key; so long as it chooses what was
drafted, the next position is read already. The rest is dropped from the caches. So an answer is
the plain one token for token, a sampled one too. This is rejection sampling of the exact
distribution: a drafted token d is accepted with the probability p(d) that the model gives it, and
where it is not, the token is drawn from p without d; and it makes no difference how d was found.

It holds bit for bit where a product gives a row the same bits among a few others (see
quant.backends) and each query attends as it would alone (see gemma4.attention).
L positions of a pass, V vocabulary.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import takewhile

import mlx.core as mx
import numpy as np

from ..errors import RequestError
from ..gemma4.caches import rewind
from ..gemma4.model import Model
from ..quant.backends.choose import tokens_a_pass
from ..quant.backends.native.library import native_library
from ..quant.device import has_metal
from ..quant.layers import coded_weights, usual_bits
from . import overlap
from .draft import Course, Drafter
from .pace import Credit, Pace
from .step import Chosen, Outcome, Row, Step, UnderWay, accept, score, take, wait

# What one more row costs a pass by Metal, in passes, where rows read the same weights. They wait
# for these in any case: an M1's is modelled at 0.02 to 0.03 from 3 bits on
# (scripts/benchmarks/passes.py), not measured.
ROW_COST = 0.03
# What a pass that checks drafts costs besides, in passes: the host does not work ahead of it.
# Measured with the demo on a CPU (scripts/benchmarks/drafts.py --draft random).
CHECK_COST = 0.15
# A CPU multiplies by so many weights in the time that the host takes for a pass of the demo.
HOST_WEIGHTS = 1 << 23
# The native library decodes a weight once for all rows: four cost it about twice what one does.
SHARED_DECODING = 0.4


def make_step(model: Model, drafter: Drafter | None, credit: Credit | None = None) -> Step:
    """Return the step that answers take: with drafts, where there is a drafter.

    `credit` is what they may lose by it, a new one by default.
    """
    step = overlap.make_step(model)
    return step if drafter is None else DraftingStep(model, drafter, step, credit)


def row_cost(model: Model) -> float:
    """Return what one more row costs a pass, in passes."""
    text = model.args.text_config
    shared, stacks = (coded_weights(model, of_experts=each) for each in (False, True))
    chosen = (text.top_k_experts or 0) / (text.num_experts or 1)
    if has_metal():
        return metal_row_cost(shared, {bits: chosen * count for bits, count in stacks.items()})
    own = chosen * stacks.total()
    each = SHARED_DECODING if native_library() else 1.0  # stock MLX goes row by row
    return (each * shared.total() + own) / (shared.total() + own + HOST_WEIGHTS)


def metal_row_cost(shared: Mapping[int, float], chosen: Mapping[int, float]) -> float:
    """Return what one more row costs a pass by Metal: it waits for its own experts.

    `shared` and `chosen` say how many weights of each width all rows read, and each row by itself;
    what two rows choose both is not counted.
    """
    once, own = (sum(bits * count for bits, count in each.items()) for each in (shared, chosen))
    return (ROW_COST * once + own) / (once + own) if once + own else ROW_COST


class DraftingStep:
    """Several tokens for a lone row; rows of a batch get one each, by a step without drafts.

    A pass reads `most_tokens` at most. `checked` counts passes by how many drafts each checked.
    """

    def __init__(
        self, model: Model, drafter: Drafter, plain: Step, credit: Credit | None = None
    ) -> None:
        self.width = plain.width
        self._model = model
        self._drafter = drafter
        self._plain = plain
        self._cost = row_cost(model) + drafter.cost
        self._credit = credit or Credit()
        self.checked: Counter[int] = Counter()
        self.most_tokens = tokens_a_pass(usual_bits(model))
        self._vocab = model.args.text_config.vocab_size
        self._never = frozenset(model.args.media_token_ids)

    def __call__(self, rows: Sequence[Row]) -> list[Outcome]:
        """Check drafts of a lone row, or read the token of each."""
        [row, *others] = rows
        if others or row.course is None or row.is_broken:
            return self._plain(rows)
        drafts = self._draft(row, row.course)
        if drafts is None:
            return self._plain(rows)
        if row.under_way is None:
            return [self._check(row, row.course, drafts)]
        wait(rows)  # and do not work ahead, so that the next call can check drafts
        return take(rows)

    def _draft(self, row: Row, course: Course) -> list[int] | None:
        """Return what to check behind a row's token, or None where none is worth it.

        It is empty where the pass is to tell the hidden state that the drafter needs.
        """
        most = min([self.most_tokens, row.left, *(entry.room for entry in row.caches)]) - 1
        is_blind = self._drafter.needs_hidden and course.hidden_behind(row.caches) is None
        once = 2 * CHECK_COST if is_blind else CHECK_COST
        count = self._pace_of(course).count(int(most), self._cost, once)
        if count < 1:
            return None
        if is_blind:
            return []
        return self._usable(self._drafter.draft(course.seen(row.caches), count), count) or None

    def _pace_of(self, course: Course) -> Pace:
        if course.pace is None:
            course.pace = Pace(self._credit)
        return course.pace

    def _usable(self, drafts: Sequence[int] | mx.array, count: int) -> list[int]:
        """Return drafts up to the first that the model never chooses, which it could not read."""
        try:
            ids: list[int] = np.array(drafts, dtype=np.int64).reshape(-1)[:count].tolist()
        except (TypeError, ValueError, OverflowError) as problem:
            raise RequestError(
                f"[draft] needed a drafter that returns token ids, got {problem}. Mend the drafter."
            ) from problem
        return list(takewhile(lambda id: 0 <= id < self._vocab and id not in self._never, ids))

    def _check(self, row: Row, course: Course, drafts: list[int]) -> Outcome:
        """Read a row's token and what was drafted behind it; keep what its chooser agrees to."""
        start, length = row.caches[0].offset, len(drafts) + 1
        self.checked[len(drafts)] += 1
        hidden, logits = self._model.check(mx.array([[row.token, *drafts]]), row.caches)
        own, scores = [*mx.split(logits, length)], score(logits)
        ids = row.chooser.ahead(own)
        mx.eval(hidden, own, scores, ids)
        found: list[Chosen] = []
        try:
            for draft, each, given in zip([*drafts, None], own, scores, strict=True):
                at = len(found)
                id = ids[at] if at < len(ids) else row.chooser(each)
                found.append(accept(row, id, given, is_drafted=at > 0))
                if row.token != draft or row.is_over:
                    break
        except Exception as problem:  # noqa: BLE001 - a constraint's own, of any kind
            if not found:
                return problem
            row.under_way = UnderWay(problem, given)  # the next step tells of it
        kept = len(found)  # the row's token, and drafts that were accepted
        rewind(row.caches, start + kept)
        course.hidden = start + kept, hidden[:, kept - 1 : kept]
        self._pace_of(course).learn(len(drafts), len(found) - 1, self._cost, CHECK_COST)
        return found
