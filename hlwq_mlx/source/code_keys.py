"""Keys of a model's JSON files that make a loader run code, or read files that they name.

Nothing in a model folder is ever executed. transformers asks on stdin whether to run what
`auto_map` names, mlx-lm can import `model_file`, and both import modules that a tokenizer names.
"""

from typing import Any

CODE_KEYS = frozenset(
    (
        *("auto_map", "custom_pipelines", "model_file", "trust_remote_code", "trust_remote"),
        *("attn_implementation", "_attn_implementation"),  # may name a kernel to be downloaded
        *("chat_template_type", "tool_parser_type"),
        *("tokenizer_file", "vocab_file", "merges_file", "fast_tokenizer_files", "gguf_file"),
    )
)


def without_code(value: Any) -> Any:
    """Return JSON without the keys that name code or files, at any depth."""
    if isinstance(value, dict):
        return {key: without_code(item) for key, item in value.items() if key not in CODE_KEYS}
    return [without_code(item) for item in value] if isinstance(value, list) else value
