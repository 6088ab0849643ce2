"""The items of an answer that are texts, and the events that write them piece by piece."""

from collections.abc import Iterator, Sequence
from typing import ClassVar

from ..events import TokenScore
from .openai_form import Form
from .scores import scores_of


class Item:
    """A thought or a message that is being written; it has one part."""

    prefix: ClassVar[str]  # of its id
    place: ClassVar[str]  # what the number of its part is called
    part_event: ClassVar[str]
    text_event: ClassVar[str]

    def __init__(self, token: str, index: int) -> None:
        self.id = f"{self.prefix}_{token}_{index}"
        self._index = index
        self._at: Form = {"item_id": self.id, "output_index": index, self.place: 0}
        self._text = ""
        self._scores: list[TokenScore] = []

    def begin(self) -> Iterator[Form]:
        """Yield what comes before the text."""
        item = self.item("in_progress")
        yield {"type": "response.output_item.added", "output_index": self._index, "item": item}
        yield {"type": f"response.{self.part_event}.added", **self._at, "part": self._part()}

    def add(self, text: str, scores: Sequence[TokenScore] = ()) -> Iterator[Form]:
        """Take a piece of the text."""
        self._text += text
        self._scores += scores
        event = f"response.{self.text_event}.delta"
        yield {"type": event, **self._at, "delta": text, **self._scored(scores)}

    def end(self, status: str) -> Iterator[Form]:
        """Yield what comes behind the text."""
        told = self._scored(self._scores)
        yield {"type": f"response.{self.text_event}.done", **self._at, "text": self._text, **told}
        yield {"type": f"response.{self.part_event}.done", **self._at, "part": self._part()}
        item = self.item(status)
        yield {"type": "response.output_item.done", "output_index": self._index, "item": item}

    def item(self, status: str) -> Form:
        """Return the item as far as it is written."""
        raise NotImplementedError

    def _part(self) -> Form:
        raise NotImplementedError

    def _scored(self, scores: Sequence[TokenScore]) -> Form:
        return {}

    def _parts(self) -> list[Form]:
        return [self._part()] if self._text else []


class Reasoning(Item):
    """A thought, told as its own summary."""

    prefix = "rs"
    place = "summary_index"
    part_event = "reasoning_summary_part"
    text_event = "reasoning_summary_text"

    def item(self, status: str) -> Form:
        """Return the item as far as it is written."""
        return {"id": self.id, "type": "reasoning", "summary": self._parts(), "status": status}

    def _part(self) -> Form:
        return {"type": "summary_text", "text": self._text}


class Message(Item):
    """A text, with the scores of its tokens where they are wanted."""

    prefix = "msg"
    place = "content_index"
    part_event = "content_part"
    text_event = "output_text"

    def item(self, status: str) -> Form:
        """Return the item as far as it is written."""
        told: Form = {"id": self.id, "type": "message", "role": "assistant"}
        return {**told, "content": self._parts(), "status": status}

    def _part(self) -> Form:
        told: Form = {"type": "output_text", "text": self._text, "annotations": []}
        return told | self._scored(self._scores)

    def _scored(self, scores: Sequence[TokenScore]) -> Form:
        return {"logprobs": scores_of(scores)}
