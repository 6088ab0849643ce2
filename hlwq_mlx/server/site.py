"""One model as it is served: requests become answers, and errors too, in any dialect.

How an answer is made is the service's business, how it is written the dialect's.
"""

import contextlib
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..cli.boundary import as_error
from ..dialog.vocabulary import Vocabulary
from ..errors import HLWQError
from . import errors
from .dialects.dialect import JSON, Dialect, Meta
from .forms import constraints_for
from .gate import KEY
from .limits import Limits, parse_json, read_body
from .model_card import ModelCard
from .prompts import PromptMaker
from .request import ChatRequest
from .service import Answers, Service
from .stream import Gone, Stream, unless_gone

logger = logging.getLogger("hlwq_mlx")

CLIENT_GONE = 499  # nginx's word for it; nobody reads it
Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class Site:
    """A model that is served, and how; `card` tells the facts of the moment."""

    service: Service
    prompts: PromptMaker
    vocabulary: Vocabulary
    limits: Limits
    card: Callable[[], ModelCard]
    version: str = ""

    def meta(self, chat: ChatRequest) -> Meta:
        """Return what an answer says of itself: the client's name of the model is kept."""
        return Meta(chat.model or self.card().name, secrets.token_hex(12), time.time())

    async def json(self, request: Request) -> dict[str, Any]:
        """Return the object in a request's body.

        Raises: Refused or RequestError for a body that cannot be taken.
        """
        body = await read_body(request, self.limits)
        return parse_json(body, request.headers.get("content-type", ""))

    async def answer(
        self,
        request: Request,
        dialect: Dialect,
        chat: ChatRequest,
        respond: Callable[[JSON], Response] = JSONResponse,
    ) -> Response:
        """Answer a request, streamed or whole.

        Raises: an HLWQError while nothing has been sent; Gone when the client leaves before.
        """
        meta = self.meta(chat)
        ready = await unless_gone(request, run_in_threadpool(self.prompts.make, chat))
        constraints = await unless_gone(request, constraints_for(chat, ready, self.vocabulary))
        answers = self.service.submit(chat, ready, constraints, request.scope[KEY])
        if chat.is_streamed:
            pieces = written(answers, dialect, chat, meta)
            return Stream(pieces, dialect.stream_type, answers.cancel)
        try:
            wholes = await unless_gone(request, answers.wholes())
        finally:
            answers.cancel()  # a client may leave before the first event is waited for
        return respond(dialect.whole(chat, wholes, meta))


async def written(
    answers: Answers, dialect: Dialect, chat: ChatRequest, meta: Meta
) -> AsyncGenerator[bytes]:
    """Yield the bytes of answers as they come."""
    write = dialect.writer(chat, meta)
    async with contextlib.aclosing(answers.events()) as events:
        async for choice, event in events:
            yield write(event, choice)
    yield write.close()


def guarded(dialect: Dialect, handler: Handler) -> Handler:
    """Return a handler whose errors are answered in a dialect."""

    async def handle(request: Request) -> Response:
        try:
            return await handler(request)
        except Gone:
            return Response(status_code=CLIENT_GONE)
        except Exception as problem:  # noqa: BLE001 - one request's defect ends that request alone
            return refusal(dialect, as_error(problem))

    return handle


def refusal(dialect: Dialect, problem: HLWQError) -> Response:
    """Return the answer that an error is."""
    status = errors.status_of(problem)
    if status >= 500:
        logger.error("%s", problem)
    return JSONResponse(dialect.error(problem, status), status, errors.headers_of(problem))


def answering(site: Site, dialect: Dialect) -> Handler:
    """Return the handler of an endpoint that answers bodies of a dialect."""

    async def handle(request: Request) -> Response:
        return await site.answer(request, dialect, dialect.read(await site.json(request)))

    return guarded(dialect, handle)
