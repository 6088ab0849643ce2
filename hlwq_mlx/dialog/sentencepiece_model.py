"""Convert a SentencePiece `tokenizer.model` of Gemma's kind into an equivalent tokenizer.json.

Gemma's is byte-pair encoding with byte fallback over text that is not normalized, in which a space
is written as U+2581. SentencePiece merges the neighbours whose union has the best score; a list of
merges in the order of those scores does the same. Pieces that the user defined are cut out of the
text first, the longest that fits, which is what added tokens are.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from google.protobuf.message import DecodeError
from sentencepiece import SentencePieceProcessor
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from ..errors import CheckpointError

SPACE = "▁"


def read_model(content: bytes, where: object) -> Any:
    """Return the parsed model, which SentencePiece itself can read.

    Raises: CheckpointError for bytes that are no SentencePiece model.
    """
    try:
        proto = ModelProto.FromString(content)
        pieces = SentencePieceProcessor(model_proto=content).get_piece_size() if content else 0
    except (DecodeError, RuntimeError) as problem:
        raise _not_readable(where, str(problem)) from problem
    if pieces == 0:
        raise _not_readable(where, "no pieces")
    return proto


def _not_readable(where: object, got: str) -> CheckpointError:
    return CheckpointError(
        f"[{where}] needed a SentencePiece model, got {' '.join(got.split())}. "
        "Fetch the file again, or take it out of the folder if there is a tokenizer.json."
    )


def to_tokenizer_json(content: bytes, settings: Mapping[str, Any], where: object) -> str:
    """Return the tokenizer.json of a SentencePiece model.

    `settings` are those of tokenizer_config.json, whose `added_tokens_decoder` says which tokens
    are special and may add some at the end.
    Raises: CheckpointError for a model that is not of Gemma's kind, or tokens that are not its own.
    """
    proto = read_model(content, where)
    _require_gemmas_kind(proto, where)
    vocabulary = {piece.piece: number for number, piece in enumerate(proto.pieces)}
    unknown = next(piece.piece for piece in proto.pieces if piece.type == piece.UNKNOWN)
    tokenizer = Tokenizer(
        models.BPE(
            vocabulary, list(_merges(proto)), byte_fallback=True, fuse_unk=True, unk_token=unknown
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_tokens(_added(proto, settings, where))
    return str(tokenizer.to_str())


def _require_gemmas_kind(proto: Any, where: object) -> None:
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    found = {
        "byte-pair encoding": trainer.model_type == trainer.BPE,
        "byte fallback": trainer.byte_fallback,
        "spaces before words": not trainer.treat_whitespace_as_suffix,
        "spaces written as ▁": normalizer.escape_whitespaces,
        "no space put before the text": not normalizer.add_dummy_prefix,
        "all spaces kept": not normalizer.remove_extra_whitespaces,
        "text that is not normalized": not normalizer.precompiled_charsmap,
    }
    missing = [name for name, is_so in found.items() if not is_so]
    if missing:
        raise CheckpointError(
            f"[{where}] needed a model of Gemma's kind, got one without {', '.join(missing)}. "
            "Add the tokenizer.json of the original model."
        )


def _merges(proto: Any) -> Iterator[tuple[str, str]]:
    """Yield every pair of pieces whose union is a piece, the union with the best score first.

    Pieces that the user defined are left out, because SentencePiece merges nothing with them.
    """
    scores = {piece.piece: piece.score for piece in proto.pieces if piece.type == piece.NORMAL}
    for whole in sorted(scores, key=lambda piece: -scores[piece]):
        for cut in range(len(whole) - 1, 0, -1):
            if whole[:cut] in scores and whole[cut:] in scores:
                yield whole[:cut], whole[cut:]


def _added(proto: Any, settings: Mapping[str, Any], where: object) -> list[AddedToken]:
    """Return control tokens and what the user defined, and what the settings say of any token."""
    added: dict[int, AddedToken] = {}
    for number, piece in enumerate(proto.pieces):
        if piece.type in (piece.CONTROL, piece.UNKNOWN, piece.USER_DEFINED):
            # Pieces with U+2581 match the normalized text, in which spaces are written so.
            is_written = SPACE in piece.piece
            is_special = piece.type != piece.USER_DEFINED
            added[number] = AddedToken(piece.piece, special=is_special, normalized=is_written)
    stated = settings.get("added_tokens_decoder", {})
    try:
        added |= {int(number): AddedToken(**token) for number, token in stated.items()}
    except (AttributeError, TypeError, ValueError) as problem:
        raise CheckpointError(
            f"[tokenizer_config.json] needed tokens by their ids in added_tokens_decoder, got "
            f"{problem}. Fetch the file again."
        ) from problem
    pieces = [piece.piece for piece in proto.pieces]
    for number, token in sorted(added.items()):
        if number == len(pieces):
            pieces.append(token.content)
        if not 0 <= number < len(pieces) or pieces[number] != token.content:
            raise CheckpointError(
                f"[tokenizer_config.json] needed the tokens of {where} in added_tokens_decoder, "
                f"got {token.content!r} as {number}. The files do not belong together."
            )
    return [token for _, token in sorted(added.items())]
