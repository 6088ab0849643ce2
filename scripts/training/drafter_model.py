"""The demo's drafter: two layers that begin as the demo's last two, and how drafts are computed."""

from typing import NamedTuple

import torch
from torch import nn
from transformers import (
    Gemma4AssistantConfig,
    Gemma4AssistantForCausalLM,
    Gemma4ForConditionalGeneration,
    Gemma4TextConfig,
)

SEED = 2026
TYPES = ("sliding_attention", "full_attention")


class Read(NamedTuple):
    """What the demo computes of a batch of texts.

    Shapes: states [B, T, H] behind the final norm, choices int [B, T], which it would choose next;
    shared holds the keys and values [B, heads, T, D] of each layer type.
    """

    states: torch.Tensor
    choices: torch.Tensor
    shared: dict[str, tuple[torch.Tensor, torch.Tensor]]


def allow_all_shared() -> None:
    """Let transformers 5.23.0 build a model whose every layer shares; later versions do."""
    stock = Gemma4TextConfig.kv_sharing_modes.fget

    def modes(config: Gemma4TextConfig) -> list[str | None]:
        is_drafter = config.num_kv_shared_layers == config.num_hidden_layers
        return ["reuse"] * config.num_hidden_layers if is_drafter else stock(config)

    Gemma4TextConfig.kv_sharing_modes = property(modes)


def make_drafter(target: Gemma4ForConditionalGeneration) -> Gemma4AssistantForCausalLM:
    """Build a drafter whose layers, head and norm begin as the target's."""
    torch.manual_seed(SEED)
    text = target.config.text_config
    sliding, full = target.model.language_model.layers[-len(TYPES) :]
    kept = {key: getattr(text, key) for key in ("vocab_size", "hidden_size", "intermediate_size")}
    own = Gemma4TextConfig(
        **kept,
        vocab_size_per_layer_input=0,
        hidden_size_per_layer_input=0,
        num_hidden_layers=len(TYPES),
        num_kv_shared_layers=len(TYPES),
        num_attention_heads=text.num_attention_heads,
        num_key_value_heads=text.num_key_value_heads,
        head_dim=sliding.self_attn.head_dim,
        global_head_dim=full.self_attn.head_dim,
        sliding_window=text.sliding_window,
        layer_types=list(TYPES),
        final_logit_softcapping=None,
        max_position_embeddings=text.max_position_embeddings,
        rope_parameters=text.rope_parameters,
    )
    config = Gemma4AssistantConfig(text_config=own, backbone_hidden_size=text.hidden_size)
    config._attn_implementation = "sdpa"
    drafter = Gemma4AssistantForCausalLM(config)
    begin_as(drafter, target)
    return drafter


@torch.no_grad()
def begin_as(drafter: Gemma4AssistantForCausalLM, target: Gemma4ForConditionalGeneration) -> None:
    """Copy what both have: the head, the final norm and the last layers."""
    theirs = target.model.language_model
    drafter.model.embed_tokens.weight.copy_(theirs.embed_tokens.weight)
    drafter.model.norm.weight.copy_(theirs.norm.weight)
    for mine, other in zip(drafter.model.layers, theirs.layers[-len(TYPES) :], strict=True):
        found = other.state_dict()
        mine.load_state_dict({name: found[name] for name in mine.state_dict()})
    same = torch.eye(theirs.config.hidden_size)
    drafter.pre_projection.weight.copy_(torch.cat([same, same], dim=1) / 2)
    drafter.post_projection.weight.copy_(same)


@torch.no_grad()
def read(target: Gemma4ForConditionalGeneration, ids: torch.Tensor) -> Read:
    """Run the target on texts that are padded on the right: ids int [B, T]."""
    found = target(input_ids=ids, output_hidden_states=True, return_shared_kv_states=True)
    shared = {kind: found.shared_kv_states[kind] for kind in TYPES}
    return Read(found.hidden_states[-1], found.logits.argmax(-1), shared)


class Starts(NamedTuple):
    """Positions from which drafts are made: int [B, S], and whether each is one: bool [B, S]."""

    positions: torch.Tensor
    is_one: torch.Tensor

    def pick(self, values: torch.Tensor, ahead: int) -> torch.Tensor:
        """Return what stands `ahead` of each start: values [B, T, ...] -> [B, S, ...]."""
        at = (self.positions + ahead).clamp(0, values.shape[1] - 1)
        return values[torch.arange(len(values))[:, None], at]


def masks(positions: torch.Tensor, length: int, window: int) -> dict[str, torch.Tensor]:
    """Return which keys each start sees: those before its own position, bool [B, 1, S, T]."""
    distance = positions[:, None, :, None] - torch.arange(length)
    full = distance > 0
    return {"full_attention": full, "sliding_attention": full & (distance < window)}


def drafts_from(
    drafter: Gemma4AssistantForCausalLM,
    embed: nn.Module,
    ids: torch.Tensor,
    seen: Read,
    starts: Starts,
    count: int,
) -> list[torch.Tensor]:
    """Return the logits [B, S, V] of each of `count` drafts, the text being what was drafted."""
    window = drafter.config.text_config.sliding_window
    mask = masks(starts.positions, ids.shape[1], window)
    state = starts.pick(seen.states, -1)
    found = []
    for step in range(count):
        tokens = embed(starts.pick(ids, step))
        made = drafter.model(
            inputs_embeds=drafter.pre_projection(torch.cat([tokens, state], dim=-1)),
            attention_mask=mask,
            position_ids=starts.positions,
            shared_kv_states=seen.shared,
            use_cache=False,
            output_hidden_states=True,  # or transformers cuts per-layer inputs that are not there
        ).last_hidden_state
        found.append(drafter.lm_head(made))
        state = drafter.post_projection(made)
    return found
