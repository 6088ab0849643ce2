"""What the server tells of its one model; every dialect's lists of models are made of it."""

from collections.abc import Sequence
from dataclasses import dataclass

CLAUDE = "claude-"  # Claude Code looks for models named so, and for no others


@dataclass(frozen=True)
class ModelCard:
    """The facts of a model.

    `context` is how many tokens of prompt and answer really fit. `capabilities` are Ollama's words:
    completion, tools, thinking, vision, audio. `digest` is 64 hexadecimal digits that identify the
    folder. `memory_bytes` is what is loaded, 0 while nothing is.
    """

    name: str
    variant: str
    context: int
    created: float
    capabilities: Sequence[str] = ("completion", "tools", "thinking")
    parameters: int = 0
    size_bytes: int = 0
    memory_bytes: int = 0
    digest: str = "0" * 64
    family: str = "gemma4"

    @property
    def display_name(self) -> str:
        """The name that a person reads, with the variant."""
        return f"{self.name} {self.variant}"

    @property
    def claude_name(self) -> str:
        """The name under which Claude Code finds the model."""
        return self.name if self.name.startswith(CLAUDE) else CLAUDE + self.name
