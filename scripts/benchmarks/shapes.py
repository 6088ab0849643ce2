"""E4B's config, and that of smaller models of its kind."""

from typing import Any

from hlwq_mlx.folder import published


def e4b_config(**text: Any) -> dict[str, Any]:
    """Return E4B's config.json, with other values for some keys of its text model.

    In a smaller vocabulary the tokens around media, which are not there, become its last word.
    """
    config = published.e4b_config()
    config["text_config"] |= text
    last = config["text_config"]["vocab_size"] - 1
    for name, value in config.items():
        if name.endswith(("_token_id", "_token_index")) and isinstance(value, int):
            config[name] = min(value, last)
    return config
