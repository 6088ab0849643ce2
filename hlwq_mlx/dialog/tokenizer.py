"""The tokenizer of a folder: text to ids and back, its chat template, and which ids end an answer.

It needs tokenizers and jinja2 alone, which take a tenth of a second to import; transformers takes
more than one. It has the methods that users of mlx-lm and transformers call most, under their
names. Any other attribute is that of transformers' own tokenizer, loaded when it is first needed.
"""

import codecs
import json
import re
from array import array
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import tokenizers

from ..disk.failures import is_there
from ..errors import CheckpointError, ConfigError, RequestError, SourceError
from . import template, trial
from .readable import readable
from .sandbox import environment
from .spelled import Spelled

FILE_NAME = "tokenizer.json"
SETTINGS = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
TURN = "<|turn>"
KNOWN_TURNS = 128
KNOWN_PIECES = 1 << 14
STOP_TOKENS = ("<eos>", "<turn|>", "<|tool_response>")
SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token", "mask_token")
# Another class would tokenize differently from how Gemma was trained.
CLASSES = (
    *("GemmaTokenizer", "GemmaTokenizerFast"),
    *("PreTrainedTokenizerFast", "TokenizersBackend"),
)
# Options of transformers' apply_chat_template that change what is rendered, or how.
_NOT_HERE = frozenset(
    (
        *("chat_template", "continue_final_message", "return_assistant_tokens_mask"),
        *("padding", "truncation", "max_length", "tokenizer_kwargs", "processor_kwargs"),
    )
)
_SAMPLE = "Hello, world! 2+2=4\n\tü🤖"
_BYTE = re.compile("<0x([0-9A-F]{2})>")


class Detokenizer:
    """Turns ids into text as they come; letters made of several byte tokens come whole."""

    def __init__(self, tokenizer: "Tokenizer") -> None:
        self._tokenizer = tokenizer
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")
        self.last_segment = ""

    def add_token(self, token: int) -> None:
        """Take an id; `last_segment` is then the text that is certain."""
        piece = self._tokenizer.piece(token)
        if isinstance(piece, bytes):
            self.last_segment = self._bytes.decode(piece)
        else:
            # A letter whose bytes are cut off by another token becomes U+FFFD.
            self.last_segment = self._bytes.decode(b"", True) + piece

    def finalize(self) -> None:
        """End the text; `last_segment` is then the rest of it."""
        self.last_segment = self._bytes.decode(b"", True)


class Tokenizer:
    """The tokenizer of a converted folder.

    `eos_token_ids` are the ids that end an answer. Special tokens (`bos_token`, `eos_token`, ...)
    are text, None where the folder states none, and have ids of the same names with `_id` behind.
    """

    def __init__(self, folder: Path, encoder: tokenizers.Tokenizer) -> None:
        self._folder = folder
        self._encoder = encoder
        # tokenizer.json may ask for both, which would change prompts.
        encoder.no_truncation()
        encoder.no_padding()
        settings = _settings_in(folder)
        self.special_tokens_map = {
            name: token for name in SPECIAL if (token := _text_of(settings.get(name))) is not None
        }
        self.chat_template = _template_in(folder, settings)
        self._cuts_turns = _cuts_turns(encoder)
        self._encode_turn = lru_cache(KNOWN_TURNS)(self._encode_new_turn)
        self.piece = lru_cache(KNOWN_PIECES)(self._read_piece)
        self.eos_token_ids = {self.eos_token_id} - {None}

    @property
    def has_chat_template(self) -> bool:
        return self.chat_template is not None

    @property
    def vocab_size(self) -> int:
        return int(self._encoder.get_vocab_size(with_added_tokens=False))

    @property
    def added_tokens_decoder(self) -> dict[int, Any]:
        return dict(self._encoder.get_added_tokens_decoder())

    @property
    def detokenizer(self) -> Detokenizer:
        """A fresh streaming detokenizer."""
        return Detokenizer(self)

    def __len__(self) -> int:
        return int(self._encoder.get_vocab_size())

    def get_vocab(self) -> dict[str, int]:
        """Return every token with its id."""
        return dict(self._encoder.get_vocab())

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Return the ids of a text, behind `<bos>` unless told not to add special tokens."""
        first, *others = text.pieces() if isinstance(text, Spelled) else [text]
        if add_special_tokens:
            ids = list(self._encoder.encode(first).ids)
        else:
            ids = self._encode_turns(first)
        for piece in others:
            ids += self._encode_turns(piece)
        return ids

    def _encode_turns(self, text: str) -> list[int]:
        """Encode turn by turn: those of a conversation come again with each prompt."""
        begin, *turns = text.split(TURN) if self._cuts_turns else [text]
        ids = list(self._encoder.encode(begin, add_special_tokens=False).ids)
        for turn in turns:
            ids += self._encode_turn(TURN + turn)
        return ids

    def _encode_new_turn(self, text: str) -> "array[int]":
        return array("I", self._encoder.encode(text, add_special_tokens=False).ids)

    def _read_piece(self, token: int) -> str | bytes:
        """Return what an id adds to a text: letters, or a byte of one."""
        byte = _BYTE.fullmatch(self.convert_ids_to_tokens(token) or "")
        return bytes.fromhex(byte[1]) if byte else self.decode([token])

    def decode(self, ids: Any, skip_special_tokens: bool = False) -> str:
        """Return the text of ids: a number, a list or an array."""
        listed = ids.tolist() if hasattr(ids, "tolist") else ids
        listed = [listed] if isinstance(listed, int) else list(listed)
        return str(self._encoder.decode(listed, skip_special_tokens=skip_special_tokens))

    def convert_tokens_to_ids(self, token: str) -> int | None:
        """Return the id of a token, None if there is no such token."""
        found: int | None = self._encoder.token_to_id(token)
        return found

    def convert_ids_to_tokens(self, number: int) -> str | None:
        """Return the token of an id, None if there is no such id."""
        found: str | None = self._encoder.id_to_token(number)
        return found

    def add_eos_token(self, token: str) -> None:
        """Add a token, by its text or its id, to those that end answers."""
        number = int(token) if token.isdigit() else self.convert_tokens_to_ids(token)
        if number is None:
            raise ValueError(f"{token!r} is no token of this tokenizer")
        self.eos_token_ids.add(number)

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = False,
        tokenize: bool = True,
        return_tensors: str | None = None,
        return_dict: bool = False,
        **variables: Any,
    ) -> Any:
        """Render messages as the commands do; thinking is off unless asked for.

        Messages and tools are repaired, and control tokens in people's texts stay text. Returns
        ids, or text when not to `tokenize`; media are placeholders in both. With `return_tensors`
        (np, pt, mlx) the ids are one row of an array, with `return_dict` they are under `input_ids`
        beside an attention_mask, as transformers returns them. `variables` are the template's.
        Raises: RequestError for messages that cannot be rendered, or another of transformers'
        options.
        """
        refused = sorted(name for name in _NOT_HERE & variables.keys() if variables[name])
        if refused:
            raise RequestError(
                "[apply_chat_template] needed tools, add_generation_prompt, tokenize, "
                "return_tensors, return_dict or the template's variables, got "
                f"{', '.join(refused)}. Leave it out."
            )
        rendered = template.render(
            self,
            messages,
            tools=tools,
            options={name: variables[name] for name in variables.keys() - _NOT_HERE},
            add_generation_prompt=add_generation_prompt,
        )
        text = Spelled(readable(rendered.text), rendered.breaks)
        if not tokenize:
            return text
        return _as_asked(self.encode(text, add_special_tokens=False), return_tensors, return_dict)

    def render_as_given(self, messages: Any, tools: Any, **variables: Any) -> str:
        """Apply the template to what `dialog.template` made of messages and tools."""
        variables = {**self.special_tokens_map} | variables
        return str(self._template.render(messages=messages, tools=tools, **variables))

    @cached_property
    def _template(self) -> Any:
        text = self.chat_template
        if isinstance(text, Mapping):
            text = text.get("default", next(iter(text.values())))
        return environment().from_string(text)

    @cached_property
    def _tokenizer(self) -> Any:
        """transformers' own tokenizer of the folder."""
        from transformers import AutoTokenizer, PreTrainedConfig

        # Our model type is none of transformers'; a neutral config keeps it from being looked up.
        return AutoTokenizer.from_pretrained(
            self._folder, config=PreTrainedConfig(), trust_remote_code=False
        )

    def __call__(self, text: Any, *args: Any, **options: Any) -> Any:
        """Encode as transformers' tokenizer does, a text or several."""
        texts = text if isinstance(text, list | tuple) else [text]
        if any(isinstance(each, Spelled) and each.breaks for each in texts):
            pieces = [each.pieces() if isinstance(each, Spelled) else [each] for each in texts]
            text = pieces[0] if isinstance(text, str) else pieces
            options = options | {"is_split_into_words": True}
        return self._tokenizer(text, *args, **options)

    def __getattr__(self, name: str) -> Any:
        base = name.removesuffix("_id")
        if base in SPECIAL:
            token = self.special_tokens_map.get(base)
            wanted = name != base
            return self._encoder.token_to_id(token) if wanted and token is not None else token
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._tokenizer, name)


def token_bytes(tokenizer: Tokenizer, id: int) -> bytes:
    """Return what a token adds to a text, which may be a part of a letter."""
    byte = _BYTE.fullmatch(tokenizer.convert_ids_to_tokens(id) or "")
    return bytes.fromhex(byte[1]) if byte else tokenizer.decode([id]).encode()


def _cuts_turns(encoder: tokenizers.Tokenizer) -> bool:
    """Return whether no token can span the beginning of a turn."""
    added = {token.content: token for token in encoder.get_added_tokens_decoder().values()}
    return TURN in added and not (
        added[TURN].lstrip or any(TURN[0] in content[1:] for content in added)
    )


def _as_asked(ids: list[int], return_tensors: str | None, return_dict: bool) -> Any:
    """Return the ids of a prompt in one of the forms of transformers' `apply_chat_template`."""
    if return_tensors is None and not return_dict:
        return ids
    from transformers import BatchEncoding

    values = {"input_ids": ids, "attention_mask": [1] * len(ids)}
    is_row = return_tensors is not None
    encoded = BatchEncoding(values, tensor_type=return_tensors, prepend_batch_axis=is_row)
    return encoded if return_dict else encoded["input_ids"]


def _settings_in(folder: Path) -> dict[str, Any]:
    """Read what a folder says of its tokenizer; later files add to earlier ones."""
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", SETTINGS):
        path = folder / name
        if path.is_file():
            settings |= json.loads(path.read_text(encoding="utf-8"))
    for number, token in settings.get("added_tokens_decoder", {}).items():
        if not str(number).isdigit() or _text_of(token) is None:
            raise ValueError(f"{token!r} as the added token {number!r}")
    return settings


def _text_of(token: Any) -> str | None:
    """Return a special token's text, which files give by itself or as an object."""
    content = token.get("content") if isinstance(token, Mapping) else token
    return content if isinstance(content, str) else None


def _template_in(folder: Path, settings: Mapping[str, Any]) -> Any:
    """Return the chat template: the file's, or the settings', which may be several by name."""
    path = folder / TEMPLATE
    if path.is_file():
        return path.read_text(encoding="utf-8")
    found = settings.get("chat_template")
    if isinstance(found, list) and all(isinstance(each, Mapping) for each in found):
        return {str(each.get("name")): each.get("template") for each in found}
    return found


def load_tokenizer(
    folder: Path, configs: Iterable[Mapping[str, Any]] = (), passed: Collection[str] = ()
) -> Tokenizer:
    """Load the tokenizer of a model folder.

    `configs` are the folder's parsed config files, each of which may name stop ids; `passed` are
    digests of chat templates that were tried before. Nothing in the folder is executed.
    Raises: SourceError when there is no tokenizer.json; CheckpointError when a file is damaged, or
    the chat template takes too long or too much memory; ConfigError for stop ids that are no ids.
    """
    path = folder / FILE_NAME
    if not is_there(path):
        raise SourceError(
            f"[{folder}] needed {FILE_NAME}, got none. "
            "Copy the tokenizer files of the original model into the folder it was made of, and "
            "convert the model again."
        )
    try:
        tokenizer = Tokenizer(folder, tokenizers.Tokenizer.from_file(str(path)))
        _require_same_text(tokenizer)
    except Exception as problem:
        raise _damaged(folder, problem) from problem
    trial.require_harmless(trial.templates_of(tokenizer), passed, folder / TEMPLATE)
    tokenizer.eos_token_ids = stop_ids(tokenizer, configs)
    return tokenizer


def _require_same_text(tokenizer: Tokenizer) -> None:
    """Raise ValueError unless ids of a text give the text again."""
    got = tokenizer.decode(tokenizer.encode(_SAMPLE, add_special_tokens=False))
    if got != _SAMPLE:
        raise ValueError(f"{got!r} for {_SAMPLE!r}")


def _damaged(folder: Path, problem: Exception) -> CheckpointError:
    got = " ".join(f"{type(problem).__name__}: {problem}".split())[:200]
    return CheckpointError(
        f"[{folder / FILE_NAME}] needed the tokenizer of a Gemma 4, with tokenizer_config.json "
        f"beside it, got {got}. Fetch both files again."
    )


def stop_ids(tokenizer: Tokenizer, configs: Iterable[Mapping[str, Any]]) -> set[int]:
    """Return the ids that end an answer: those that any config states, and Gemma 4's own markers.

    Raises: ConfigError as `stated_ids`.
    """
    found = set(tokenizer.eos_token_ids)
    for config in configs:
        found |= stated_ids(config)
    vocabulary = tokenizer.get_vocab()
    return found | {vocabulary[token] for token in STOP_TOKENS if token in vocabulary}


def stated_ids(config: Mapping[str, Any], where: str = "config.json") -> set[int]:
    """Return the stop ids that a config states: one, several or none.

    Raises: ConfigError for anything else.
    """
    stated = config.get("eos_token_id")
    listed = stated if isinstance(stated, list) else [] if stated is None else [stated]
    if not all(type(token) is int and token >= 0 for token in listed):
        raise ConfigError(
            f"[{where}] needed token ids as eos_token_id, got {str(stated)[:80]!r}. "
            "Fetch the file again."
        )
    return set(listed)


def require_token_texts(settings: Mapping[str, Any], where: str) -> None:
    """Refuse settings whose special tokens are neither text nor objects with text.

    Raises: ConfigError.
    """
    for name in SPECIAL:
        stated = settings.get(name)
        if stated is not None and _text_of(stated) is None:
            raise ConfigError(
                f"[{where}] needed text as {name}, got {str(stated)[:80]!r}. "
                "Take the tokenizer files of the original model."
            )


def require_gemma_class(settings: Mapping[str, Any], where: str) -> None:
    """Refuse the settings of another kind of tokenizer.

    Raises: ConfigError.
    """
    named = settings.get("tokenizer_class")
    if named is not None and named not in CLASSES:
        raise ConfigError(
            f"[{where}] needed {CLASSES[0]} as tokenizer_class, got {str(named)[:80]!r}. "
            "Take the tokenizer files of the original model."
        )
