"""A part is a smaller Gemma whose tensors are the whole one's, each in one place or in shares."""

import numpy as np
import pytest
import tiny
from mlx.utils import tree_flatten

from hlwq_mlx.errors import RequestError
from hlwq_mlx.gemma4.config import Gemma4Config
from hlwq_mlx.gemma4.model import Model
from hlwq_mlx.sharding.parts import layers_part, tensors_part
from hlwq_mlx.sharding.shares import Run, Split
from scripts.sharding.parity import dense, experts


def shapes(args):
    return {name: array.shape for name, array in tree_flatten(Model(args).parameters())}


def placed(args, part):
    return {
        place.name: (name, place.share)
        for name in shapes(args)
        if (place := part.place(name)) is not None
    }


def share_shape(shape, share):
    *stack, rows, columns = shape
    if share.rows is not None:
        held = sum(map(len, share.rows))
        count = max(1, stack[0] if stack else 1)
        stack, rows = (stack, held // count) if len(share.rows) > 1 else (stack, held)
        if len(share.rows) == 1 and stack:  # whole matrices
            stack, rows = [held // shape[-2]], shape[-2]
    return (*stack, rows, columns if share.columns is None else len(share.columns))


@pytest.mark.parametrize(
    "settings", [tiny.config(), dense(), experts()], ids=["tiny", "dense", "experts"]
)
def test_layers_part_into_models_that_hold_every_tensor_once(settings):
    args = Gemma4Config.from_dict(settings)
    cut = 1 if settings["text_config"]["num_kv_shared_layers"] else 2
    count = args.text_config.num_hidden_layers
    parts = [layers_part(args, Run(0, cut)), layers_part(args, Run(cut, count))]
    own = [placed(args, part) for part in parts]
    for part, found in zip(parts, own, strict=True):
        needed = shapes(part.args)
        needed = {n: s for n, s in needed.items() if part.has_embedding or "embed_tokens" not in n}
        assert found.keys() == needed.keys()
    twice = {name for name, _ in own[0].values()} & {name for name, _ in own[1].values()}
    small = ("norm.weight", "per_layer_model_projection.weight")  # of the latter, other rows
    assert all(name.endswith(small) and ".layers." not in name for name in twice)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("settings", [dense(), experts()], ids=["dense", "experts"])
def test_shares_have_the_shapes_of_the_narrow_model(settings, size):
    args = Gemma4Config.from_dict(settings)
    whole = shapes(args)
    held = dict.fromkeys(whole, 0.0)
    for rank in range(size):
        part = tensors_part(args, size, rank)
        needed = shapes(part.args)
        for name, (_, share) in placed(args, part).items():
            if share.rows is None and share.columns is None:
                held[name] += 1 / size
                continue
            if ".router." not in name:
                assert share_shape(whole[name], share) == needed[name], name
            *stack, columns = whole[name]
            held[name] += share.part_of(int(np.prod(stack)), columns)
    shared_keys = {n for n in whole if "k_proj" in n or "v_proj" in n}
    assert all(np.isclose(held[n], 1) for n in held.keys() - shared_keys)
    assert all(held[n] >= 1 - 1e-9 for n in shared_keys)  # more machines than heads hold them twice


@pytest.mark.parametrize(
    ("size", "changes", "problem"),
    [
        (3, {}, "2 or 4 machines to split tensors for, got 3"),
        (4, {"num_attention_heads": 6, "num_key_value_heads": 2}, "number of heads"),
        (4, {"intermediate_size": 384}, "4 blocks of 128 columns, got 384"),
        (2, {"head_dim": 32}, "columns of o_proj in blocks of 128"),
    ],
)
def test_what_cannot_be_split_by_tensors_is_refused_by_name(size, changes, problem):
    settings = dense()
    settings["text_config"] |= changes
    with pytest.raises(RequestError, match=problem):
        Split(Gemma4Config.from_dict(settings).text_config, size, 0)


def test_experts_part_by_columns_where_their_blocks_come_out_even():
    text = Gemma4Config.from_dict(experts()).text_config  # 704 columns are 6 blocks
    assert Split(text, 2, 0).experts is None
    assert [Split(text, 2, rank).expert_columns for rank in (0, 1)] == [(0, 384), (384, 704)]
    assert [Split(text, 4, rank).experts for rank in (0, 3)] == [(0, 2), (6, 8)]
