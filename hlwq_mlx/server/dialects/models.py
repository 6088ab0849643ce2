"""The list of models, in one shape for OpenAI's and Anthropic's clients: GET /v1/models.

And what this model cannot do, in every dialect.

Other clients read the context's length under other names: LM Studio's, vLLM's, Anthropic's.
"""

from datetime import UTC, datetime
from typing import Any, NoReturn

from ...errors import UnsupportedError
from ..model_card import ModelCard
from .dialect import JSON

OWNER = "hlwq_mlx"


def list_models(card: ModelCard) -> JSON:
    """Return the list: the model, and its name for Claude Code."""
    models = [model(card, name) for name in dict.fromkeys([card.name, card.claude_name])]
    return {
        "object": "list",
        "data": models,
        "has_more": False,
        "first_id": models[0]["id"],
        "last_id": models[-1]["id"],
    }


def model(card: ModelCard, name: str = "") -> dict[str, Any]:
    """Return the model under the name that a client uses: this server answers to any."""
    created_at = datetime.fromtimestamp(int(card.created), UTC)
    return {
        "id": name or card.name,
        "object": "model",
        "type": "model",
        "created": int(card.created),
        "created_at": created_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "display_name": card.display_name,
        "owned_by": OWNER,
        "lifecycle": "active",
        "quantization": card.variant,
        "context_length": card.context,
        "loaded_context_length": card.context,
        "max_context_length": card.context,
        "max_model_len": card.context,
        "max_input_tokens": card.context,
    }


def refuse_embeddings() -> NoReturn:
    """Raise what a request for embeddings gets.

    Raises: UnsupportedError.
    """
    raise UnsupportedError(
        "[embeddings] needed a model that makes embeddings, got Gemma 4, which writes answers. "
        "Run another server for embeddings."
    )
