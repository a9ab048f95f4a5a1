"""Tokenizers of pieces with scores: by hand, and against SentencePiece on Gemma's own pieces."""

import json
import random
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from icljax import checkpoints
from icljax.checkpoints import gguf_file
from icljax.data import pieces
from tests.conftest import gguf_of

NORMAL = ["▁", "a", "b", "ab", "▁ab", "aba", "ba", "aa"]
SCORES = [-9.0, -9.0, -9.0, -2.0, -3.0, -1.0, 0.0, -4.0]
FOUND = ["\n", "\n\n", "  ", "<b>"]
ALL = [*pieces.BYTES, *NORMAL, *FOUND]


def make(prefix=False, without=()):
    normal = [i for i, piece in enumerate(ALL) if piece in NORMAL and piece not in without]
    scores = [0.0] * 256 + SCORES + [0.0] * len(FOUND)
    found = [ALL.index(piece) for piece in FOUND]
    return pieces.tokenizer(ALL, scores, normal, found, prefix)


def cut(text, **options):
    return [ALL[i] for i in make(**options).encode(text, add_special_tokens=False).ids]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ab", ["ab"]),
        ("aba", ["aba"]),
        ("bab", ["ba", "b"]),  # the higher score first, not the first pair
        (" ab", ["▁ab"]),
        ("a ab", ["a", "▁ab"]),
        ("a  ab", ["a", "  ", "ab"]),  # a run of blanks is found before merges
        ("a   b", ["a", "  ", "▁", "b"]),
        ("\n\n\nab", ["\n\n", "\n", "ab"]),  # the longest first
        ("a<b>b", ["a", "<b>", "b"]),
        ("aaaaa", ["aa", "aa", "a"]),  # from the left
        ("é", ["<0xC3>", "<0xA9>"]),
        ("a\tb", ["a", "<0x09>", "b"]),
        ("▁ab", ["▁ab"]),  # a written one is none other, as in SentencePiece
        ("", []),
    ],
)
def test_cuts(text, expected):
    assert cut(text) == expected


def test_a_blank_before_a_text():
    assert cut("ab", prefix=True) == ["▁ab"]
    assert cut(" ab", prefix=True) == ["▁", "▁ab"]
    assert make(prefix=True).decode(make(prefix=True).encode("ab a").ids) == "ab a"


def test_a_piece_that_is_not_normal_is_never_made():
    assert cut("ab", without=("ab", "▁ab")) == ["a", "b"]
    assert cut("<0x41>") == [f"<0x{ord(c):02X}>" for c in "<0x41>"]


@pytest.mark.parametrize("text", ["ab\n\n a  é \U0001f600\tab", "  <b>", "\r\n"])
def test_what_is_decoded_is_the_text(text, tmp_path):
    make().save(str(tmp_path / "tokenizer.json"))
    read = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert read.decode(read.encode(text).ids) == text
    assert read.encode(text).ids == make().encode(text).ids


def test_a_byte_without_a_piece():
    with pytest.raises(ValueError, match="1 of the 256 bytes have no piece, such as <0x07>"):
        pieces.tokenizer([*pieces.BYTES[:7], *pieces.BYTES[8:]], [0.0] * 255, [], [], False)


# ---- Gemma's pieces against SentencePiece ------------------------------------------------------

SCRIPTS = (
    *((0x20, 0x7E), (0xA0, 0x17F), (0x370, 0x3FF), (0x400, 0x4FF), (0x590, 0x5FF)),
    *((0x600, 0x6FF), (0x900, 0x97F), (0xE00, 0xE7F), (0x3040, 0x30FF), (0x4E00, 0x9FFF)),
    *((0xAC00, 0xD7A3), (0x1F300, 0x1FAFF), (0x10000, 0x10FFD), (0x2000, 0x206F), (0x00, 0x1F)),
)
ODD = (
    *("<b>", "</table>", "\r\n", "=-=-=-", "aaaa", "haha", "<start_of_image>", "\\n", "0x1F"),
    *("\U0001f469\u200d\U0001f467", "e\u0301", "\ufb01", "\uff11\uff12", "\u00a0", "\u3000"),
    *("don't", "x_y.z()", "1,234.50", "▁"),
)


def mixed_lines(count):
    """Code, numbers, scripts, emoji and odd whitespace; the same every time."""
    code = [line for line in Path(json.__file__).read_text("utf-8").split("\n") if line.strip()]
    code += Path(random.__file__).read_text("utf-8").split("\n")[:300]
    draw = random.Random(0)

    def scribble():
        low, high = draw.choice(SCRIPTS)
        return chr(draw.randint(low, high)) * draw.choice((1, 1, 1, 5))

    def part():
        runs = (" ", "\n", "\t")
        others = (
            scribble,
            lambda: draw.choice(ODD),
            lambda: str(draw.randint(0, 10**9)),
            lambda: draw.choice(runs) * draw.randint(1, 40),
            lambda: draw.choice(code),
        )
        return draw.choice(others)()

    half = [draw.choice(code) for _ in range(count // 2)]
    return half + ["".join(part() for _ in range(draw.randint(1, 12))) for _ in half]


def reference(tokens, scores, kinds):
    """Google's own program on a model file of the same pieces."""
    sentencepiece = pytest.importorskip("sentencepiece")
    proto = pytest.importorskip("sentencepiece.sentencepiece_model_pb2").ModelProto()
    trained, normal = proto.trainer_spec, proto.normalizer_spec
    trained.model_type, trained.byte_fallback = trained.BPE, True
    trained.pad_id, trained.eos_id, trained.bos_id, trained.unk_id = range(4)
    normal.name, normal.add_dummy_prefix, normal.remove_extra_whitespaces = "identity", False, False
    for token, score, kind in zip(tokens, scores, kinds, strict=True):
        kind = 2 if token == "<unk>" else kind
        proto.pieces.add(piece=token.replace(" ", "▁"), score=score, type=kind)
    return sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())


@pytest.mark.real
@pytest.mark.parity
def test_gemma_cuts_as_sentencepiece_does():
    ours = checkpoints.open_checkpoint("gemma-3-270m").tokenizer
    gguf = gguf_file.read(gguf_of("gemma-3-270m"))
    tokens = gguf.field("tokenizer.ggml.tokens")
    theirs = reference(
        tokens, *(gguf.field(f"tokenizer.ggml.{name}") for name in ("scores", "token_type"))
    )
    lines = mixed_lines(1000)
    assert sum(map(str.isascii, lines)) < 900
    for line in lines:
        got = ours.encode(line, add_special_tokens=False).ids
        assert got == theirs.encode(line), repr(line)
        assert ours.decode(got) == line.replace("▁", " ")
    # Special tokens in a text are found, where SentencePiece's program would spell them.
    got = ours.encode("<bos>a <eos>", add_special_tokens=False).ids
    assert got == [2, *theirs.encode("a "), 1]
