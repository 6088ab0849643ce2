"""Make mlx-lm's server survive every request, and serve the one model that it was started with.

mlx-lm 0.32.2 generates in a single thread. What raises there outside of a `try` ends the thread:
the server stays up and answers nobody. Its own check lets some of that pass, which is refused here
with status 400. Prompts and answers may have any length there. It also loads whatever model,
adapter or draft a client names, from the disk or the hub, in the place of the one it was started
with; here that one answers to every name.
"""

import inspect
import io
import json
import logging
import math
import urllib.parse
from collections.abc import Callable
from functools import cached_property, partial, wraps
from types import ModuleType
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..dialog.messages import normalize_messages, normalize_tools
from ..dialog.readable import readable
from ..engine.finite import not_finite
from ..engine.sampling import Sampling
from ..errors import CheckpointError, RequestError
from .patches import replace

logger = logging.getLogger("hlwq_mlx")

DEFAULT_MODEL = "default_model"  # mlx-lm's name for the model of --model
MODELS_PATH = "/v1/models"
COMPLETIONS_PATH = "/v1/completions"

# Where mlx-lm's own limits are missing, wider than what a sampler or an array takes, or let a
# number pass that is none. Those of temperature, top_p and min_p are Sampling's.
LIMITS = {
    "repetition_penalty": (0.0, 100.0),
    "presence_penalty": (-100.0, 100.0),
    "frequency_penalty": (-100.0, 100.0),
    "repetition_context_size": (0, 1 << 20),
    "presence_context_size": (0, 1 << 20),
    "frequency_context_size": (0, 1 << 20),
    "xtc_probability": (0.0, 1.0),
    "xtc_threshold": (0.0, 0.5),
}
LARGEST_BIAS = 100.0
LARGEST_BODY = 512 << 20  # bytes; a medium of the largest size as base64 has room
# These are no variables of a template, but say what else becomes of it: other text, other types.
_CALL_OPTIONS = frozenset(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters)


def patch_server(server: ModuleType, vocab_size: int, context: int, name: str) -> None:
    """Replace the server's functions.

    No prompt and no answer is longer than `context`; `name` is what a list of its models says.
    Raises: DeviceError for an mlx-lm whose functions are others.
    """
    handler, provider = server.APIHandler, server.ModelProvider
    check_options = partial(validator, vocab_size=vocab_size, context=context)
    tokenize = partial(bounded_tokenize, context=context)
    list_models = models_handler(name)
    replace(server, "make_sampler", "top_k", partial(bounded_make_sampler, vocab_size=vocab_size))
    replace(handler, "validate_model_parameters", "self", check_options)
    replace(handler, "do_POST", "self", reading_post)
    replace(handler, "handle_models_request", "self", lambda _: list_models)
    replace(server.ResponseGenerator, "_tokenize", "self tokenizer request args", tokenize)
    replace(provider, "load", "self model_path adapter_path draft_model_path", load_default)
    watch = FiniteWatch()
    replace(server, "load", "path_or_hf_repo", watch.remembering)
    replace(server, "Response", "text token logprob finish_reason top_tokens", watch.checking)


def bounded_make_sampler(original: Callable[..., Any], vocab_size: int) -> Callable[..., Any]:
    """Wrap mlx-lm's `make_sampler` so that every top_k can be served."""

    @wraps(original)
    def make_sampler(*args: Any, top_k: int = 0, **options: Any) -> Any:
        return original(*args, top_k=top_k if top_k < vocab_size else 0, **options)

    return make_sampler


def reading_post(original: Callable[[Any], None]) -> Callable[[Any], None]:
    """Wrap the reading of a request's body: refuse a bad one with status 400, drop what is null.

    mlx-lm takes any length into memory, leaves without an answer what is no text or brackets in
    brackets without end, and refuses the null by which clients leave an option open.
    """

    @wraps(original)
    def do_POST(self: Any) -> None:
        connection = self.rfile
        try:
            body = read_body(self)
        except RequestError as problem:
            self._set_completion_headers(400)
            self.end_headers()
            self.wfile.write(json.dumps({"error": str(problem)}).encode())
            return
        self.headers.replace_header("Content-Length", str(len(body)))
        self.rfile = io.BytesIO(body)
        try:
            original(self)
        except CheckpointError as problem:
            report_broken(self, problem)
        finally:
            self.rfile = connection

    return do_POST


def report_broken(handler: Any, problem: CheckpointError) -> None:
    """Send the client, amid its answer, an error: the model cannot give one."""
    logger.error("%s", problem)
    error = json.dumps({"error": {"message": str(problem), "code": 500}}).encode()
    if handler.stream:
        handler.wfile.write(b"data: " + error + b"\n\n")
        return
    handler._headers_buffer = []  # of a success, not sent yet
    handler._set_completion_headers(500)
    handler.end_headers()
    handler.wfile.write(error)


class FiniteWatch:
    """Ends an answer as soon as scores of the loaded model are not finite.

    What mlx-lm's generation thread puts in the place of a piece, if it is an exception, is raised
    where the request is answered; raised in the thread, it would end that.
    """

    def __init__(self) -> None:
        self._model: Any = None

    @cached_property
    def problem(self) -> CheckpointError:
        """The error that names the first bad tensor."""
        return not_finite(self._model)

    def remembering(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap mlx-lm's `load` so that the model it loads is the one watched."""

        @wraps(original)
        def load(*args: Any, **options: Any) -> Any:
            loaded = original(*args, **options)
            self._model = loaded[0]
            return loaded

        return load

    def checking(self, piece: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap mlx-lm's `Response` so that a score that is not finite gives the problem instead."""

        @wraps(piece)
        def response(text: str, token: int, logprob: float, *more: Any) -> Any:
            return piece(text, token, logprob, *more) if math.isfinite(logprob) else self.problem

        return response


def read_body(handler: Any) -> bytes:
    """Read a request's body and return it without the options that are null.

    Raises: RequestError for a body that is no JSON object, or too long.
    """
    length = handler.headers.get("Content-Length", "")
    if not length.isdecimal() or int(length) > LARGEST_BODY:
        raise RequestError(
            f"[Content-Length] needed up to {LARGEST_BODY} bytes, got {length or 'nothing'}. "
            "Say how long the body is, and send less."
        )
    try:
        body = json.loads(handler.rfile.read(int(length)))
    except (ValueError, RecursionError) as problem:
        raise RequestError(
            f"[request] needed a JSON object, got: {problem}. Correct the body."
        ) from problem
    if not isinstance(body, dict):
        raise RequestError(
            f"[request] needed a JSON object, got {str(body)[:60]!r}. Name each option."
        )
    given = {name: value for name, value in body.items() if value is not None}
    try:
        return json.dumps(readable(given)).encode()
    except RecursionError as problem:
        raise RequestError(
            "[request] needed values within fewer others, got a body nested too deep. Flatten it."
        ) from problem


def bounded_tokenize(original: Callable[..., Any], context: int) -> Callable[..., Any]:
    """Wrap mlx-lm's `_tokenize` so that it refuses a prompt that there is no room for."""

    @wraps(original)
    def tokenize(self: Any, *request: Any) -> Any:
        found = original(self, *request)
        if len(found[0]) > context:
            raise RequestError(
                f"[prompt] needed at most {context} tokens, for which there is room, got "
                f"{len(found[0])}. Shorten the conversation, or begin a new one."
            )
        return found

    return tokenize


def load_default(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the provider's `load` so that every name means the model of --model."""

    @wraps(original)
    def load(self: Any, *names: str | None) -> Any:
        return original(self, DEFAULT_MODEL, None, DEFAULT_MODEL)

    return load


def models_handler(name: str) -> Callable[[Any], None]:
    """Return a function that answers GET /v1/models, and /v1/models/NAME for any name.

    mlx-lm lists the hub's cache, and fails where there is none.
    """

    def handle_models_request(self: Any) -> None:
        path = urllib.parse.urlsplit(self.path).path
        asked = urllib.parse.unquote(path.removeprefix(MODELS_PATH).strip("/"))
        model = {
            "id": asked or name,
            "object": "model",
            "created": self.created,
            "owned_by": "hlwq_mlx",
        }
        answer = model if asked else {"object": "list", "data": [model]}
        self._set_completion_headers(200)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    return handle_models_request


def validator(
    original: Callable[[Any], None], vocab_size: int, context: int
) -> Callable[[Any], None]:
    """Wrap the handler's check of a request, which it answers with status 400 when that raises."""

    @wraps(original)
    def validate_model_parameters(self: Any) -> None:
        try:
            original(self)
        except (TypeError, OverflowError) as problem:
            raise RequestError(
                f"[logit_bias] needed a number for each token id, got: {problem}. Correct it."
            ) from problem
        check(self, vocab_size)
        self.max_tokens = min(self.max_tokens, context)

    return validate_model_parameters


def check(request: Any, vocab_size: int) -> None:
    """Refuse what would end the generation thread, and fill in missing stream_options.

    `request` is mlx-lm's handler, which has read the options from the request's `body`.
    Raises: RequestError.
    """
    Sampling(temp=request.temperature, top_p=request.top_p, min_p=request.min_p)
    for name, (low, high) in LIMITS.items():
        _check_number(name, getattr(request, name), low, high)
    for token, bias in (request.logit_bias or {}).items():
        _check_number("logit_bias", token, 0, vocab_size - 1)
        _check_number("logit_bias", bias, -LARGEST_BIAS, LARGEST_BIAS)
    _check_text(request)
    _check_stop(request.body.get("stop") or [])
    _check_template_options(request.chat_template_kwargs or {})
    if request.adapter is not None or request.requested_draft_model not in (None, DEFAULT_MODEL):
        raise RequestError(
            "[adapters] needed no adapters and no draft_model, got one of them. This server has "
            "the model that it was started with and no other."
        )
    options = request.stream_options or {}
    if not isinstance(options, dict):
        raise RequestError(f"[stream_options] needed an object, got {options!r}. Correct it.")
    request.stream_options = {"include_usage": False, **options}


def _check_number(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # as it is for what is no number
        raise RequestError(
            f"[{name}] needed {low} to {high}, got {value}. Choose a value between them."
        )


def _check_text(request: Any) -> None:
    """Refuse a prompt that is not one text, and messages and tools that are none."""
    if request.path == COMPLETIONS_PATH:
        prompt = request.body.get("prompt")
        if not isinstance(prompt, str) or not prompt:
            raise RequestError(
                f"[prompt] needed one text, got {str(prompt)[:60]!r}. Send a request for each."
            )
        return
    messages = request.body.get("messages")
    if (
        not isinstance(messages, list)
        or not messages
        or not all(isinstance(each, dict) for each in messages)
    ):
        raise RequestError(
            f"[messages] needed a list of objects with role and content, got "
            f"{str(messages)[:60]!r}. Correct it."
        )
    normalize_messages(messages)
    normalize_tools(request.body.get("tools"))


def _check_stop(stop: Any) -> None:
    words = [stop] if isinstance(stop, str) else stop
    if not isinstance(words, list) or not all(isinstance(word, str) and word for word in words):
        raise RequestError(
            f"[stop] needed text or a list of texts, none empty, got {stop!r}. Correct it."
        )


def _check_template_options(options: Any) -> None:
    if not isinstance(options, dict):
        raise RequestError(f"[chat_template_kwargs] needed an object, got {options!r}. Correct it.")
    refused = sorted(options.keys() & _CALL_OPTIONS)
    if refused:
        raise RequestError(
            f"[chat_template_kwargs] needed variables of the template, got {', '.join(refused)}. "
            "Leave these out."
        )
