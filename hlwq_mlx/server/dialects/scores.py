"""Write the log probabilities of tokens, in the form that OpenAI's and Ollama's clients share."""

from collections.abc import Sequence

from ..events import Alternative, TokenScore
from .openai_form import Form
from .openai_options import logprob


def scores_of(scores: Sequence[TokenScore]) -> list[Form]:
    """Return the scores of tokens, each with the likeliest ones in its place."""
    return [
        {**_score(score), "top_logprobs": [_score(each) for each in score.top]} for score in scores
    ]


def _score(score: Alternative) -> Form:
    return {
        "token": score.token.decode(errors="replace"),
        "logprob": logprob(score.logprob),
        "bytes": list(score.token),
    }
