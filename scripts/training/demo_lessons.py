"""The text lessons: TinyWorld's conversations as batches of token ids and weights."""

import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from transformers import Gemma4ForConditionalGeneration

from scripts.training import tinyworld
from scripts.training.demo_model import SEED, STOP_IDS
from scripts.training.demo_tokenizer import IDS

STEPS = 1400
STAGES_BEGIN = (0, 688, 992)
ROWS = 32
BATCHES_PER_CHUNK = 16
LONGEST = 288
PROMPT_WEIGHT = 0.3


class Example(NamedTuple):
    """Token ids of a conversation and the weight of each as a target."""

    ids: list[int]
    weights: list[float]


def answer_weights(ids: list[int]) -> list[float]:
    """Weigh what the model says fully, and what it is told a little.

    The model's own words run from `<|turn>model\\n` to `<turn|>`, and from `<tool_response|>` on;
    `<|tool_response>` is its request for a result.
    """
    weights = []
    speaking = False
    header = 0
    for position, token in enumerate(ids):
        weights.append(1.0 if speaking else PROMPT_WEIGHT)
        if token in STOP_IDS:
            speaking = False
        elif token == IDS["<tool_response|>"]:
            speaking = True
        elif token == IDS["<|turn>"]:
            header = position
        elif token == IDS["\n"] and ids[header] == IDS["<|turn>"] and position == header + 2:
            speaking = ids[header + 1] == IDS["model"]
    return weights


def render(tokenizer: Any, conversation: tinyworld.Conversation, *, prompt: bool) -> list[int]:
    """Return a conversation as token ids, with the opening of the model's turn for a prompt."""
    text = tokenizer.apply_chat_template(
        conversation["messages"],
        tools=conversation.get("tools"),
        enable_thinking=conversation.get("thinking", False),
        add_generation_prompt=prompt,
        tokenize=False,
    )
    return list(tokenizer.encode(text, add_special_tokens=False))


def render_training(tokenizer: Any, conversation: tinyworld.Conversation) -> Example:
    """Return a conversation to learn from.

    The template drops thoughts from history, and what is learnt from is all history, so a thought
    is put back where the model's last turn begins.
    """
    if not conversation.get("thinking"):
        ids = render(tokenizer, conversation, prompt=False)
    else:
        *before, last = conversation["messages"]
        ids = render(tokenizer, {**conversation, "messages": before}, prompt=True)
        ids += tokenizer.encode(last["content"] + "<turn|>\n", add_special_tokens=False)
    ids = ids[:LONGEST]
    return Example(ids, answer_weights(ids))


def chunk_conversations(chunk: int) -> Iterator[tinyworld.Conversation]:
    """Yield the conversations of one chunk, which knows its stage."""
    step = chunk * BATCHES_PER_CHUNK
    stage = tinyworld.STAGES[sum(step >= begin for begin in STAGES_BEGIN) - 1]
    return tinyworld.conversations(f"{SEED}/{chunk}", stage)


def chunk_batches(tokenizer: Any, chunk: int) -> list[list[Example]]:
    """Draw one chunk of conversations, grouped by length into batches of equal row count."""
    stream = chunk_conversations(chunk)
    examples = [render_training(tokenizer, next(stream)) for _ in range(ROWS * BATCHES_PER_CHUNK)]
    examples.sort(key=lambda example: len(example.ids))
    batches = [examples[start : start + ROWS] for start in range(0, len(examples), ROWS)]
    random.Random(chunk).shuffle(batches)
    return batches


def batches_from(tokenizer: Any, step: int) -> Iterator[list[Example]]:
    """Yield the batch of every step from `step` on."""
    chunk, skip = divmod(step, BATCHES_PER_CHUNK)
    while True:
        yield from chunk_batches(tokenizer, chunk)[skip:]
        chunk, skip = chunk + 1, 0


def batch_loss(
    model: Gemma4ForConditionalGeneration, batch: list[Example], **media: torch.Tensor
) -> torch.Tensor:
    """Compute the weighted cross entropy of a batch, padded on the right, and of its media."""
    longest = max(len(example.ids) for example in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    weights = torch.zeros(len(batch), longest)
    for row, example in enumerate(batch):
        ids[row, : len(example.ids)] = torch.tensor(example.ids)
        weights[row, : len(example.ids)] = torch.tensor(example.weights)
    logits = model(input_ids=ids[:, :-1], use_cache=False, **media).logits.float()
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    return (losses * weights[:, 1:]).sum() / weights[:, 1:].sum()


def stories_told(steps: int) -> set[str]:
    """Collect the text of every story in so many steps, to show that no exam asks about one."""
    told: set[str] = set()
    for chunk in range(-(-steps // BATCHES_PER_CHUNK)):
        stream = chunk_conversations(chunk)
        for _ in range(ROWS * BATCHES_PER_CHUNK):
            told |= tinyworld.stories_in(next(stream))
    return told
