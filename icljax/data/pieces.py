"""Tokenizers from pieces with scores, as SentencePiece's BPE keeps them (Llama 2, Gemma).

SentencePiece merges two neighbours into the piece of the highest score, so merges sorted by the
scores of what they make give the same tokens. Texts keep their blanks (as "▁"), and what no piece
holds becomes bytes.
"""

from collections.abc import Iterable, Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

BLANK = "▁"
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))


def tokenizer(
    pieces: Sequence[str],
    scores: Sequence[float],
    normal: Iterable[int],
    found: Iterable[int],
    prefix: bool,
) -> Tokenizer:
    """The tokenizer of some pieces; it adds no special tokens by itself.

    Args:
        pieces: each one's id is its place.
        scores: of the pieces.
        normal: ids of those that merges make; the others are found in a text, or never.
        found: ids of those that are found in a text as they stand, the longest first.
        prefix: whether a blank is put before a text.

    Raises:
        ValueError: a byte has no piece, so that texts would lose it.
        Exception: of `tokenizers`, for what makes no tokenizer.
    """
    ids = {piece: index for index, piece in enumerate(pieces)}
    if missing := [byte for byte in BYTES if byte not in ids]:
        raise ValueError(f"{len(missing)} of the 256 bytes have no piece, such as {missing[0]}")
    made = Tokenizer(
        models.BPE(ids, _merges({pieces[i]: scores[i] for i in normal}), byte_fallback=True)
    )
    blanks = normalizers.Replace(" ", BLANK)
    first = normalizers.Prepend(BLANK)
    made.normalizer = normalizers.Sequence([first, blanks]) if prefix else blanks
    parts = [decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)] if prefix else parts)
    # Found once blanks are replaced, as SentencePiece does: a run of them may be such a piece.
    made.add_tokens([AddedToken(pieces[i], special=False, normalized=True) for i in found])
    return made


def _merges(scores: dict[str, float]) -> list[tuple[str, str]]:
    """Every pair of pieces that make a piece, the best piece first."""
    pairs = []
    for piece, score in scores.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in scores and right in scores:
                pairs.append((-score, cut, left, right))
    pairs.sort(key=lambda pair: pair[:2])
    return [(left, right) for *_, left, right in pairs]
