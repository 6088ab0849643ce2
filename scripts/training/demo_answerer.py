"""The transformers reference as an answerer: conversations in, greedy answers out, in batches."""

from pathlib import Path

import torch
from transformers import Gemma4ForConditionalGeneration

from scripts.training.demo_lessons import render
from scripts.training.demo_media import Prepared, media_inputs, media_parts, prepare
from scripts.training.demo_model import STOP_IDS
from scripts.training.demo_tokenizer import IDS, load_tokenizer
from scripts.training.tinyworld import Conversation

BATCH_ROWS = 200


class Answerer:
    """Answers conversations, with or without media, with a folder `train_demo.py train` wrote."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        self.tokenizer = load_tokenizer(folder)
        self.model = Gemma4ForConditionalGeneration.from_pretrained(folder, dtype=dtype).eval()

    def __call__(self, conversations: list[Conversation], max_tokens: int) -> list[str]:
        answers = []
        for start in range(0, len(conversations), BATCH_ROWS):
            answers += self._answer(conversations[start : start + BATCH_ROWS], max_tokens)
        return answers

    def _prepare(self, conversation: Conversation) -> Prepared:
        if any(media_parts(conversation)):
            return prepare(self.tokenizer, conversation, prompt=True)
        return Prepared(render(self.tokenizer, conversation, prompt=True), [], [], [])

    @torch.no_grad()
    def _answer(self, conversations: list[Conversation], max_tokens: int) -> list[str]:
        rows = [self._prepare(conversation) for conversation in conversations]
        longest = max(len(row.ids) for row in rows)
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prepared in enumerate(rows):
            ids[row, longest - len(prepared.ids) :] = torch.tensor(prepared.ids)
            mask[row, longest - len(prepared.ids) :] = 1
        output = self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max_tokens,
            do_sample=False,
            eos_token_id=STOP_IDS,
            pad_token_id=IDS["<pad>"],
            **media_inputs(rows),
        )
        return [self._answer_text(row[longest:].tolist()) for row in output]

    def _answer_text(self, ids: list[int]) -> str:
        for position, token in enumerate(ids):
            if token in STOP_IDS:
                ids = ids[:position]
                break
        return str(self.tokenizer.decode(ids, skip_special_tokens=False))
