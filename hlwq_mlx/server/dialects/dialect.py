"""What a dialect is: two pure functions and how it words an error."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ...errors import HLWQError
from ..events import Event, Whole
from ..request import ChatRequest

JSON = Mapping[str, Any]


@dataclass(frozen=True)
class Meta:
    """What an answer says of itself: a random part for its ids, and the time in Unix seconds."""

    model: str
    token: str
    created: float


class Writer(Protocol):
    """Writes the events of one streamed answer, or of several with a number each."""

    def __call__(self, event: Event, choice: int = 0) -> bytes:
        """Return the bytes of an event; b"" where the dialect says nothing of it."""
        ...

    def close(self) -> bytes:
        """Return what follows the last event of the last choice."""
        ...


class Dialect(Protocol):
    """Reads requests and writes answers of one endpoint."""

    @property
    def stream_type(self) -> str:
        """The media type of a streamed answer."""
        ...

    def read(self, body: JSON) -> ChatRequest:
        """Return the request in a body.

        Raises: RequestError that names the field at fault and what can be served instead.
        """
        ...

    def writer(self, request: ChatRequest, meta: Meta) -> Writer:
        """Return what writes a streamed answer."""
        ...

    def whole(self, request: ChatRequest, answers: Sequence[Whole], meta: Meta) -> JSON:
        """Return a whole answer; there are several if the request asks for several."""
        ...

    def error(self, problem: HLWQError, status: int) -> JSON:
        """Return the body of an error."""
        ...
