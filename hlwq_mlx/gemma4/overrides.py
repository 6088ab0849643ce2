"""Convert `per_layer_config` into the keys of released files.

transformers 5.18 and later lists, layer by layer, what full-attention layers have of their own.
Keys are layer numbers, padded with zeros to one width. An entry may leave out values that equal the
section's. We read a head size and key-value heads that all full layers share, and no other
override.
Source: transformers 5.24.0, integrations/heterogeneity/configuration_utils.py.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..disk.fields import shown
from ..errors import ConfigError
from .section import as_section, required

KEY = "per_layer_config"
_WHERE = f"text_config.{KEY}"
_NUMBER = re.compile(r"[0-9]{1,6}")


class _Own(NamedTuple):
    """The values that a layer may override."""

    head_dim: Any
    num_key_value_heads: Any


def released_form(section: Mapping[str, Any], is_full: Sequence[bool]) -> dict[str, Any]:
    """Return a text section with `global_head_dim` and `num_global_key_value_heads` for overrides.

    `is_full` says of each layer whether it has full attention.
    Raises: ConfigError for overrides of other kinds, or that contradict those keys.
    """
    values = dict(section)
    overrides = values.pop(KEY, None)
    if overrides is None:
        return values
    common = _Own(*(required(values, key, "text_config") for key in _Own._fields))
    entries = _entries(as_section(overrides, _WHERE), len(is_full))
    layers = [common._replace(**entries.get(index, {})) for index in range(len(is_full))]
    full = layers[is_full.index(True)]
    for index, layer in enumerate(layers):
        expected = full if is_full[index] else common
        if layer != expected:
            raise ConfigError(
                f"[{_WHERE}] needed {_text(expected)} for layer {index} as for others of its "
                f"type, got {_text(layer)}. Layers of one type that differ are not implemented."
            )
    return _join(values, common, full)


def _entries(overrides: Mapping[str, Any], count: int) -> dict[int, dict[str, Any]]:
    """Return the entries by the number of the layer."""
    entries: dict[int, dict[str, Any]] = {}
    for key, entry in overrides.items():
        number = int(key) if _NUMBER.fullmatch(str(key)) else count
        if number >= count or number in entries:
            raise ConfigError(
                f"[{_WHERE}] needed each of the layers 0 to {count - 1} at most once, got "
                f"{shown(key)}. Take the model's own config.json."
            )
        entries[number] = dict(as_section(entry, f"{_WHERE}.{number}"))
        strangers = sorted(entries[number].keys() - set(_Own._fields))
        if strangers:
            raise ConfigError(
                f"[{_WHERE}.{number}] needed only {' and '.join(_Own._fields)}, got "
                f"{shown(', '.join(strangers))}. Other overrides are not implemented."
            )
    return entries


def _join(values: dict[str, Any], common: _Own, full: _Own) -> dict[str, Any]:
    """Add the keys of released files; heads of full layers are only stated with k_eq_v."""
    heads = full.num_key_value_heads
    has_own_heads = heads != common.num_key_value_heads
    if has_own_heads and values.get("attention_k_eq_v") is not True:
        raise ConfigError(
            f"[{_WHERE}] needed num_key_value_heads {shown(common.num_key_value_heads)} for every "
            f"layer, got {shown(heads)}. Other heads without attention_k_eq_v are not implemented."
        )
    stated = values.get("num_global_key_value_heads")
    if not has_own_heads and stated in (None, heads):
        heads = stated
    released = {"global_head_dim": full.head_dim, "num_global_key_value_heads": heads}
    for key, value in released.items():
        if values.setdefault(key, value) != value:
            raise ConfigError(
                f"[text_config.{key}] needed {shown(value)} as in {KEY}, got {shown(values[key])}. "
                "Remove one of the two."
            )
    return values


def _text(layer: _Own) -> str:
    return ", ".join(f"{key} {shown(value)}" for key, value in layer._asdict().items())
