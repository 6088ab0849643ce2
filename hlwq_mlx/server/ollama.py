"""The paths of Ollama's own API: lists of the one model, and answers that load or unload it too."""

from collections.abc import Callable
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .dialects import models, ollama_chat, ollama_generate, ollama_models, ollama_options
from .dialects.dialect import JSON
from .site import Handler, Site, guarded


def ollama_routes(site: Site) -> list[Route]:
    """Return the paths under /api."""
    told: dict[str, Callable[[], JSON]] = {
        "version": ollama_models.version,
        "tags": lambda: ollama_models.tags(site.card()),
        "ps": lambda: ollama_models.ps(site.card(), site.service.engine.expires),
    }
    done: dict[str, Handler] = {
        "chat": partial(_answer, site, ollama_chat),
        "generate": partial(_answer, site, ollama_generate),
        "show": partial(_show, site),
        "pull": partial(_pull, site),
        "embed": _embed,
        "embeddings": _embed,
    }
    return [
        *(_route(name, partial(_tell, tell), "GET") for name, tell in told.items()),
        *(_route(name, handler, "POST") for name, handler in done.items()),
    ]


def _route(name: str, handler: Handler, method: str) -> Route:
    return Route(f"/api/{name}", guarded(ollama_chat, handler), methods=[method])


async def _tell(tell: Callable[[], JSON], request: Request) -> Response:
    return JSONResponse(tell())


async def _answer(site: Site, dialect: Any, request: Request) -> Response:
    """Answer a request; one without messages only loads the model, or unloads it."""
    chat = dialect.read(await site.json(request))
    if not ollama_chat.only_loads(chat):
        return await site.answer(request, dialect, chat)
    await site.service.load(chat.keep_alive_s)
    return JSONResponse(dialect.load(chat, site.meta(chat)))


async def _show(site: Site, request: Request) -> Response:
    await site.json(request)
    return JSONResponse(ollama_models.show(site.card()))


async def _pull(site: Site, request: Request) -> Response:
    said, is_streamed = ollama_models.pull(site.card(), await site.json(request))
    kind = ollama_options.STREAM_TYPE if is_streamed else "application/json"
    return Response(said, media_type=kind)


async def _embed(request: Request) -> Response:
    models.refuse_embeddings()
