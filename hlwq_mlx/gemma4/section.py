"""A section of config.json, read strictly: what it must hold, what it may hold, and nothing else.

Knows no key but those that transformers' base class may write into any section.
"""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from types import NoneType, UnionType
from typing import Any, get_args

from ..errors import ConfigError

# Keys that change neither a shape nor a formula, whatever the section is about.
COMMON = frozenset(
    {
        *("architectures", "dtype", "torch_dtype", "transformers_version"),
        *("attention_dropout", "initializer_range"),
        *("_name_or_path", "return_dict", "id2label", "label2id", "cache_implementation"),
        *("chunk_size_feed_forward", "output_attentions", "output_hidden_states"),
        *("is_encoder_decoder", "problem_type", "sep_token_id", "decoder_start_token_id"),
    }
)


# What JSON writes for the types that fields have; other types are for their readers to check.
SPELLED = {
    **{int: "a whole number", float: "a number", bool: "true or false", str: "a text"},
    NoneType: "null",
}


def as_section(value: Any, where: str) -> Mapping[str, Any]:
    """Return a section, or a part of one.

    Raises: ConfigError when it is no object.
    """
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"[{where}] needed a JSON object, got {value!r}. Take the model's own config.json."
        )
    return value


def required(section: Mapping[str, Any], key: str, where: str) -> Any:
    """Return the value of a key.

    Raises: ConfigError naming the key when there is none.
    """
    if key not in section:
        raise ConfigError(
            f"[{where}] needed key {key}, got none. "
            "It fixes a shape or a formula: take the model's complete config.json."
        )
    return section[key]


def check_fixed(
    section: Mapping[str, Any], fixed: Mapping[str, tuple[Any, str]], where: str
) -> None:
    """Check keys that have one implemented value; `fixed` holds it and what another would mean.

    Raises: ConfigError naming the key, its value and what that would need.
    """
    for key, (accepted, meaning) in fixed.items():
        if required(section, key, where) != accepted:
            raise ConfigError(
                f"[{where}.{key}] needed {accepted!r}, got {section[key]!r}. "
                f"This would need {meaning}, which is not implemented."
            )


def check_known(section: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    """Check that there is no other key, but for those that are null or false.

    Raises: ConfigError naming all unknown keys.
    """
    strangers = section.keys() - set(known) - COMMON
    unknown = sorted(key for key in strangers if section[key] not in (None, False))
    if unknown:
        raise ConfigError(
            f"[{where}] needed known keys, got {', '.join(unknown)}. "
            "They may stand for a formula that this version lacks."
        )


def check_types(kind: type, values: Mapping[str, Any], where: str) -> None:
    """Check that values have the types of a dataclass's fields; a whole number is a number too.

    Raises: ConfigError naming the first key whose value has another type.
    """
    for field in fields(kind):
        value = values[field.name]
        options = get_args(field.type) if isinstance(field.type, UnionType) else (field.type,)
        found = {type(value), float} if type(value) is int else {type(value)}
        if SPELLED.keys() >= set(options) and found.isdisjoint(options):
            raise ConfigError(
                f"[{where}.{field.name}] needed {' or '.join(SPELLED[each] for each in options)}, "
                f"got {value!r}. Correct the value."
            )


def check_sizes(values: Mapping[str, Any], keys: Iterable[str], where: str) -> None:
    """Check that values are positive integers.

    Raises: ConfigError naming the first key whose value is not.
    """
    for key in keys:
        value = values[key]
        if type(value) is not int or value < 1:
            raise ConfigError(
                f"[{where}.{key}] needed a positive integer, got {value!r}. Correct the value."
            )
