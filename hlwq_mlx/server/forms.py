"""Hold answers to the form that a request demands: a JSON schema, or calls of tools."""

import asyncio
from collections.abc import Sequence

from starlette.concurrency import run_in_threadpool

from ..dialog.constraints import Form, compile_grammar, require_bounded, write_grammar
from ..dialog.vocabulary import Vocabulary
from ..engine.constraint import Constraint
from ..engine.masks import GuideMask
from ..errors import RequestError
from .prompts import Ready
from .request import Calls, ChatRequest

FREE: tuple[Constraint | None, ...] = (None,)


async def constraints_for(
    request: ChatRequest, ready: Ready, vocabulary: Vocabulary
) -> Sequence[Constraint | None]:
    """Return a constraint for each answer that a request asks for, or None for any answer.

    The first one waits until the tables of the vocabulary are made; requests without a form never
    do.
    Raises: RequestError for a form that no grammar can say.
    """
    form = form_of(request, ready)
    grammar = write_grammar(form)
    if grammar is None:
        return FREE
    await run_in_threadpool(require_bounded, grammar)
    tables = await asyncio.shield(asyncio.wrap_future(vocabulary.tables))
    start = await run_in_threadpool(compile_grammar, grammar, tables)
    return [GuideMask(start()) for _ in range(request.count)]


def form_of(request: ChatRequest, ready: Ready) -> Form:
    """Return the form of a request's answer.

    Raises: RequestError for a tool that must be called but is not offered.
    """
    choice = request.tool_choice
    tools = [] if choice.calls is Calls.NONE else list(request.tools)
    if choice.name is not None:
        tools = [tool for tool in tools if tool.get("function", tool).get("name") == choice.name]
        if not tools:
            raise RequestError(
                f"[tool_choice] needed one of the tools that are offered, got {choice.name!r}. "
                "Offer it, or choose another."
            )
    return Form(
        schema=request.schema,
        tools=tools,
        must_call=choice.calls is Calls.REQUIRED,
        parallel=request.parallel_calls,
        may_think=ready.may_think,
        in_thought=ready.in_thought,
    )
