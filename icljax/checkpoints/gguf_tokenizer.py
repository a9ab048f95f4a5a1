"""The tokenizer of a GGUF file as `tokenizers` and `transformers` read it."""

from typing import Any

from gguf import TokenType
from tokenizers import AddedToken, Tokenizer

from icljax import forms
from icljax.checkpoints.gguf_file import Gguf
from icljax.data import bpe, pieces
from icljax.errors import UserError

_SPECIAL_IDS = ("bos_token_id", "eos_token_id")
_SPECIAL = (TokenType.CONTROL, TokenType.UNKNOWN)
# What SentencePiece can do to a text before it is cut, beyond blanks.
_UNSUPPORTED = (
    "tokenizer.ggml.precompiled_charsmap",
    "tokenizer.ggml.remove_extra_whitespaces",
)


def tokenizer(gguf: Gguf, config: dict[str, Any]) -> Tokenizer:
    """The file's tokenizer; control tokens are special, user-defined ones are added.

    Raises:
        UserError: for another kind than byte-level BPE and SentencePiece's, and for what does not
            belong together.
    """
    model = gguf.field("tokenizer.ggml.model")
    if model not in _MAKERS:
        raise UserError(
            f"{gguf.path} has a tokenizer of model {forms.shown(model)}, supported: 'gpt2' "
            "(byte-level BPE) and 'llama' (SentencePiece's BPE). Give another model."
        )
    tokens, kinds = (gguf.field(f"tokenizer.ggml.{name}") for name in ("tokens", "token_type"))
    counts = {len(tokens), len(kinds), config["vocab_size"], len(set(tokens))}
    ids = [config[name] for name in _SPECIAL_IDS if config[name] is not None]
    if len(counts) > 1 or max(ids, default=0) >= len(tokens):
        raise UserError(
            f"{gguf.path}: {len(tokens)} tokens ({len(set(tokens))} different), {len(kinds)} types "
            f"of tokens, {config['vocab_size']} rows of the embedding and the special tokens {ids} "
            "do not belong together. Download it again, or give another file."
        )
    made = _MAKERS[model](gguf, tokens, kinds)
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind in _SPECIAL]
    made.add_special_tokens([AddedToken(x, special=True, normalized=False) for x in special])
    return made


def _byte_level(gguf: Gguf, tokens: list[str], kinds: list[int]) -> Tokenizer:
    split = gguf.field("tokenizer.ggml.pre")
    if split not in bpe.NAMES:
        raise UserError(
            f"{gguf.path} has the pre-tokenizer {forms.shown(split)}, supported: "
            f"{', '.join(map(repr, bpe.NAMES))}. Give another model."
        )
    merges = [tuple(merge.split(" ", 1)) for merge in gguf.field("tokenizer.ggml.merges")]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    what = f"{gguf.path}: tokenizer.ggml.tokens and merges do not make a tokenizer"
    with forms.refused(what, bpe.RAISED, ". Download it again."):
        made = bpe.tokenizer(vocabulary, merges, split)
    found = [tokens[i] for i in _of_kind(kinds, TokenType.USER_DEFINED)]
    made.add_tokens([AddedToken(token, special=False, normalized=False) for token in found])
    return made


def _sentencepiece(gguf: Gguf, tokens: list[str], kinds: list[int]) -> Tokenizer:
    for name in _UNSUPPORTED:
        if gguf.fields.get(name):
            raise UserError(
                f"{gguf.path} has {name}, which changes texts in a way that is not supported. "
                "Give another model."
            )
    scores, prefix = gguf.field("tokenizer.ggml.scores"), "tokenizer.ggml.add_space_prefix"
    if len(scores) != len(tokens):
        raise UserError(
            f"{gguf.path}: {len(tokens)} tokens and {len(scores)} scores do not belong together. "
            "Download it again, or give another file."
        )
    normal, found = (_of_kind(kinds, x) for x in (TokenType.NORMAL, TokenType.USER_DEFINED))
    what = f"{gguf.path}: tokenizer.ggml.tokens and scores do not make a tokenizer"
    with forms.refused(what, bpe.RAISED, ". Download it again."):
        return pieces.tokenizer(tokens, scores, normal, found, gguf.fields.get(prefix, True))


def _of_kind(kinds: list[int], kind: TokenType) -> list[int]:
    return [index for index, its_kind in enumerate(kinds) if its_kind == kind]


_MAKERS = {"gpt2": _byte_level, "llama": _sentencepiece}


def options(gguf: Gguf, config: dict[str, Any]) -> dict[str, Any]:
    """tokenizer_config.json: what tokenizer.json cannot say."""
    tokens = gguf.field("tokenizer.ggml.tokens")
    ids = {name.removesuffix("_id"): config[name] for name in _SPECIAL_IDS}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config["max_position_embeddings"],
        "clean_up_tokenization_spaces": False,
    } | {name: tokens[index] for name, index in ids.items() if index is not None}
