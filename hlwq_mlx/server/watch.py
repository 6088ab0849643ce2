"""What a person or a program looks at to see how the server is: health, metrics and facts."""

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from . import metrics
from .engine import State
from .site import Site

READY = (State.READY, State.UNLOADED)  # an unloaded model is loaded by the next request


async def health(site: Site, request: Request) -> Response:
    """Return 200 if a request would be answered, else 503, and the engine's state."""
    state = site.service.engine.state
    is_well = state in READY
    body = {"status": "ok" if is_well else state.value, "model": state.value}
    return JSONResponse(body, 200 if is_well else 503)


async def measure(site: Site, request: Request) -> Response:
    """Return all numbers in Prometheus' format."""
    gauges = site.service.engine.numbers()
    return PlainTextResponse(
        site.service.metrics.text(gauges), headers={"content-type": metrics.CONTENT_TYPE}
    )


async def facts(site: Site, request: Request) -> Response:
    """Return what the chat page shows of the model."""
    card = site.card()
    return JSONResponse(
        {
            "model": card.name,
            "variant": card.variant,
            "context_length": card.context,
            "memory_bytes": card.memory_bytes,
            "capabilities": list(card.capabilities),
            "version": site.version,
        }
    )
