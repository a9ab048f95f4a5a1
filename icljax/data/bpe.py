"""Tokenizers from the files of a model: tokenizer.json, or those of byte-level BPE before it.

The same text has the same tokens at every call. Byte-level ones made here add no special tokens by
themselves, and find special ones in a text as they stand.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from icljax import forms
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
# Model types whose vocab.json and merges.txt are cut as one of `NAMES`. Other families save such
# files too (Llama, GPT-NeoX, SmolLM), with cuts of their own that only tokenizer.json holds.
FAMILIES = {
    **dict.fromkeys(("gpt2", "gpt_neo", "gptj", "opt"), "gpt-2"),
    **dict.fromkeys(("qwen2", "qwen3"), "qwen2"),
}
_CLASSES = {"gpt-2": "GPT2Tokenizer", "qwen2": "Qwen2Tokenizer"}
FILES = (
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
)
_NAMES = (
    *(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")),
    "additional_special_tokens",
)
RAISED = (Exception,)  # by the tokenizers package, for whatever it does not take
_PROBE = "A film, 1\u00e9\u4e2d\U0001f600\n"


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


def from_json(path: Path) -> Tokenizer:
    """The tokenizer of a tokenizer.json, without what cuts, fills up or varies a text's tokens.

    Raises:
        UserError: for a file that `tokenizers` cannot read or use.
    """
    try:
        made = Tokenizer.from_buffer(path.read_bytes())
        made.no_truncation()
        made.no_padding()
        # Dropout (BPE) and sampling (Unigram) give a text other tokens at each call.
        for option in ("dropout", "alpha", "nbest_size"):
            if getattr(made.model, option, None) is not None:
                setattr(made.model, option, None)
        made.encode(_PROBE, add_special_tokens=False)  # some faults show only here
    except BaseException as e:  # its Rust code panics with what is no Exception
        if isinstance(e, KeyboardInterrupt | SystemExit | MemoryError):
            raise
        raise UserError(
            f"{path}: not a tokenizer that `tokenizers` can read ({forms.one_line(e)}); fetch it "
            "again"
        ) from e
    return made


def from_folder(folder: Path, model_type: object) -> Tokenizer:
    """The tokenizer of a folder's `FILES`, of a model whose way to cut texts is known.

    Raises:
        UserError: for another model, for options that are not supported, and for files that do not
            belong together or are damaged.
    """
    split = FAMILIES.get(str(model_type))
    if split is None:
        raise UserError(
            f"{folder} has no tokenizer.json, and vocab.json and merges.txt do not say how a "
            f"{model_type} model cuts texts (known for {', '.join(FAMILIES)}); {convert(folder)}"
        )
    options = _options(folder, split)
    ids = read_vocabulary(folder / "vocab.json")
    missing = sorted(byte for byte in pre_tokenizers.ByteLevel.alphabet() if byte not in ids)
    if missing:  # texts would lose them
        raise UserError(
            f"{folder / 'vocab.json'}: no token for {len(missing)} of the 256 bytes, such as "
            f"{missing[0]!r}; expected a byte-level vocabulary; {convert(folder)}"
        )
    added = [_special_token(t) for t in _SPECIAL if t in ids]
    added += _added_tokens(folder, options, ids)
    merges = read_merges(folder / "merges.txt")
    what = f"{folder}: vocab.json and merges.txt do not make a tokenizer"
    with forms.refused(what, RAISED, "; fetch both again"):
        made = tokenizer(ids, merges, split)
        if options.get("add_prefix_space"):
            made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        made.add_tokens(list({token.content: token for token in added}.values()))
    return made


def convert(folder: Path) -> str:
    """What to do about a folder without tokenizer.json."""
    return (
        'make one: python -c "from transformers import AutoTokenizer; '
        f'AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})"'
    )


def _options(folder: Path, split: str) -> dict[str, Any]:
    """tokenizer_config.json, refused where it asks for tokens that are not made here."""
    path, known = folder / "tokenizer_config.json", _CLASSES[split]
    options = _read_table(path)
    named = options.get("tokenizer_class")
    if named not in (None, known, f"{known}Fast"):
        raise UserError(
            f"{path}: tokenizer_class is {named!r}, expected {known!r}; {convert(folder)}"
        )
    for key in ("add_prefix_space", "do_lower_case", "split_special_tokens"):
        if _flag(path, key, options.get(key)) and (key, split) != ("add_prefix_space", "gpt-2"):
            raise UserError(f"{path}: {key}=true is not supported; {convert(folder)}")
    return options


def _added_tokens(folder: Path, options: dict[str, Any], ids: dict[str, int]) -> list[AddedToken]:
    """What is found in a text as it stands, the last of one text counts; adds their ids to `ids`.

    In the vocabulary they do no harm: no merge makes them.
    """
    config, old = folder / "tokenizer_config.json", folder / "added_tokens.json"
    decoder = options.get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict):
        raise UserError(f"{config}: added_tokens_decoder is {decoder!r}, expected an object")
    decoded = {
        key: _added_token(config, f"added_tokens_decoder {key}", value, special=False)
        for key, value in decoder.items()
    }
    numbers = [(old, content, number) for content, number in _read_table(old).items()]
    numbers += [
        (config, token.content, int(key) if key.isdecimal() else key)
        for key, token in decoded.items()
    ]
    _number(numbers, ids)
    named = []
    for path in (config, folder / "special_tokens_map.json"):
        table = options if path == config else _read_table(path)
        for key in _NAMES:
            value = table.get(key)
            for one in value if isinstance(value, list) else [value]:
                named += [] if one is None else [_added_token(path, key, one)]
            if lost := [token.content for token in named if token.content not in ids]:
                raise UserError(
                    f"{path}: {key} is {lost[0]!r}, which has no id in vocab.json nor among the "
                    f"added tokens; {convert(folder)}"
                )
    plain = [AddedToken(token, special=False, normalized=True) for path, token, _ in numbers]
    return [*plain, *named, *decoded.values()]


def _number(numbers: Iterable[tuple[Path, str, object]], ids: dict[str, int]) -> None:
    """Gives added tokens their ids, which no two may share; each comes with the file it is of."""
    owner = {number: token for token, number in ids.items()}
    for path, content, number in numbers:
        if type(number) is not int or number < 0 or not content:
            raise UserError(f"{path}: token {content!r} has id {number!r}, expected one from 0 on")
        same_id, same_token = ids.setdefault(content, number), owner.setdefault(number, content)
        if (same_id, same_token) != (number, content):
            raise UserError(
                f"{path}: token {content!r} has id {number}, but {same_token!r} has {number} and "
                f"{content!r} {same_id} elsewhere; give files of one model"
            )


def _added_token(path: Path, key: str, value: object, special: bool = True) -> AddedToken:
    """A token given as its text, or as an object of its text and how it is found."""
    if isinstance(value, str) and value:
        return _special_token(value)
    content = value.get("content") if isinstance(value, dict) else None
    if not (isinstance(value, dict) and isinstance(content, str) and content):
        raise UserError(f"{path}: {key} is {value!r}, expected a text or an object with 'content'")
    flags = {
        name: _flag(path, f"{name} of {key}", value.get(name))
        for name in ("single_word", "lstrip", "rstrip", "normalized")
    }
    return AddedToken(
        content, special=special or _flag(path, f"special of {key}", value.get("special")), **flags
    )


def _special_token(content: str) -> AddedToken:
    return AddedToken(content, special=True, normalized=False)


def _flag(path: Path, key: str, value: object) -> bool:
    if not (value is None or isinstance(value, bool)):
        raise UserError(f"{path}: {key} is {value!r}, expected true or false; correct it")
    return bool(value)


def _read_table(path: Path) -> dict[str, Any]:
    """A file's JSON object, of texts that a tokenizer takes; empty where there is no such file."""
    table = forms.read_table(path) if path.is_file() else {}
    with forms.refused(f"{path}: not valid JSON", (ValueError,), "; fetch it again"):
        json.dumps(table, ensure_ascii=False).encode()  # half a surrogate pair is no text
    return table


def read_vocabulary(path: Path) -> dict[str, int]:
    """{token: id} of a vocab.json or encoder.json."""
    faults = (OSError, AttributeError, ValueError)
    with forms.refused(f"{path}: not a table of tokens to ids", faults, "; fetch it again"):
        ids = forms.read_json(path)
        json.dumps(ids, ensure_ascii=False).encode()
        bad = next(((t, i) for t, i in ids.items() if type(i) is not int or i < 0), None)
    if bad or len(set(ids.values())) < len(ids):
        what = f"token {bad[0]!r} has id {bad[1]!r}" if bad else "two tokens have one id"
        raise UserError(f"{path}: {what}; expected a number from 0 on for each; fetch it again")
    return dict(ids)


def read_merges(path: Path) -> list[tuple[str, str]]:
    """The pairs of a merges.txt or vocab.bpe."""
    with forms.refused(f"{path}: not a list of merges", (OSError, ValueError), "; fetch it again"):
        lines = path.read_text(encoding="utf-8").split("\n")
    pairs = [tuple(line.split()) for line in lines if line and not line.startswith("#version")]
    bad = next((i for i, pair in enumerate(pairs) if len(pair) != 2), None)
    if bad is not None:
        raise UserError(f"{path}: {' '.join(pairs[bad])!r} is not two tokens; fetch it again")
    return [(a, b) for a, b in pairs]
