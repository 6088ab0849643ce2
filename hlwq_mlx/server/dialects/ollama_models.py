"""What Ollama's clients ask about models: GET / and /api/version, tags, ps, show and pull.

Every answer is made of the server's one model. `show` tells of it whatever name is asked for, as
any name is answered; `pull` knows the names that the lists tell.
Source: the server's specification, sections 2.4 and 2.6.
"""

import math

from ...errors import RequestError
from ..model_card import ModelCard
from .dialect import JSON
from .fields import Body, Flag, read_fields
from .ollama_options import line, rfc3339
from .openai_form import Form

GREETING = "Ollama is running"
VERSION = "0.12.6"  # of Ollama's API: clients ask for 0.6.4 at least
LATEST = ":latest"
NEVER = "9999-12-31T23:59:59Z"


class Named(Body):
    """A request about a model; older clients say name."""

    model: str = ""
    name: str = ""
    stream: Flag = True


def version() -> JSON:
    """Return the answer of /api/version."""
    return {"version": VERSION}


def tags(card: ModelCard) -> JSON:
    """Return the answer of /api/tags: the models there are."""
    return {"models": [_listed(card)]}


def ps(card: ModelCard, expires: float = math.inf) -> JSON:
    """Return the answer of /api/ps: the models that are loaded, until `expires` in Unix seconds."""
    if not card.memory_bytes:
        return {"models": []}
    until = NEVER if math.isinf(expires) else rfc3339(expires)
    loaded = {"size": card.memory_bytes, "size_vram": card.memory_bytes, "expires_at": until}
    return {"models": [{**_listed(card), **loaded, "context_length": card.context}]}


def show(card: ModelCard) -> JSON:
    """Return the answer of /api/show.

    Continue reads `parameters` line by line and takes no line that is not a name and a value.
    """
    return {
        "modelfile": f"FROM {card.name}\nPARAMETER num_ctx {card.context}\n",
        "parameters": f"num_ctx {card.context}",
        "template": "{{ .Prompt }}",
        "details": _details(card),
        "model_info": {
            "general.architecture": card.family,
            "general.basename": card.name,
            "general.parameter_count": card.parameters,
            f"{card.family}.context_length": card.context,
        },
        "capabilities": list(card.capabilities),
        "modified_at": rfc3339(card.created),
    }


def pull(card: ModelCard, body: JSON) -> tuple[bytes, bool]:
    """Return the answer of /api/pull, and whether it is a stream.

    Raises: RequestError for any model but the one that is here.
    """
    asked = read_fields(Named, body)
    wanted = asked.model or asked.name
    if wanted.removesuffix(LATEST) not in (card.name, card.claude_name):
        raise RequestError(
            f"[model] needed {card.name}, got {wanted[:80]!r}. This server has the model that it "
            "was started with and fetches no other."
        )
    stages = ["pulling manifest", "success"] if asked.stream else ["success"]
    return b"".join(line({"status": stage}) for stage in stages), asked.stream


def _listed(card: ModelCard) -> Form:
    return {
        "name": card.name + LATEST,
        "model": card.name + LATEST,
        "modified_at": rfc3339(card.created),
        "size": card.size_bytes,
        "digest": card.digest,
        "details": _details(card),
    }


def _details(card: ModelCard) -> Form:
    return {
        "parent_model": "",
        "format": "mlx",
        "family": card.family,
        "families": [card.family],
        "parameter_size": _size(card.parameters),
        "quantization_level": card.variant,
    }


def _size(parameters: int) -> str:
    """Return a number of parameters as Ollama writes it."""
    billions = parameters / 1e9
    return f"{billions:.1f}B" if billions >= 1 else f"{parameters / 1e6:.2f}M"
