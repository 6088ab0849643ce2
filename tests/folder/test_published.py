"""The released checkpoint's tensors: counts and sizes that independent readers reported."""

import math
from collections import Counter

from hlwq_mlx.folder import published
from hlwq_mlx.gemma4.model import Model, ModelArgs
from hlwq_mlx.memory.inventory import of_variant
from hlwq_mlx.source import model_card, rules


def test_every_tensor_of_e4b():
    shapes = published.tensors(published.e4b_config())
    assert len(shapes) == 2130
    assert sum(map(math.prod, shapes.values())) == 7_996_157_418
    ranks = Counter(min(len(shape), 3) for shape in shapes.values())
    assert ranks == {0: 928, 1: 557, 2: 630, 3: 15}
    towers = Counter(name.split(".")[1] for name in shapes)
    assert towers == {
        **{"language_model": 719, "vision_tower": 658, "audio_tower": 751},
        **{"embed_vision": 1, "embed_audio": 1},
    }


def test_the_dead_are_those_that_the_model_has_no_place_for():
    config = published.e4b_config()
    args = ModelArgs.from_dict(config)
    dead = published.dead(args)
    assert len(dead) == 54
    is_dead = Model(args).is_dead
    assert {name for name in published.tensors(config) if is_dead(name)} == dead.keys()


def test_the_card_s_sizes_follow_from_the_rules():
    for variant in rules.VARIANTS:
        found = of_variant(variant)
        coded = [entry for entry in found.entries if entry.bits is not None]
        assert len(coded) == (294 if variant == "PQ2-Mixed" else 386)
        stated = model_card.FIGURES[variant].download_gb
        if stated is not None:
            assert round(found.stored_bytes / 1e9, 1) == stated
