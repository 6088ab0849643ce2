"""The demo's sibling with experts: a small Gemma 4 in the shape of 26B-A4B, for text.

No per-layer embeddings, keys that are values in full layers, and experts beside every dense MLP.
The experts' width is half a block of 128 and the dense MLP's one and a half, as 704 is 5.5 blocks
and 2112 is 16.5, so that the sibling pays for padding as 26B-A4B does, and more.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import Gemma4ForConditionalGeneration, Gemma4TextConfig
from transformers.models.gemma4.modeling_gemma4 import Gemma4TextRouter

from scripts.training.demo_model import NAMES, ROPE, draw_model
from scripts.training.demo_tokenizer import VOCABULARY

LAYER_TYPES = "s f s f"
EXPERTS, ACTIVE = 8, 2


def make_text_config() -> Gemma4TextConfig:
    """Build the config of the sibling."""
    layer_types = [NAMES[letter] for letter in LAYER_TYPES.split()]
    return Gemma4TextConfig(
        vocab_size=VOCABULARY,
        vocab_size_per_layer_input=VOCABULARY,
        hidden_size=128,
        hidden_size_per_layer_input=0,
        intermediate_size=192,
        num_hidden_layers=len(layer_types),
        num_kv_shared_layers=0,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_global_key_value_heads=1,
        head_dim=32,
        global_head_dim=64,
        attention_k_eq_v=True,
        sliding_window=64,
        layer_types=layer_types,
        final_logit_softcapping=30.0,
        use_double_wide_mlp=False,
        use_bidirectional_attention="vision",
        enable_moe_block=True,
        num_experts=EXPERTS,
        top_k_experts=ACTIVE,
        moe_intermediate_size=64,
        max_position_embeddings=4096,
        rope_parameters=ROPE,
    )


@torch.no_grad()
def make_model() -> Gemma4ForConditionalGeneration:
    """Build the untrained sibling, whose routers tell experts apart from the first step on."""
    model = draw_model(make_text_config())
    for router in routers(model):
        router.scale.fill_(router.hidden_size**0.5)
    return model


def routers(model: nn.Module) -> list[Gemma4TextRouter]:
    """List the routers, first layer first."""
    return [module for module in model.modules() if isinstance(module, Gemma4TextRouter)]


class Routed:
    """What the routers said in one pass: probabilities and choices of every layer."""

    def __init__(self) -> None:
        self.layers: list[tuple[torch.Tensor, torch.Tensor]] = []

    def shares(self) -> torch.Tensor:
        """Return the share of tokens that chose each expert: [layers, experts]."""
        return torch.stack([shares_of(chosen) for _, chosen in self.layers])

    def imbalance(self) -> torch.Tensor:
        """Return how unevenly the experts are chosen: 1 where all layers are even.

        Source: the auxiliary loss of Fedus et al. 2021, with the shares of all choices.
        """
        each = [
            EXPERTS * (probabilities.mean(0) * shares_of(chosen) / ACTIVE).sum()
            for probabilities, chosen in self.layers
        ]
        return torch.stack(each).mean()


def shares_of(chosen: torch.Tensor) -> torch.Tensor:
    """Return the share of tokens that chose each expert: chosen int [tokens, k] -> [experts]."""
    return torch.bincount(chosen.flatten(), minlength=EXPERTS) / len(chosen)


@contextmanager
def watched(model: nn.Module) -> Iterator[Routed]:
    """Note what the routers say while the block runs."""
    seen = Routed()

    def note(_: nn.Module, __: object, said: tuple[torch.Tensor, ...]) -> None:
        seen.layers.append((said[0], said[2]))

    hooks = [router.register_forward_hook(note) for router in routers(model)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
