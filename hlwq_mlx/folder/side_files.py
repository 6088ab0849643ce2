"""The files that a model folder carries beside its weights: copied clean, and opened to be sure.

Tokenizer, chat template, generation and processor files are read by other libraries, which answer
damage with tracebacks and some keys with running code. So nothing is copied that is not known,
keys that name code or files are left out, and every file is opened here first, by what will read it
later. A folder that someone changed since is refused in one line that names the file.
"""

import json
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from types import NoneType
from typing import Any

from ..dialog import tokenizer, trial
from ..disk import failures
from ..disk.atomic import place, scratch
from ..disk.fields import shown
from ..disk.jsonfile import read_json
from ..engine.sampling import Sampling
from ..errors import (
    CheckpointError,
    ConfigError,
    DeviceError,
    HLWQError,
    RequestError,
    SourceError,
    naming,
)
from ..gemma4.config import Gemma4Config
from ..gemma4.drafter_config import is_drafter
from ..media.processor import Processor
from ..source.code_keys import CODE_KEYS, without_code
from ..source.locate import find_local, local_path
from ..source.repository import Source
from .folder import CONFIG, GENERATION, Folder
from .manifest import TEMPLATES_KEY

TEMPLATE = "chat_template.jinja"
TOKENIZER = tokenizer.FILE_NAME
SENTENCEPIECE = "tokenizer.model"
SETTINGS = "tokenizer_config.json"
SPECIAL_TOKENS = "special_tokens_map.json"
# Vocabularies: a token may be called like a key that names code.
_VOCABULARIES = (TOKENIZER, "added_tokens.json")
_PROCESSORS = (
    *("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json"),
)
_JSON = (
    *(SETTINGS, SPECIAL_TOKENS, GENERATION, *_PROCESSORS, "chat_template.json"),
    *_VOCABULARIES[1:],
)
# What sampling options are called in the file.
_OPTIONS = {"temperature": "temp", "top_p": "top_p", "top_k": "top_k", "min_p": "min_p"}
_LARGEST_BYTES = 1 << 28  # Gemma 4's tokenizer.json has 33 MB


@dataclass(frozen=True)
class Copied:
    """Warnings about copied files, and digests of the chat templates that were tried."""

    warnings: tuple[str, ...]
    templates: tuple[str, ...] = ()


def copy_side_files(source: Source, folder: Path) -> Copied:
    """Copy a source's files into a folder, without keys that name code, and open them there.

    A folder that has no tokenizer.json gets one made of its tokenizer.model. A drafter reads and
    writes what its model's tokenizer says, and needs none.
    Raises: SourceError, CheckpointError or ConfigError naming the file that cannot be used.
    """
    if is_drafter(source.config):
        return Copied(())
    for path in source.side_files:
        (folder / path.name).write_bytes(cleaned(path))
    try:
        return _open_copies(source, folder)
    except HLWQError as problem:  # the copies are gone when someone reads it
        raise type(problem)(str(problem).replace(str(folder), str(source.root))) from problem


def _open_copies(source: Source, folder: Path) -> Copied:
    model, made = folder / SENTENCEPIECE, folder / TOKENIZER
    if model.exists() and not made.exists():
        from ..dialog import sentencepiece_model  # few folders need it

        settings = _object_in(folder / SETTINGS)
        text = sentencepiece_model.to_tokenizer_json(model.read_bytes(), settings, model)
        made.write_text(text, encoding="utf-8")
    check(folder)
    with naming(source.config_path):
        size = Gemma4Config.from_dict(source.config).text_config.vocab_size
    generation = _object_in(folder / GENERATION)
    _require_known_stops(source.config_path, source.config, size)
    _require_known_stops(folder / GENERATION, generation, size)
    if not made.exists():
        lacking = f"{source.root} has no tokenizer files; add them to the folder before generating"
        return Copied((lacking,))
    opened = tokenizer.load_tokenizer(folder, [source.config])
    _require_known_tokens(opened, size)
    return Copied((), tuple(map(trial.digest, trial.templates_of(opened).values())))


def examine(model: str, variant: str | None) -> tuple[str, ...]:
    """Open the side files of a model that is on this machine, and return what is odd about them.

    Raises: as `copy_side_files`.
    """
    folder = Folder.find(local_path(model))
    if folder is not None:
        if not (folder.path / TOKENIZER).exists():
            _check_folder(folder)
            return (f"{folder.path} has no tokenizer.json",)
        open_tokenizer(folder)
        return ()
    local = find_local(model, variant)
    return try_out(Source(*local)) if local else ()


def try_out(source: Source) -> tuple[str, ...]:
    """Open temporary copies of a source's side files, and return the warnings.

    Raises: as `copy_side_files`; DeviceError when there is no room for them.
    """
    try:
        with TemporaryDirectory() as folder:
            return copy_side_files(source, Path(folder)).warnings
    except OSError as problem:
        raise DeviceError(
            f"[{gettempdir()}] needed room to open copies of {source.root}'s files, got "
            f"{failures.cause(problem)}. {failures.advice(problem)} TMPDIR names one."
        ) from problem


def open_tokenizer(folder: Folder) -> tokenizer.Tokenizer:
    """Check the side files of a converted folder and return its tokenizer.

    Raises: as `copy_side_files`; SourceError when there is no tokenizer.json.
    """
    _check_folder(folder)
    configs = folder.config, folder.generation
    tried = folder.manifest.get(TEMPLATES_KEY, ())
    opened = tokenizer.load_tokenizer(folder.path, configs, tried)
    _require_known_tokens(opened, folder.args.text_config.vocab_size)
    return opened


def _check_folder(folder: Folder) -> None:
    """Check the side files of a converted folder, and what its config says of code and stop ids.

    Raises: as `check`.
    """
    _require_no_code(folder.path / CONFIG, folder.config)
    check(folder.path)
    size = folder.args.text_config.vocab_size
    _require_known_stops(folder.path / CONFIG, folder.config, size)
    _require_known_stops(folder.path / GENERATION, folder.generation, size)


def cleaned(path: Path) -> bytes:
    """Return a file's content without the keys that name code or other files.

    Raises: SourceError when it is no file, or too large, or not the JSON that it should be.
    """
    content = _content(path)
    if path.suffix != ".json" or path.name in _VOCABULARIES:
        return content
    found = read_json(path)
    clean = without_code(found)
    if clean == found:
        return content
    return (json.dumps(clean, indent=1, ensure_ascii=False) + "\n").encode()


def add_files(paths: Iterable[Path], folder: Path) -> None:
    """Copy files into a folder that lacks them; each appears whole or not at all.

    Raises: DeviceError when the disk does not take them; SourceError for what is no such file.
    """
    for path in paths:
        output = folder / path.name
        if not output.exists():
            with scratch(output) as beside:
                (beside / path.name).write_bytes(cleaned(path))
                place(beside / path.name, output)


def check(folder: Path) -> None:
    """Open every side file of a folder but for the tokenizer, which takes longer.

    Raises: SourceError, CheckpointError or ConfigError naming the file that cannot be used.
    """
    settings = {name: _object_in(folder / name) for name in _JSON}
    for name in settings.keys() - {*_VOCABULARIES}:
        _require_no_code(folder / name, settings[name])
    tokenizer.require_gemma_class(settings[SETTINGS], SETTINGS)
    for name in (SETTINGS, SPECIAL_TOKENS):
        tokenizer.require_token_texts(settings[name], name)
    tokenizer.stated_ids(settings[GENERATION], GENERATION)
    _check_sampling(settings[GENERATION])
    if (folder / TEMPLATE).exists():
        _check_template(folder / TEMPLATE)
    if (folder / SENTENCEPIECE).exists():
        from ..dialog import sentencepiece_model  # as above

        sentencepiece_model.read_model(_content(folder / SENTENCEPIECE), SENTENCEPIECE)
    if (folder / TOKENIZER).exists():
        _content(folder / TOKENIZER)
    _check_processors(folder)


def _check_sampling(settings: Mapping[str, Any]) -> None:
    """Refuse sampling options that cannot be followed, by the file's own keys.

    Raises: ConfigError.
    """
    for key, option in _OPTIONS.items():
        try:
            Sampling().override(**{option: settings.get(key)})
        except RequestError as problem:
            needed = str(problem).removeprefix(f"[{option}]")
            raise ConfigError(f"[{GENERATION}: {key}]{needed}") from problem
    if type(settings.get("do_sample")) not in (bool, NoneType):
        raise ConfigError(
            f"[{GENERATION}: do_sample] needed true or false, got {shown(settings['do_sample'])}. "
            "Fetch the file again."
        )


def _require_known_stops(path: Path, config: Mapping[str, Any], size: int) -> None:
    """Refuse a config whose stop ids the model does not have.

    Raises: ConfigError.
    """
    nested = config.get("text_config")
    for section in (config, nested if isinstance(nested, Mapping) else {}):
        beyond = sorted(each for each in tokenizer.stated_ids(section, str(path)) if each >= size)
        if beyond:
            raise ConfigError(
                f"[{path}: eos_token_id] needed 0 to {size - 1} as the vocabulary has, got "
                f"{beyond[0]}. Fetch the file again."
            )


def _require_no_code(path: Path, settings: Mapping[str, Any]) -> None:
    """Refuse a file with a key that other libraries would run code for.

    Raises: SourceError.
    """
    if settings != without_code(settings):
        raise SourceError(
            f"[{path}] needed no key that names code or other files, got one of "
            f"{', '.join(sorted(CODE_KEYS))}. Nothing in a model folder is executed: remove it."
        )


def _object_in(path: Path) -> dict[str, Any]:
    """Read a JSON object; empty when there is no such file."""
    if not path.exists():
        return {}
    _content(path)
    return read_json(path)


def _content(path: Path) -> bytes:
    """Read a regular file of at most _LARGEST_BYTES.

    Raises: SourceError.
    """
    try:
        found = path.stat()
        if stat.S_ISREG(found.st_mode) and found.st_size <= _LARGEST_BYTES:
            return path.read_bytes()
    except OSError as problem:
        raise SourceError(
            f"[{path}] needed a file that can be read, got '{problem.strerror}'. Fetch it again."
        ) from problem
    is_file = stat.S_ISREG(found.st_mode)
    got = f"{found.st_size >> 20} MB" if is_file else failures.kind_of(found.st_mode)
    raise SourceError(
        f"[{path}] needed a file of at most {_LARGEST_BYTES >> 20} MB, got {got}. Fetch it again."
    )


def _check_template(path: Path) -> None:
    try:
        _content(path).decode("utf-8")
    except UnicodeDecodeError as problem:
        raise SourceError(f"[{path}] needed UTF-8, got {problem}. Fetch it again.") from problem


def _check_processors(folder: Path) -> None:
    names = [name for name in _PROCESSORS if (folder / name).exists()]
    if not names:
        return
    try:
        Processor.from_folder(folder)
    except ConfigError as problem:
        raise ConfigError(f"[{' or '.join(names)}] {problem}") from problem


def _require_known_tokens(opened: Any, size: int) -> None:
    """Refuse a tokenizer that would begin or end a text with an id that the model does not have."""
    for name in ("bos_token", "eos_token"):
        number = getattr(opened, f"{name}_id")
        if getattr(opened, name) is not None and (number is None or number >= size):
            raise CheckpointError(
                f"[{SETTINGS}] needed a {name} of {TOKENIZER}'s vocabulary, got "
                f"{getattr(opened, name)!r}. The files do not belong together."
            )
