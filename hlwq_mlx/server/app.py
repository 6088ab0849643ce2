"""The web application: which path is answered by what, and in which dialect."""

from functools import partial
from pathlib import Path

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from ..errors import HLWQError
from . import watch
from .dialects import (
    anthropic,
    models,
    ollama_chat,
    ollama_models,
    openai_audio,
    openai_chat,
    openai_completions,
    responses,
)
from .dialects.dialect import JSON, Dialect
from .errors import Refused
from .gate import Gate
from .limits import read_form
from .ollama import ollama_routes
from .site import Handler, Site, answering, guarded, refusal
from .stream import unless_gone

PAGE = Path(__file__).parent / "page"
PAGE_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
        "media-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
AUDIO = {
    "transcriptions": openai_audio.transcriptions,
    "translations": openai_audio.translations,
}


def make_app(site: Site) -> ASGIApp:
    """Return the application that serves a site."""
    listed = routes(site)
    inner = Starlette(
        routes=listed,
        exception_handlers={HTTPException: _not_routed},
    )
    known = {route.path for route in listed}

    def count(path: str, status: int) -> None:
        site.service.metrics.answered(path if path in known else "other", status)

    def refuse(path: str, problem: HLWQError) -> Response:
        return refusal(dialect_of(path), problem)

    return Gate(inner, site.limits, refuse, count)


def routes(site: Site) -> list[Route]:
    """Return every path with what answers it."""
    chat = answering(site, openai_chat)
    texts = answering(site, openai_completions)
    return [
        _get("/", _home),
        _get("/health", partial(watch.health, site)),
        _get("/metrics", partial(watch.measure, site)),
        _get("/props", partial(watch.facts, site)),
        *(_get(f"/page/{path.name}", partial(_page, path)) for path in sorted(PAGE.iterdir())),
        _post("/v1/chat/completions", chat),
        _post("/chat/completions", chat),
        _post("/v1/completions", texts),
        _post("/v1/responses", answering(site, responses)),
        _post("/v1/messages", answering(site, anthropic)),
        _post("/v1/messages/count_tokens", guarded(anthropic, partial(_count_tokens, site))),
        _post("/v1/embeddings", guarded(openai_chat, _no_embeddings)),
        *(
            _post(f"/v1/audio/{name}", guarded(dialect, partial(_audio, site, dialect)))
            for name, dialect in AUDIO.items()
        ),
        _get("/v1/models", partial(_models, site)),
        _get("/models", partial(_models, site)),
        _get("/v1/models/{name:path}", partial(_model, site)),
        *ollama_routes(site),
    ]


def _get(path: str, handler: Handler) -> Route:
    return Route(path, guarded(dialect_of(path), handler), methods=["GET"])


def _post(path: str, handler: Handler) -> Route:
    return Route(path, handler, methods=["POST"])


def dialect_of(path: str) -> Dialect:
    """Return the dialect in which errors of a path are told."""
    if path.startswith("/api/"):
        return ollama_chat
    return anthropic if path.startswith("/v1/messages") else openai_chat


async def _not_routed(request: Request, problem: Exception) -> Response:
    """Answer a path that there is not, or a method that it does not take."""
    assert isinstance(problem, HTTPException)  # it is registered for no other
    path = request.url.path
    needed = "a path of this server" if problem.status_code == 404 else "another method"
    said = f"[{path[:80]}] needed {needed}, got {request.method}. See the README for what there is."
    return refusal(dialect_of(path), Refused(problem.status_code, said))


async def _home(request: Request) -> Response:
    """Show the page to a browser, and Ollama's line to a program."""
    if "text/html" in request.headers.get("accept", ""):
        return await _page(PAGE / "index.html", request)
    return PlainTextResponse(ollama_models.GREETING)


async def _page(path: Path, request: Request) -> Response:
    return FileResponse(path, headers=PAGE_HEADERS)


async def _models(site: Site, request: Request) -> Response:
    return JSONResponse(models.list_models(site.card()))


async def _model(site: Site, request: Request) -> Response:
    return JSONResponse(models.model(site.card(), request.path_params["name"]))


async def _no_embeddings(request: Request) -> Response:
    models.refuse_embeddings()


async def _count_tokens(site: Site, request: Request) -> Response:
    chat = anthropic.read(await site.json(request))
    count = await unless_gone(request, run_in_threadpool(site.prompts.count, chat))
    return JSONResponse(anthropic.count(count))


async def _audio(site: Site, dialect: openai_audio.AudioDialect, request: Request) -> Response:
    form = await read_form(request, site.limits)
    respond = _plain if openai_audio.is_plain(form) else JSONResponse
    return await site.answer(request, dialect, dialect.read(form), respond)


def _plain(answer: JSON) -> Response:
    return PlainTextResponse(answer["text"])
