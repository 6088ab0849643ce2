"""Read a section of config.json strictly: required keys, known keys, and nothing else.

The only keys named here are those that transformers' base class may write into any section. The
bounds of numbers are here too.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from ..disk.fields import Bounds, is_same, shown
from ..errors import ConfigError

# Keys that change neither a shape nor a formula, whatever the section is about.
COMMON = frozenset(
    {
        *("architectures", "dtype", "torch_dtype", "transformers_version"),
        *("attention_dropout", "initializer_range"),
        *("_name_or_path", "return_dict", "id2label", "label2id", "cache_implementation"),
        *("chunk_size_feed_forward", "output_attentions", "output_hidden_states"),
        *("is_encoder_decoder", "problem_type", "sep_token_id", "decoder_start_token_id"),
        # How `per_layer_config` was written; it reads the same.
        *("serialize_explicit_per_layer_config", "allow_global_per_layer_attribute_access"),
    }
)


MOST_NAMED = 500  # characters of keys

# What numbers may be, whatever a checkpoint holds: several times what any released model has, so
# that the tree of the model can be built, unfilled, and held against the tensors on disk.
WIDTH = Bounds(1, 1 << 16)
INNER_WIDTH = Bounds(1, 1 << 18)
HEADS = Bounds(1, 1 << 10)
EXPERTS = Bounds(1, 1 << 10)
HEAD_WIDTH = Bounds(1, 1 << 13)
LAYERS = Bounds(1, 1 << 8)
VOCABULARY = Bounds(1, 1 << 22)
TOKEN = Bounds(0, VOCABULARY.most - 1)
POSITIONS = Bounds(1, 1 << 24)
EPS = Bounds(1e-12, 1e-2)
THETA = Bounds(1, 1e12)
CAP = Bounds(1e-2, 1e6)


def as_section(value: Any, where: str) -> Mapping[str, Any]:
    """Return a section, or a part of one.

    Raises: ConfigError when it is no object.
    """
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"[{where}] needed a JSON object, got {shown(value)}. Take the model's own config.json."
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
        if not is_same(required(section, key, where), accepted):
            raise ConfigError(
                f"[{where}.{key}] needed {accepted!r}, got {shown(section[key])}. "
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
            f"[{where}] needed known keys, got {', '.join(unknown)[:MOST_NAMED]}. "
            "They may stand for a formula that this version lacks."
        )
