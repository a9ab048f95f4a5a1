"""Text -> packed token blocks, in an order that depends on a seed and the step alone.

Shape glossary: T tokens of a stream, N blocks, S tokens of a block that are predicted.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, pre_tokenizers, trainers

from icljax.data import bpe, sources
from icljax.errors import UserError
from icljax.runtime import downloads, workdir

END = "<|endoftext|>"  # before each document, and after the last; BOS and EOS of the model
_TOKENIZER, _ABOUT = "tokenizer.json", "corpus.json"
_PARTS = ("train", "validation")


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A tokenised corpus.

    Attributes:
        train, validation: int32 [T], documents with an end token before each.
        tokenizer: what made them.
        end: the end token.
        about: source, counts, fingerprint; goes into results.json.
    """

    train: np.ndarray
    validation: np.ndarray
    tokenizer: Tokenizer
    end: int
    about: dict[str, str | int]


def load(
    source: str, vocab_size: int, tokenizer: Tokenizer | None, folder: Path, share: float
) -> Corpus:
    """Reads, or makes and keeps in `folder`, the tokens of a corpus.

    Args:
        source: "text:FILE_OR_FOLDER[,...]" of UTF-8 text, "package:..." or "tfds:..." with a field
            `text`.
        vocab_size: of the byte-level BPE that is trained on the train part.
        tokenizer: used in place of a trained one, its end token by the name "<|endoftext|>".
        share: of each text file, or of the documents of a source without a validation or test
            split, that is held out for validation; the end of each file, whole documents.

    Raises:
        UserError: for a source that cannot be read or holds too little text.
    """
    if not (folder / _ABOUT).exists():
        _make(source, vocab_size, tokenizer, folder, share)
    # Not read into memory: a batch takes what it needs from the file.
    train, validation = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in _PARTS)
    tokenizer = bpe.from_json(folder / _TOKENIZER)
    end = tokenizer.encode(END, add_special_tokens=False).ids[0]
    about = json.loads((folder / _ABOUT).read_text())
    return Corpus(train, validation, tokenizer, end, about)


def _make(
    source: str, vocab_size: int, tokenizer: Tokenizer | None, folder: Path, share: float
) -> None:
    """Writes what `load` reads, `_ABOUT` last."""
    documents = dict(zip(_PARTS, _documents(source, share), strict=True))
    if tokenizer is None:
        tokenizer = train_tokenizer(documents["train"], vocab_size)
    end = tokenizer.token_to_id(END)
    if end is None:
        raise UserError(
            f"the tokenizer has no {END!r}, which separates documents; use text.tokenizer=bpe"
        )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / _TOKENIZER))
    digest, tokens = hashlib.sha256(), {}
    for name, texts in documents.items():
        stream = _stream(texts, tokenizer, end)
        np.save(folder / f"{name}.npy", stream)
        digest.update(stream.tobytes())
        tokens[f"{name}_tokens"] = len(stream)
    described = {
        "source": source,
        **{f"{name}_documents": len(texts) for name, texts in documents.items()},
        **tokens,
        "vocab_size": tokenizer.get_vocab_size(),
        "fingerprint": digest.hexdigest(),
    }
    workdir.write_atomically(folder / _ABOUT, json.dumps(described, indent=1).encode())


def num_ids(tokenizer: Tokenizer) -> int:
    """Rows of an embedding that has every token; ids may leave some out."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def train_tokenizer(texts: list[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE, as GPT-2's, of at most `vocab_size` tokens."""
    tokenizer = bpe.tokenizer({}, ())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer, len(texts))
    return tokenizer


def blocks(stream: np.ndarray, length: int) -> np.ndarray:
    """A view of a stream as blocks that overlap by one token: int32 [N, S + 1].

    Every token but the first of the stream is predicted once; what fills no block is left out.
    """
    count = (len(stream) - 1) // length
    if count < 1:
        raise UserError(
            f"the corpus has {len(stream)} tokens in one part, fewer than one block of {length}; "
            "give more text, or a shorter --config.model.length"
        )
    windows = np.lib.stride_tricks.sliding_window_view(stream, length + 1)
    return windows[: count * length : length]


def batch_at(parts: np.ndarray, step: int, size: int, seed: int) -> np.ndarray:
    """The batch of a step, int32 [size, S + 1]: all blocks in a new order in every epoch.

    It depends on `step` and `seed` alone, so a job that starts again anywhere sees the same.
    """
    index = np.arange(step * size, (step + 1) * size)
    rows = np.empty(size, np.int64)
    for epoch in np.unique(index // len(parts)):
        here = index // len(parts) == epoch
        order = _epoch_order(len(parts), seed, int(epoch))
        rows[here] = order[index[here] % len(parts)]
    return parts[rows]


@functools.lru_cache(maxsize=2)  # the epoch that is read, and the next that a batch reaches into
def _epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count)


def _stream(texts: list[str], tokenizer: Tokenizer, end: int) -> np.ndarray:
    pieces: list[int] = []
    for encoded in tokenizer.encode_batch(texts, add_special_tokens=False):
        pieces.append(end)
        pieces.extend(encoded.ids)
    return np.asarray([*pieces, end], np.int32)


def _documents(source: str, share: float) -> tuple[list[str], list[str]]:
    """Train and validation documents."""
    kind, _, name = source.partition(":")
    if kind == "text":
        return _text_files(name, share)
    if kind not in ("package", "tfds", "jsonl"):
        raise UserError(
            f"text source {source!r}: expected text:FILE_OR_FOLDER, package:..., tfds:... or "
            "jsonl:...: --config.text.source=..."
        )
    opened = sources.open_source(source)
    rows = {s: [_text(r, source) for r in opened.read(s).rows] for s in opened.splits}
    train = rows["train"] if "train" in rows else next(iter(rows.values()))
    for held_out in ("validation", "test"):
        if held_out in rows and rows[held_out] is not train:
            return _shuffled(train), rows[held_out]
    train = _shuffled(train)
    keep = _kept(len(train), share)
    return train[:keep], train[keep:]


def _text(row: dict[str, Any], source: str) -> str:
    text = row.get("text")
    if not isinstance(text, str):
        raise UserError(f"{source}: rows have no field 'text' but {', '.join(row)}")
    return text


def _shuffled(texts: list[str]) -> list[str]:
    order = np.random.default_rng(0).permutation(len(texts))
    return [texts[i] for i in order]


def _text_files(names: str, share: float) -> tuple[list[str], list[str]]:
    """Each file is a document; its end, from a line's start, is held out."""
    train, validation = [], []
    for path in _paths(names):
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as e:
            raise UserError(f"{path} cannot be read as UTF-8 text: {e}") from e
        cut = text.find("\n", _kept(len(text), share)) + 1 or len(text)
        train.append(text[:cut])
        validation.append(text[cut:])
    return train, [text for text in validation if text]


def _kept(count: int, share: float) -> int:
    return count - max(1, round(share * count))


def _paths(names: str) -> Iterator[Path]:
    for name in names.split(","):
        path = downloads.user_path(name.strip(), "config.text.source text:")
        found = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
        if not found or not path.exists():
            raise UserError(
                f"text source {str(path)!r} is no file and no folder with .txt files: "
                "--config.text.source=text:PATH"
            )
        yield from found
