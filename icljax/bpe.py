"""Byte-level BPE tokenizers, from the files of models that have no tokenizer.json.

Each adds no special tokens by itself, and finds special ones in a text as they stand.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from icljax.errors import UserError

# How a text is cut before it is merged, as in tokenizer.json of the models that these are named
# after (llama.cpp's names). GPT-2's own is the one that `tokenizers` has built in.
_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS = {"llama-bpe": _LLAMA_3, "qwen2": _LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")}
NAMES = ("gpt-2", "smollm", *SPLITS)
# Special tokens that a vocab.json may hold among its others: fairseq's (OPT) and GPT-2's.
_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<|endoftext|>")


def tokenizer(
    vocabulary: dict[str, int],
    merges: Iterable[tuple[str, str]],
    split: str = "gpt-2",
    special: Iterable[str] = (),
) -> Tokenizer:
    """A tokenizer of tokens in GPT-2's byte alphabet.

    Args:
        vocabulary: {token: id}.
        merges: pairs of tokens, the first to be merged first.
        split: one of `NAMES`, how a text is cut into words.
        special: tokens of the vocabulary that are never merged and are left out when decoding.
    """
    whole = split == "llama-bpe"  # Llama 3 takes a word that is a token as it is
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges), ignore_merges=whole))
    if split == "qwen2":
        made.normalizer = normalizers.NFC()
    made.pre_tokenizer = _pre_tokenizer(split)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    return made


def _pre_tokenizer(split: str) -> pre_tokenizers.PreTokenizer:
    if split == "gpt-2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if split == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, _pre_tokenizer("gpt-2")])
    first = pre_tokenizers.Split(Regex(SPLITS[split]), behavior="isolated")
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([first, last])


def from_folder(vocabulary: Path, merges: Path) -> Tokenizer:
    """The tokenizer of a vocab.json and a merges.txt (GPT-2, GPT-Neo, OPT).

    Raises:
        UserError: for files that do not belong together or are damaged.
    """
    ids = read_vocabulary(vocabulary)
    special = [token for token in _SPECIAL if token in ids]
    try:
        return tokenizer(ids, read_merges(merges), special=special)
    except Exception as e:  # the tokenizers package raises plain Exception
        raise UserError(
            f"{vocabulary} and {merges.name} do not make a tokenizer ({e}); fetch both again"
        ) from e


def read_vocabulary(path: Path) -> dict[str, int]:
    """{token: id} of a vocab.json or encoder.json."""
    try:
        ids = json.loads(path.read_text(encoding="utf-8"))
        return {str(token): int(number) for token, number in ids.items()}
    except (OSError, AttributeError, TypeError, ValueError) as e:
        raise UserError(f"{path}: not a table of tokens to ids ({e}); fetch it again") from e


def read_merges(path: Path) -> list[tuple[str, str]]:
    """The pairs of a merges.txt or vocab.bpe."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as e:
        raise UserError(f"{path}: not a list of merges ({e}); fetch it again") from e
    pairs = [tuple(line.split()) for line in lines if line and not line.startswith("#version")]
    bad = next((i for i, pair in enumerate(pairs) if len(pair) != 2), None)
    if bad is not None:
        raise UserError(f"{path}: {' '.join(pairs[bad])!r} is not two tokens; fetch it again")
    return [(a, b) for a, b in pairs]
