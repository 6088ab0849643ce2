"""The interface of the model card: HLWQModel, ids in, ids out.

No published package has the card's class. With this one its *Full Inference* runs unchanged but for
the import line: with transformers' own tokenizer and torch's tensors, or without torch with arrays
of numpy and MLX. The output begins with the prompt. `PolarQuantModel` is the older name.

L positions.
"""

import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Self, overload

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from .. import library
from ..dialog import template
from ..dialog.tokenizer import Tokenizer
from ..engine.answer import generate_tokens
from ..engine.request import Prepared, Request, room_for_answer
from ..engine.sampling import Sampling
from ..errors import RequestError
from ..gemma4.caches import KV_BITS, WHOLE, Caching
from ..gemma4.model import Model

DEFAULT_NEW_TOKENS = 128
USER_TURN = "<|turn>user\n"
_NAMES = {"gpu": ("gpu", "mps"), "cpu": ("cpu",)}

logger = logging.getLogger("hlwq_mlx")


class TokenIds(np.ndarray[Any, np.dtype[np.int64]]):
    """Token ids with torch's `.to(device)`, which changes nothing: MLX reads the host's memory."""

    def to(self, device: object) -> Self:
        return self


class Encoding(dict[str, TokenIds]):
    """The result of a tokenizer call: arrays by key and by attribute."""

    def __getattr__(self, name: str) -> TokenIds:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def to(self, device: object) -> Self:
        return self


class CardTokenizer:
    """The checkpoint's tokenizer; whatever tensors are asked for, it returns `TokenIds`.

    Messages are rendered by our own tokenizer, which keeps what people wrote text. Otherwise,
    without `return_tensors`, it is transformers' tokenizer itself.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def __call__(self, *args: Any, return_tensors: str | None = None, **options: Any) -> Any:
        encoded = self._tokenizer(*args, return_tensors=return_tensors and "np", **options)
        return _with_ids(encoded) if return_tensors else encoded

    def encode(self, text: str, **options: Any) -> Any:
        """Return the ids of a text as transformers' tokenizer does."""
        return self(text, **options)["input_ids"]

    def apply_chat_template(
        self, conversation: Any, *args: Any, return_tensors: str | None = None, **options: Any
    ) -> Any:
        """Render messages; thinking is off unless asked for, and the result is ids or text."""
        rendered = self._tokenizer.apply_chat_template(
            conversation, *args, return_tensors=return_tensors and "np", **options
        )
        is_text = isinstance(rendered, str)
        return _with_ids(rendered) if return_tensors and not is_text else rendered

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer._tokenizer, name)


def _with_ids(encoded: Any) -> Any:
    if isinstance(encoded, Mapping):
        return Encoding({name: np.asarray(array).view(TokenIds) for name, array in encoded.items()})
    return np.asarray(encoded).view(TokenIds)


class HLWQModel:
    """A model with the methods that the card's *Full Inference* uses."""

    def __init__(
        self, model: Model, tokenizer: Tokenizer, sampling: Sampling, caching: Caching = WHOLE
    ) -> None:
        self.model = model
        self.tokenizer = CardTokenizer(tokenizer)
        self._wrapper = tokenizer
        self._sampling = sampling
        self._caching = caching

    @classmethod
    def from_pretrained(
        cls,
        repo_or_path: str,
        variant: str | None = None,
        *,
        device_map: object = None,
        dtype: object = None,
        torch_dtype: object = None,
        kv_cache_nbits: int | None = None,
        trust_remote_code: bool = False,
    ) -> Self:
        """Load a model as `hlwq_mlx.load` does, converting it once if need be.

        `dtype`, `torch_dtype` and `trust_remote_code` are accepted but not used: MLX runs in the
        dtype that suits the machine, and code from a model folder is never executed.
        `kv_cache_nbits` codes keys and values of full attention at 4 or 8 bits.
        Raises: RequestError for a device MLX does not have, or for another width.
        """
        here = _default_device()
        if device_map not in (None, "auto", *_NAMES[here]):
            raise RequestError(
                f"[device_map] needed auto or {here}, where MLX runs, got {device_map!r}. "
                "Set MLX's default device before loading."
            )
        if kv_cache_nbits not in (None, *KV_BITS):
            raise RequestError(
                f"[kv_cache_nbits] needed None, 4 or 8, got {kv_cache_nbits}. Choose one of these."
            )
        folder = library.open_folder(str(repo_or_path), variant)
        model, tokenizer = library.load_folder(folder)
        sampling = Sampling.from_generation_config(folder.generation)
        return cls(model, tokenizer, sampling, Caching(kv_cache_nbits))

    @property
    def device(self) -> str:
        """The torch device for a prompt's tensors: MLX reads them from the host's memory."""
        return "cpu"

    @overload
    def generate(self, inputs: str, **options: Any) -> str: ...

    @overload
    def generate(
        self, inputs: Sequence[Any] | NDArray[Any] | None = None, **options: Any
    ) -> TokenIds: ...

    @overload
    def generate(self, inputs: Any = None, **options: Any) -> Any: ...

    def generate(self, inputs: Any = None, **options: Any) -> Any:
        """Answer a prompt: text gives the answer's text, ids give prompt and answer as ids.

        `inputs` are ids or a tokenizer's result. Ids are returned in the type that they came in:
        torch's tensor, MLX's array or numpy's, which a list becomes too. Where they end with a
        user's turn, the model's turn is opened first, as add_generation_prompt=True does. Options:
        max_new_tokens, do_sample, temperature, top_p, top_k, min_p, and input_ids instead of
        `inputs`; an attention_mask must be all ones.
        Shapes: ids [L] or [1, L] -> [1, L + new].
        Raises: RequestError for another option or for more than one sequence.
        """
        if isinstance(inputs, Mapping):
            options = {**inputs, **options}
        inputs = options.pop("input_ids", inputs)
        limit = options.pop("max_new_tokens", DEFAULT_NEW_TOKENS)
        _check_mask(options.pop("attention_mask", None))
        sampling = self._choose(options)
        if isinstance(inputs, str):
            messages = [{"role": "user", "content": inputs}]
            return library.generate(
                self.model,
                self._wrapper,
                messages,
                max_tokens=limit,
                sampling=sampling,
                caching=self._caching,
            )
        prompt = _one_sequence(inputs)
        prompt += self._opening(prompt)
        stop_ids = self._wrapper.eos_token_ids
        context = self.model.args.text_config.max_position_embeddings
        room = room_for_answer(len(prompt), limit, context)
        request = Request(Prepared(prompt), sampling, room, stop_ids, self._caching)
        answer = [chosen.token for chosen in generate_tokens(self.model, request)]
        return _like(inputs, [*prompt, *answer])

    def _opening(self, prompt: list[int]) -> list[int]:
        """Return the ids that open the model's turn, where a prompt ends with a user's."""
        text = self._wrapper.decode(prompt)
        turn = text[text.rfind(USER_TURN) :]
        is_users = turn.startswith(USER_TURN) and turn.count("<|turn>") == 1
        if not (is_users and turn.endswith(template.TURN_END) and self._wrapper.has_chat_template):
            return []
        any_user = [{"role": "user", "content": "-"}]
        rendered = template.render(self._wrapper, any_user, thinking="<|think|>" in text)
        opening = rendered.text.rpartition(template.TURN_END)[2]
        logger.warning("the prompt ends with the user's turn: added %r after it", opening)
        ids: list[int] = self._wrapper.encode(opening, add_special_tokens=False)
        return ids

    def _choose(self, options: dict[str, Any]) -> Sampling:
        if "temperature" in options:
            options["temp"] = options.pop("temperature")
        do_sample = options.pop("do_sample", None)
        chosen = self._sampling.override(**options)
        if do_sample is None:
            return chosen
        # Sampling where the checkpoint is greedy takes temperature 1, transformers' default.
        return chosen.override(temp=(chosen.temp or 1.0) if do_sample else 0.0)


PolarQuantModel = HLWQModel


def _default_device() -> str:
    return "gpu" if mx.default_device() == mx.Device(mx.gpu) else "cpu"


def _check_mask(mask: Any) -> None:
    if mask is not None and not np.asarray(mask).all():
        raise RequestError(
            "[attention_mask] needed all ones, got zeros. Give one sequence without padding."
        )


def _one_sequence(inputs: Any) -> list[int]:
    """Return the ids in a list, an array or a tensor on any device."""
    ids = np.asarray(inputs.cpu() if _is_torch(inputs) else inputs)
    if ids.ndim not in (1, 2) or (ids.ndim == 2 and len(ids) != 1) or ids.dtype.kind not in "iu":
        raise RequestError(
            f"[input_ids] needed the ids of one sequence, got {ids.dtype} of shape {ids.shape}. "
            "Generate for one prompt at a time."
        )
    return [int(token) for token in ids.reshape(-1)]


def _like(inputs: Any, ids: list[int]) -> Any:
    """Return ids as one row of what the prompt was: a tensor, an MLX array or TokenIds."""
    if _is_torch(inputs):
        return inputs.new_tensor([ids])
    if isinstance(inputs, mx.array):
        return mx.array([ids], dtype=inputs.dtype)
    dtype = inputs.dtype if isinstance(inputs, np.ndarray) else np.int64
    return np.asarray([ids], dtype=dtype).view(TokenIds)


def _is_torch(inputs: Any) -> bool:
    torch = sys.modules.get("torch")  # a caller with a tensor has imported it
    return torch is not None and isinstance(inputs, torch.Tensor)
