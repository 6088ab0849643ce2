"""Loading a folder's tokenizer, and the ids that end an answer."""

import pytest
import tiny_tokenizer
import tokenizers

from hlwq_mlx.dialog.tokenizer import load_tokenizer
from hlwq_mlx.errors import SourceError
from scripts.training import gemma_tokenizer

OURS = {1, 50, 106}


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ([], OURS),
        ([[1, 106], [1, 106, 50]], OURS),
        ([7], {7, *OURS}),
        ([[8], [9]], {8, 9, *OURS}),
        ([None], OURS),
    ],
)
def test_stop_ids_are_the_union_of_all_that_state_any(tmp_path, stated, expected):
    folder = tiny_tokenizer.write(tmp_path)
    configs = [{"eos_token_id": ids} for ids in stated]
    assert set(load_tokenizer(folder, [{}, *configs]).eos_token_ids) == expected


def test_special_tokens_are_single_ids_and_come_back_as_text(tmp_path):
    tokenizer = load_tokenizer(tiny_tokenizer.write(tmp_path))
    for name, token in gemma_tokenizer.SPECIALS.items():
        assert tokenizer.encode(name, add_special_tokens=False) == [token]
        assert tokenizer.decode([token]) == name


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(SourceError, match=r"needed tokenizer\.json, got none"):
        load_tokenizer(tmp_path)


def test_a_token_that_reaches_into_a_turn(tmp_path):
    """Then a turn is no place to cut."""
    folder = tiny_tokenizer.write(tmp_path)
    file = folder / "tokenizer.json"
    encoder = tokenizers.Tokenizer.from_file(str(file))
    encoder.add_tokens([tokenizers.AddedToken("x<", normalized=False)])
    encoder.save(str(file))
    text = "x<|turn>user"
    wanted = encoder.encode(text, add_special_tokens=False).ids
    assert load_tokenizer(folder).encode(text, add_special_tokens=False) == wanted
