"""The assistants: how each is installed, told where our server is, and asked."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

QUESTION = "Print the line that the tool prints."
NEXT = "And what did the tool print?"
PACKAGES = ("@anthropic-ai/claude-code", "@openai/codex", "opencode-ai", "@continuedev/cli")
NODE_BIN, LLM = Path("node_modules", ".bin"), Path("llm", "bin", "llm")
QUIET = {  # telemetry, updates and lists of other models
    "DISABLE_TELEMETRY": "1",
    "DISABLE_AUTOUPDATER": "1",
    "DISABLE_ERROR_REPORTING": "1",
    "OPENCODE_DISABLE_AUTOUPDATE": "1",
    "OPENCODE_DISABLE_MODELS_FETCH": "1",
    "DO_NOT_TRACK": "1",
}
# A function's module is made of this text by llm itself.
FUNCTION = """
def find_mark() -> str:
    "Return the mark."
    return "-".join(["hlwq", "was", "here"])
"""

LATE, FAILED = "ended for it took too long", "ended with exit code"

Setup = Callable[[Path, str], Mapping[str, str]]


@dataclass(frozen=True)
class Assistant:
    """A client: its program within the folder of tools, and how it is asked.

    `set_up` writes its settings into a home for a server's address and returns more of its
    environment; `first` are the arguments that ask it, `again` those that go on.
    """

    name: str
    path: str
    program: Path
    set_up: Setup
    first: Sequence[str]
    again: Sequence[str]

    def version(self, tools: Path, home: Path) -> str:
        """Return the version that the program states."""
        told = subprocess.run(
            [tools / self.program, "--version"],
            **{"env": environment(home), "capture_output": True, "text": True, "timeout": 60},
        )
        found = re.search(r"\d+(\.\d+)+", told.stdout)
        return found[0] if found else "?"

    def talk(self, tools: Path, home: Path, url: str, timeout_s: float) -> str:
        """Ask twice, in an empty folder; return what was said, and how it ended if badly."""
        settings = environment(home) | dict(self.set_up(home, url))
        work = home / "work"
        work.mkdir()
        said = ""
        for arguments in (self.first, self.again):
            try:
                told = subprocess.run(
                    [tools / self.program, *arguments],
                    cwd=work,
                    env=settings,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    timeout=timeout_s,
                )
            except subprocess.TimeoutExpired as problem:
                return f"{said}{(problem.stdout or b'').decode(errors='replace')}\n{LATE}"
            said += told.stdout.decode(errors="replace")
            if told.returncode:
                return f"{said}\n{FAILED} {told.returncode}"
        return said


def environment(home: Path) -> dict[str, str]:
    """Return the environment of an assistant: nothing of the person's but the path."""
    return {"PATH": os.environ["PATH"], "HOME": str(home), "TERM": "dumb", **QUIET}


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _claude(home: Path, url: str) -> Mapping[str, str]:
    told = {"ANTHROPIC_BASE_URL": url, "ANTHROPIC_AUTH_TOKEN": "none"}
    return {**told, "CLAUDE_CODE_ENABLE_GATEWAY_MODEL_DISCOVERY": "1"}


def _codex(home: Path, url: str) -> Mapping[str, str]:
    _write(
        home / ".codex" / "config.toml",
        f"""model = "gemma"
model_provider = "hlwq"
model_context_window = 131072
model_reasoning_effort = "high"

[model_providers.hlwq]
name = "hlwq"
base_url = "{url}/v1"
wire_api = "responses"
""",
    )
    return {}


def _opencode(package: str) -> Setup:
    def set_up(home: Path, url: str) -> Mapping[str, str]:
        limits = {"context": 131072, "output": 8192}
        provider = {
            "npm": package,
            "name": "hlwq",
            "options": {"baseURL": f"{url}/v1", "apiKey": "none"},
            "models": {"gemma": {"name": "Gemma 4", "limit": limits}},
        }
        settings = {
            "$schema": "https://opencode.ai/config.json",
            "provider": {"hlwq": provider},
            "share": "disabled",
            "autoupdate": False,
        }
        _write(home / ".config" / "opencode" / "opencode.json", json.dumps(settings))
        return {}

    return set_up


def _continue(provider: str, base: str) -> Setup:
    def set_up(home: Path, url: str) -> Mapping[str, str]:
        model = {"name": "gemma", "provider": provider, "model": "gemma", "apiKey": "none"}
        model |= {"apiBase": url + base, "roles": ["chat"], "capabilities": ["tool_use"]}
        settings = {"name": "hlwq", "version": "1.0.0", "schema": "v1", "models": [model]}
        _write(home / "continue.yaml", json.dumps(settings))
        return {}

    return set_up


def _llm(home: Path, url: str) -> Mapping[str, str]:
    _write(
        home / "llm" / "extra-openai-models.yaml",
        f"""- model_id: gemma
  model_name: gemma
  api_base: {url}/v1
  supports_tools: true
""",
    )
    _write(home / "mark.py", FUNCTION)
    told = {"LLM_USER_PATH": str(home / "llm"), "OPENAI_API_KEY": "none"}
    return {**told, "OLLAMA_HOST": url}


def _opencode_by(name: str, path: str, package: str) -> Assistant:
    ask = ("run", "--model", "hlwq/gemma")
    program = NODE_BIN / "opencode"
    return Assistant(
        name, path, program, _opencode(package), (*ask, QUESTION), (*ask, "--continue", NEXT)
    )


def _continue_by(name: str, path: str, provider: str, base: str) -> Assistant:
    ask = ("-p", "--config", "../continue.yaml", "--auto")
    program = NODE_BIN / "cn"
    return Assistant(
        name, path, program, _continue(provider, base), (*ask, QUESTION), (*ask, "--resume", NEXT)
    )


def _llm_by(name: str, path: str, model: str, *options: str) -> Assistant:
    ask = ("prompt", "-m", model, "--functions", "../mark.py", *options)
    return Assistant(name, path, LLM, _llm, (*ask, QUESTION), (*ask, "--continue", NEXT))


_CLAUDE = ("-p", "--model", "claude-gemma", "--allowedTools=Bash")
_CODEX = ("--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox")
ASSISTANTS = (
    Assistant(
        "Claude Code",
        "/v1/messages",
        NODE_BIN / "claude",
        _claude,
        (*_CLAUDE, QUESTION),
        (*_CLAUDE, "--continue", NEXT),
    ),
    Assistant(
        "Codex",
        "/v1/responses",
        NODE_BIN / "codex",
        _codex,
        ("exec", *_CODEX, QUESTION),
        ("exec", "resume", *_CODEX, "--last", NEXT),
    ),
    _opencode_by("opencode", "/v1/chat/completions", "@ai-sdk/openai-compatible"),
    _opencode_by("opencode, Messages", "/v1/messages", "@ai-sdk/anthropic"),
    _opencode_by("opencode, Responses", "/v1/responses", "@ai-sdk/openai"),
    _continue_by("Continue, provider openai", "/v1/chat/completions", "openai", "/v1"),
    _continue_by("Continue, provider ollama", "/v1/chat/completions", "ollama", ""),
    _llm_by("llm", "/v1/chat/completions", "gemma"),
    _llm_by("llm, not streamed", "/v1/chat/completions", "gemma", "--no-stream"),
    _llm_by("llm, Ollama", "/api/chat", "ollama/gemma"),
)


def install(tools: Path) -> None:
    """Install what is missing, by npm and pip as the machine has them set up."""
    tools.mkdir(parents=True, exist_ok=True)
    if not all((tools / each.program).exists() for each in ASSISTANTS if each.program != LLM):
        subprocess.run(["npm", "install", "--prefix", tools, *PACKAGES], check=True)
    if not (tools / LLM).exists():
        subprocess.run([sys.executable, "-m", "venv", tools / "llm"], check=True)
        pip = (tools / "llm/bin/python", "-m", "pip", "install", "-q")
        subprocess.run([*pip, "llm", "llm-ollama"], check=True)
