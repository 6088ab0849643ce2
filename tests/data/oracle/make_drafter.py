#!/usr/bin/env python
"""Writes a drafter's weights and reference drafts beside this file, with transformers' Gemma 4.

A tiny random drafter (gemma4_assistant) drafts for the plain model of make_oracle.py, whose weights
are read: with the ordered head and, from the same weights, with the tied one. transformers shows
the drafter a window and two keys right behind a prompt, and what its cache holds later; so each
draft is taken twice, from all keys and from those that the window of the next token has.

transformers 5.23.0 refuses a config in which every layer shares keys and values, as a drafter's
do, so that check is replaced.

  python tests/data/oracle/make_drafter.py        (torch 2.13.0, transformers 5.23.0, pillow; no network)
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from make_oracle import HERE, build, randomise
from safetensors.numpy import load_file, save_file
from transformers import Gemma4AssistantConfig, Gemma4AssistantForCausalLM, Gemma4TextConfig

DRAFTS = 4
LENGTHS = (4, 22)  # within the window of 6, and past it
VOCABULARY, CENTROIDS, CHOSEN = 320, 16, 4
kv_sharing_modes = Gemma4TextConfig.kv_sharing_modes.fget


def sharing_modes(config):
    """What the check would return if it knew of drafters."""
    is_drafter = config.num_kv_shared_layers == config.num_hidden_layers
    return ["reuse"] * config.num_hidden_layers if is_drafter else kv_sharing_modes(config)


def drafter_config(target, is_ordered):
    text = Gemma4TextConfig(
        vocab_size=VOCABULARY,
        vocab_size_per_layer_input=0,
        hidden_size=24,
        hidden_size_per_layer_input=0,
        intermediate_size=40,
        num_hidden_layers=4,
        num_kv_shared_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        global_head_dim=32,
        sliding_window=target.sliding_window,
        layer_types=["sliding_attention"] * 3 + ["full_attention"],
        final_logit_softcapping=None,
        max_position_embeddings=4096,
        rope_parameters=target.rope_parameters,
    )
    config = Gemma4AssistantConfig(
        text_config=text,
        backbone_hidden_size=target.hidden_size,
        use_ordered_embeddings=is_ordered,
        num_centroids=CENTROIDS,
        centroid_intermediate_top_k=CHOSEN,
    )
    config._attn_implementation = "eager"
    return config


@torch.no_grad()
def draft(target, drafter, ids, shared):
    """Tokens [k], logits [k, V] and projected states [k, H] of k drafts behind the likeliest token."""
    output = target(input_ids=ids, output_hidden_states=True)
    token, hidden = output.logits[:, -1:].argmax(-1), output.hidden_states[-1][:, -1:]
    position = torch.tensor([[ids.shape[1]]])
    tokens, logits, states = [], [], []
    for _ in range(DRAFTS):
        inputs = torch.cat([target.get_input_embeddings()(token), hidden], -1)
        made = drafter(
            inputs_embeds=inputs,
            position_ids=position,
            attention_mask=torch.ones(1, ids.shape[1] + 1, dtype=torch.long),
            shared_kv_states=shared,
        )
        token, hidden = made.logits.argmax(-1), made.last_hidden_state
        tokens.append(int(token))
        logits.append(made.logits[0, 0].numpy())
        states.append(hidden[0, 0].numpy())
    return np.array(tokens), np.stack(logits), np.stack(states)


@torch.no_grad()
def shared_states(target, ids, most):
    """The keys and values of the last producers, of the sliding one at most the last ones."""
    found = target(input_ids=ids, return_shared_kv_states=True, use_cache=True).shared_kv_states
    cut = {"sliding_attention": slice(-most, None), "full_attention": slice(None)}
    return {
        kind: tuple(each[:, :, cut[kind]] for each in pair)
        for kind, pair in found.items()
        if kind in cut
    }


def main():
    Gemma4TextConfig.kv_sharing_modes = property(sharing_modes)
    target = build("plain", load_file(HERE / "text.safetensors"))
    text = target.config.text_config
    with np.load(HERE / "arrays.npz") as arrays:
        ids = torch.from_numpy(arrays["text_ids"])
    torch.manual_seed(0)
    drafter = Gemma4AssistantForCausalLM(drafter_config(text, is_ordered=True)).eval()
    randomise(drafter)
    shuffled = torch.randperm(VOCABULARY, generator=torch.Generator().manual_seed(3))
    drafter.masked_embedding.token_ordering.copy_(shuffled)
    found = {}
    for head in ("ordered", "tied"):
        if head == "tied":
            config = drafter_config(text, is_ordered=False)
            tied = Gemma4AssistantForCausalLM(config).eval()
            tied.load_state_dict(drafter.state_dict(), strict=False)
            tied.tie_weights()
            drafter = tied
        with tempfile.TemporaryDirectory() as folder:
            drafter.save_pretrained(folder)
            if head == "ordered":
                save_file(load_file(f"{folder}/model.safetensors"), HERE / "drafter.safetensors")
            config = json.loads(Path(folder, "config.json").read_text())
        path = HERE / f"drafter_{head}.json"
        path.write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
        for length in LENGTHS:
            for seen, most in (("window", text.sliding_window - 1), ("all", 1 << 20)):
                prompt = ids[:, :length]
                shared = shared_states(target, prompt, most)
                case = f"{head}_{length}_{seen}"
                names = ("tokens", "logits", "states")
                drafts = draft(target, drafter, prompt, shared)
                found |= {f"{case}_{name}": each for name, each in zip(names, drafts)}
    np.savez_compressed(HERE / "drafter_arrays.npz", **found)
    for name, array in found.items():
        print(name, array.shape, array if name.endswith("tokens") else float(np.abs(array).max()))


if __name__ == "__main__":
    main()
