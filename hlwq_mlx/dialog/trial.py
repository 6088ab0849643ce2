"""Decide whether a chat template, which comes from the model's folder, may be rendered here.

jinja2's sandbox keeps a template from files and code, but not from looping for ever or using up the
memory. So an unknown template is rendered once in a child process with limits. Callers may keep the
digests of templates that passed.
"""

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..disk import child
from ..errors import CheckpointError

if TYPE_CHECKING:
    from .tokenizer import Tokenizer

LIMITS = child.Limits(cpu_s=2, memory_bytes=1 << 29)
_SHIPPED = Path(__file__).parents[1] / "demo" / "chat_template.jinja"
_SHOWN = 200


def digest(text: str) -> str:
    """Return the SHA-256 of a template, in hexadecimal."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def templates_of(tokenizer: "Tokenizer") -> Mapping[str, str]:
    """Return the templates that a tokenizer would render, by name.

    Raises: CheckpointError for templates that are no text.
    """
    found = tokenizer.chat_template
    if found is None:
        return {}
    templates = found if isinstance(found, Mapping) else {"default": found}
    if not all(isinstance(text, str) for text in templates.values()):
        raise CheckpointError(
            f"[tokenizer_config.json] needed text as chat_template, got {str(found)[:_SHOWN]!r}. "
            "Take the tokenizer files of the original model."
        )
    return templates


def require_harmless(
    templates: Mapping[str, str], passed: Collection[str], where: object
) -> list[str]:
    """Try every template whose digest is not among `passed`, and return all digests.

    Raises: CheckpointError for a template that fails, or needs more than the limits.
    """
    digests = {name: digest(text) for name, text in templates.items()}
    known = {*passed, digest(_SHIPPED.read_text(encoding="utf-8"))}
    for name, text in templates.items():
        if digests[name] not in known:
            _try(text, where)
    return sorted(digests.values())


def _try(text: str, where: object) -> None:
    try:
        script = Path(__file__).with_name("sandbox.py")
        fault = child.run(script, text.encode("utf-8", "surrogatepass"), LIMITS).decode()
    except child.Ended as problem:
        fault = str(problem)
    if fault:
        raise CheckpointError(
            f"[{where}] needed a chat template that renders a question, got "
            f"{' '.join(fault.split())[:_SHOWN]}. Put the model's own template there."
        )
