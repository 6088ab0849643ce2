"""Random answers under a constraint: what a model without any sense would write."""

import random

import numpy as np

CLOSERS = ('"', '"}', "}", "]", '<|"|>', "<channel|>", "<tool_call|>")
MOST_TOKENS = 400


def walk(tokenizer, constraint, rng: random.Random) -> str | None:
    """Return an answer without its end token, or None for one that did not end in time.

    Tokens that close something are likelier than others, so that most answers end.
    """
    closers = {tokenizer.convert_tokens_to_ids(token) for token in CLOSERS}
    detokenizer, text = tokenizer.detokenizer, ""
    for _ in range(MOST_TOKENS):
        allowed = np.flatnonzero(constraint.allowed()).tolist()
        ends = tokenizer.eos_token_ids.intersection(allowed)
        if ends and (len(ends) == len(allowed) or rng.random() < 0.5):
            assert ends == tokenizer.eos_token_ids
            detokenizer.finalize()
            return text + detokenizer.last_segment
        closing = sorted(closers.intersection(allowed))
        token = rng.choice(closing if closing and rng.random() < 0.3 else allowed)
        constraint.accept(token)
        detokenizer.add_token(token)
        text += detokenizer.last_segment
    return None
