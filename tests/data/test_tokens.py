"""Tokens of joined prompts against those of the whole text, and what tokenizers are read from."""

import json
from unittest import mock

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from icljax.checkpoints import load as checkpoints
from icljax.data import bpe, joins, prompts
from icljax.data.splits import Split
from icljax.data.task import Task
from icljax.errors import UserError
from tests.comparison.test_inputs import ANSWERS, prepare
from tests.conftest import bounded, make_tokenizer, tiny_llama_config, write_folder

SPECIAL = ["<unk>", "<s>", "</s>"]
IDS = {"<bos>": 1, "<eos>": 2}
REVIEW = Task("review", "Review: {text} Sentiment:", ("Negative", "Positive"))
BARE = Task("bare", "{text}", ("Negative", "Positive"))
CHOICE = Task("choice", "{text}")
_TEXT = """
Review: Sentiment: Negative Positive a the The film isn't I'M it'd been 1 23 4567 don't good, bad.
(very) "well" ... ?! -- cafés naïve cafe\u0301 \u00e5 A\u030a Москва 日本語 你好 😀 👩\u200d👩 ½ x²
ß </s> <s> <0x0A> ▁ _ a_b c++ #1 50% $3.20 http://x.y/z Tab <|im_start|> \u200b \ufb01 \u0130
"""
_WORDS = _TEXT.split()


def make_lines(count: int = 1000) -> list[str]:
    """Odd lines: several scripts, digits, punctuation, blanks and line ends of several kinds."""
    rng = np.random.default_rng(0)
    blanks = [" "] * 12 + ["", "  ", "\n", " \n", "\n\n", "\t", "\r\n", "   "]
    return [
        "".join(rng.choice(blanks) + rng.choice(_WORDS) for _ in range(rng.integers(1, 16)))
        + rng.choice(blanks)
        for _ in range(count)
    ]


LINES = make_lines()
LINES[:20] = [f"{line.strip()}.\n" for line in LINES[:20]]  # merged by Llama 3


def train(pre_tokenizer, special=SPECIAL, alphabet=()):
    """(vocabulary, merges) of a BPE trained on the lines."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=list(special),
        initial_alphabet=list(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(LINES[:300], trainer)
    made = json.loads(tokenizer.to_str())["model"]
    return made["vocab"], [tuple(merge) for merge in made["merges"]]


def byte_level(split):
    vocabulary, merges = train(bpe._pre_tokenizer(split), alphabet=bpe_alphabet())
    return bpe.tokenizer(vocabulary, merges, split, SPECIAL)


def bpe_alphabet():
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def sentencepiece(normalizer, pre_tokenizer, more=()):
    """Characters from a trained vocabulary, and bytes for all others."""
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    cut = pre_tokenizers.Metaspace(prepend_scheme="always")
    lines = pre_tokenizers.Split("\n", "isolated")
    vocabulary, merges = train(
        pre_tokenizers.Sequence([cut, lines]), [*SPECIAL, *fallback, *more], ["▁"]
    )
    vocabulary = {t: i for t, i in vocabulary.items() if t != "\n" or t in more}
    merges = [m for m in merges if all(t in vocabulary for t in (*m, "".join(m)))]
    # Real vocabularies leave out rare characters, which become bytes.
    vocabulary = {t: i for i, t in enumerate(t for t in vocabulary if t not in ("日", "Ü", "½"))}
    merges = [m for m in merges if all(t in vocabulary for t in (*m, "".join(m)))]
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizer
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in SPECIAL])
    return tokenizer


def blank():
    return normalizers.Replace(" ", "▁")


def prefix_space():
    tokenizer = byte_level("gpt-2")
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return tokenizer


STYLES = {
    "gpt-2": lambda: byte_level("gpt-2"),
    "smollm": lambda: byte_level("smollm"),
    "llama-3": lambda: byte_level("llama-bpe"),
    "qwen-2.5": lambda: byte_level("qwen2"),
    "llama-2": lambda: sentencepiece(
        normalizers.Sequence([normalizers.Prepend("▁"), blank()]), pre_tokenizers.Sequence([])
    ),
    "mistral": lambda: sentencepiece(
        normalizers.Sequence([]), pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    ),
    "metaspace": lambda: sentencepiece(
        normalizers.Sequence([]), pre_tokenizers.Metaspace(prepend_scheme="always")
    ),
    "gemma": lambda: sentencepiece(
        blank(), pre_tokenizers.Split(" ", "merged_with_previous"), ["\n", "\n\n"]
    ),
    "prefix-space": prefix_space,
}
BLANK_FIRST = ("llama-2", "mistral", "metaspace", "prefix-space")


@pytest.fixture(scope="module", params=STYLES)
def style(request):
    return request.param, STYLES[request.param]()


def split_of(texts, choices=()):
    rows = np.arange(len(texts), dtype=np.int32)
    return Split("made-up", [{"text": t} for t in texts], rows % 2, rows, list(choices))


def joined(encoder, split, rows):
    """(tokens, whole text) of a prompt whose last row is the query, each with its right answer."""
    shown = encoder.queries(split, rows[:-1])
    (query,) = encoder.queries(split, rows[-1:], start=False)
    pieces = joins.pieces(encoder.task, split, rows)
    tokens = []
    for one, row in zip(shown, rows[:-1], strict=True):
        tokens += [*one.demonstration(split.labels[row]), *encoder.separator]
    tokens += query.demonstration(split.labels[rows[-1]])
    texts = [f"{piece.prompt} {piece.candidates[piece.label]}" for piece in pieces]
    return tokens, encoder.separator_text.join(texts)


def prompts_of(encoder, split, size=5):
    for start in range(0, len(split.labels), size):
        rows = np.arange(start, min(start + size, len(split.labels)))
        tokens, text = joined(encoder, split, rows)
        yield rows, tokens, encoder.tokenizer.encode(text, add_special_tokens=False).ids


def told(encoder, split, shown, asked, but=()):
    """The kinds of joins that the job tells, without those in `but`."""
    pieces = joins.pieces(encoder.task, split, np.concatenate([shown, asked]))
    lines = joins.notes(encoder, [pieces[: len(shown)]], pieces[len(shown) :])
    kinds = [line.partition("join ")[2].partition(" are")[0] for line in lines]
    assert all("\n" not in line for line in lines)
    return [kind for kind in kinds if kind not in but]


@pytest.mark.parametrize("separator", ["\n", "\n\n", "<eos>"])
def test_a_prompt_has_the_tokens_of_its_text(style, separator):
    name, tokenizer = style
    encoder = prompts.make_encoder(tokenizer, REVIEW, "<bos>", separator, IDS)
    split = split_of(LINES if separator == "\n" else LINES[:100])
    for rows, tokens, whole in prompts_of(encoder, split):
        assert tokens == whole, (name, rows)
    every = np.arange(len(split.labels))
    # All but Mistral's write a blank first after a special token, as at the start.
    differs = name in BLANK_FIRST and (separator != "<eos>" or name == "mistral")
    assert told(encoder, split, every[:9], every[9:]) == ["BOS|text"] * differs


@pytest.mark.parametrize("separator", ["\n", "<eos>", ""])
def test_byte_level_texts_have_the_same_tokens_everywhere(style, separator):
    name, tokenizer = style
    encoder = prompts.make_encoder(tokenizer, REVIEW, "<bos>", separator, IDS)
    alone = [e.ids for e in tokenizer.encode_batch(LINES[:200], add_special_tokens=False)]
    stripped = [i for i in range(200) if LINES[i][:1].strip()]
    inside = encoder.encode(LINES[:200])
    same = [inside[i] == alone[i] for i in stripped]
    # All but Mistral's write a blank first after a special token, as at the start.
    assert all(same) == (name not in BLANK_FIRST or (separator == "<eos>" and name != "mistral"))
    assert encoder.encode(LINES[:200], first=True) == alone


@pytest.mark.parametrize("separator", ["\n", ". ", ""])
@pytest.mark.parametrize("task", [BARE, CHOICE], ids=["bare", "choice"])
def test_what_differs_is_told(style, separator, task):
    """Texts that end in a field, choices that end in a full stop: equal, or a line says so."""
    name, tokenizer = style
    encoder = prompts.make_encoder(tokenizer, task, "<bos>", separator, IDS)
    texts = [" ".join(t.split()) for t in LINES]
    lines = [t for t in texts if t and not t.startswith("\u0301")][:150]
    choices = [[f"{t}.", f"no {t}"] for t in reversed(lines)] if task == CHOICE else []
    split = split_of(lines, choices)
    same = 0
    for rows, tokens, whole in prompts_of(encoder, split):
        same += tokens == whole
        kinds = told(encoder, split, rows[:-1], rows[-1:], but=["BOS|text"])
        assert tokens == whole or kinds, (name, rows)
    if separator == "\n" and (task == BARE or name in ("gpt-2", "smollm", *BLANK_FIRST[:2])):
        assert same > 20


def test_an_answer_after_a_field_has_no_stray_blank(style):
    _, tokenizer = style
    for answer, tokens in zip(
        BARE.answers, prompts.answer_tokens(tokenizer, "{text}", BARE.answers), strict=True
    ):
        assert tuple(tokenizer.encode(f"a {answer}", add_special_tokens=False).ids[1:]) == tokens


def test_the_newline_is_one_token():
    """The case of a Llama tokenizer: no blank before the line end, none after it."""
    encoder = prompts.make_encoder(STYLES["llama-2"](), REVIEW, "<bos>", "\n", IDS)
    name = encoder.tokenizer.id_to_token
    assert [name(i) for i in encoder.separator] == ["<0x0A>"]
    split = split_of(["the film", "the film"])
    ours, inside = (encoder.queries(split, np.arange(1), start=s)[0].prompt for s in (True, False))
    assert name(ours[0]) == "▁Review:"
    assert not name(inside[0]).startswith("▁")


def test_a_full_stop_before_a_line_end():
    """Llama 3 and Qwen make one token of both; GPT-2 does not."""
    split = split_of(["is it", "was it"], [["good.", "bad."], ["dull.", "a mess."]])
    rows = np.arange(2)
    for style, expected in (("llama-3", ["demonstration|separator"]), ("gpt-2", [])):
        tokenizer = STYLES[style]()
        encoder = prompts.make_encoder(tokenizer, CHOICE, "<bos>", "\n", IDS)
        if style == "llama-3":
            dot = tokenizer.encode("a.\n").tokens
            assert dot[-1] == ".Ċ", "the training text has this pair"
        assert told(encoder, split, rows, rows) == expected


@pytest.mark.parametrize("separator", ["\n", "<eos>"])
@pytest.mark.parametrize(
    ("bos", "text"), [("Start: ", "the film"), ("th", "e film"), ("\n", "the film"), ("<bos>", "a")]
)
def test_a_text_as_bos_that_grows_into_the_first_word_is_told(style, bos, text, separator):
    """Without a note exactly where BOS and text have the tokens of both as one text."""
    name, tokenizer = style
    task = Task("bare", "{text}", ("good", "bad"))
    encoder = prompts.make_encoder(tokenizer, task, bos, separator, IDS)
    split, rows = split_of([text, text]), np.arange(2)
    used = [*encoder.bos, *encoder.queries(split, rows[:1], start=False)[0].prompt]
    whole = tokenizer.encode(encoder.start + text, add_special_tokens=False).ids
    same = used == [*(() if encoder.start else encoder.bos), *whole]
    assert ("BOS|text" in told(encoder, split, rows, rows)) == (not same), name
    if name == "gpt-2":
        assert same == (bos in ("\n", "<bos>"))


def test_choices_of_the_same_tokens_are_refused():
    """The model could not tell them apart; rounding would."""
    tokenizer = STYLES["gpt-2"]()
    tokenizer.normalizer = normalizers.Lowercase()
    encoder = prompts.make_encoder(tokenizer, CHOICE, "<bos>", "\n", IDS)
    split = split_of(["is it", "was it"], [["good", "bad"], ["dull", "Dull"]])
    encoder.queries(split, np.arange(1))
    with pytest.raises(UserError, match=r"example 1 of 'made-up' .*'Dull'\] become the same tok"):
        encoder.queries(split, np.arange(2))


def test_the_job_tells_what_differs(tmp_path, capsys):
    config = tiny_llama_config(vocab_size=1000, bos_token_id=1, eos_token_id=2)
    folder = write_folder(tmp_path / "model", config, {})
    STYLES["llama-2"]().save(str(folder / "tokenizer.json"))
    for split in ("train", "test"):
        rows = [{"title": f"{i} films.", "body": "dull", "stars": i % 2} for i in range(8)]
        lines = [json.dumps(row | {"title": row["title"] + split}) for row in rows]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    made = prepare(folder, tmp_path, **ANSWERS)
    assert len(made.notes) == 1
    assert "BOS|text are not those of the whole text for 16 of 16 examples" in made.notes[0]
    assert "['Po'], where the tokenizer writes ['▁', 'Po']" in made.notes[0]
    assert made.notes[0] in capsys.readouterr().out
    tokenizer, demonstrations = made.encoder.tokenizer, made.demonstrations
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    for tokens, valid in zip(demonstrations.context, demonstrations.context_valid, strict=True):
        text = tokenizer.decode(tokens[valid][1:])
        assert text.count("\n") == 3
        whole = tokenizer.encode(text.removeprefix(" "), add_special_tokens=False).ids
        assert tokens[valid].tolist() == [1, *whole]


# ---- What a tokenizer is read from -------------------------------------------------------------


def save_json(folder, **changes):
    """A tokenizer.json; a change named a.b is of that field."""
    made = json.loads(make_tokenizer().to_str())
    for path, value in changes.items():
        *parents, key = path.split(".")
        place = made
        for parent in parents:
            place = place[parent]
        place[key] = value
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(made))
    return path


def test_dropout_is_off(tmp_path):
    made, plain = bpe.from_json(save_json(tmp_path, **{"model.dropout": 0.5})), make_tokenizer()
    for text in LINES[:50]:
        assert made.encode(text).ids == plain.encode(text).ids


def test_sampling_is_off(tmp_path, monkeypatch):
    sampled = models.Unigram([("<unk>", 0.0), ("a", -1.0), ("aa", -1.5)], 0, False, alpha=0.1)
    tokenizer = Tokenizer(sampled)
    assert len({tuple(tokenizer.encode("a" * 12).ids) for _ in range(20)}) > 1
    monkeypatch.setattr(bpe, "Tokenizer", mock.Mock(from_buffer=lambda _: tokenizer))
    path = save_json(tmp_path)
    assert len({tuple(bpe.from_json(path).encode("a" * 12).ids) for _ in range(20)}) == 1


def save_folder(folder, model_type="gpt2", added=None, config=None, special=None, split="gpt-2"):
    """vocab.json, merges.txt and what is beside them, of GPT-2's or Qwen's style."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary, merges = train(bpe._pre_tokenizer(split), [], bpe_alphabet())
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    lines = ["#version: 0.2", *map(" ".join, merges), ""]
    (folder / "merges.txt").write_text("\n".join(lines))
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    for name, content in (
        ("added_tokens.json", added),
        ("tokenizer_config.json", config),
        ("special_tokens_map.json", special),
    ):
        if content is not None:
            (folder / name).write_text(json.dumps(content))
    return folder, len(vocabulary)


def read(folder):
    hf = json.loads((folder / "config.json").read_text())
    return checkpoints._read_tokenizer(folder, hf)


def refused(make, *args):
    with pytest.raises(UserError) as caught:
        make(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_qwen_files_are_cut_as_qwen_cuts(tmp_path):
    added = {"<|endoftext|>": 700, "<|im_start|>": 702}
    folder, size = save_folder(tmp_path, "qwen2", added, split="qwen2")
    assert size <= 700
    made = read(folder)
    vocabulary, merges = train(bpe._pre_tokenizer("qwen2"), [], bpe_alphabet())
    expected = bpe.tokenizer(vocabulary, merges, "qwen2")
    for line in LINES[:200]:
        if "<|im_start|>" not in line:
            assert made.encode(line).ids == expected.encode(line).ids
    assert made.encode("I'M<|im_start|>cafe\u0301").tokens == [
        *expected.encode("I'M").tokens,
        "<|im_start|>",
        *expected.encode("café").tokens,
    ]
    assert made.encode("<|im_start|>").ids == [702]
    gpt2 = bpe.tokenizer(vocabulary, merges)
    assert gpt2.encode("I'M 4567").ids != made.encode("I'M 4567").ids


@pytest.mark.parametrize("model_type", ["llama", "gpt_neox", "gemma", "mistral", None, [1]])
def test_files_that_do_not_say_how_texts_are_cut(tmp_path, model_type):
    folder, _ = save_folder(tmp_path, model_type)
    message = refused(read, folder)
    assert str(model_type) in message
    assert "AutoTokenizer.from_pretrained" in message


@pytest.mark.parametrize("name", ["tokenizer.model", "vocab.txt"])
def test_other_kinds_of_tokenizers_are_to_be_converted(tmp_path, name):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert "copy the model's tokenizer" in refused(read, tmp_path)
    (tmp_path / name).touch()
    assert f"AutoTokenizer.from_pretrained('{tmp_path}')" in refused(read, tmp_path)


def test_added_tokens_of_the_config(tmp_path):
    """Ids, blanks that a token takes with it, and which tokens decoding leaves out."""
    decoder = {
        "710": {"content": "[A]", "lstrip": True, "rstrip": True, "special": True},
        "712": {"content": "[B]", "special": False},
    }
    config = {"added_tokens_decoder": decoder, "add_prefix_space": True, "pad_token": "[A]"}
    folder, _ = save_folder(tmp_path, config=config, special={"eos_token": {"content": "[B]"}})
    made = read(folder)
    encoded = made.encode("the [A] film[B]")
    assert encoded.tokens[0].startswith("Ġ")
    assert [i for i in encoded.ids if i >= 700] == [710, 712]
    assert "Ġ" not in encoded.tokens
    assert made.decode(encoded.ids) == " the film[B]"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"added": {"[A]": 5}}, "token '[A]' has id 5, but"),
        ({"added": {"a": 900}}, "token 'a' has id 900, but"),
        ({"added": {"[A]": 900, "[B]": 900}}, "token '[B]' has id 900, but '[A]' has 900"),
        ({"added": {"[A]": "900"}}, "token '[A]' has id '900', expected"),
        ({"added": {"[A]": -1}}, "token '[A]' has id -1, expected"),
        ({"added": ["[A]"]}, "added_tokens.json: not a JSON object but list"),
        ({"config": {"added_tokens_decoder": {"x": {"content": "[A]"}}}}, "has id 'x', expected"),
        ({"config": {"added_tokens_decoder": {"900": 3}}}, "added_tokens_decoder 900 is 3, expec"),
        ({"config": {"added_tokens_decoder": [1]}}, "added_tokens_decoder is [1], expected"),
        ({"config": {"pad_token": "[PAD]"}}, "pad_token is '[PAD]', which has no id"),
        ({"config": {"pad_token": 5}}, "pad_token is 5, expected a text"),
        ({"special": {"pad_token": "[PAD]"}}, "special_tokens_map.json: pad_token is '[PAD]'"),
        ({"config": {"add_prefix_space": "no"}}, "add_prefix_space is 'no', expected true or"),
        ({"config": {"add_prefix_space": True}, "model_type": "qwen2"}, "add_prefix_space=true is"),
        ({"config": {"do_lower_case": True}}, "do_lower_case=true is not supported"),
        ({"config": {"split_special_tokens": True}}, "split_special_tokens=true is not supported"),
        ({"config": {"tokenizer_class": "BertTokenizer"}}, "tokenizer_class is 'BertTokenizer'"),
    ],
)
def test_files_that_do_not_belong_together(tmp_path, changes, expected):
    folder, _ = save_folder(tmp_path, **changes)
    assert expected in refused(read, folder)


@pytest.mark.parametrize(
    ("vocabulary", "expected"),
    [({"a": "x"}, "'a' has id 'x'"), ({"a": 1, "b": 1}, "one id"), ({"a": 1}, "of the 256 bytes")],
)
def test_vocabularies_that_lose_text(tmp_path, vocabulary, expected):
    folder, _ = save_folder(tmp_path)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    assert expected in refused(read, folder)


# ---- Damaged files -----------------------------------------------------------------------------

ODD = strategies.sampled_from(
    [
        None,
        True,
        -1,
        0,
        3,
        1e400,
        0.5,
        2**70,
        "",
        "x",
        "Ġ",
        "\ud800",
        [],
        [1],
        ["a", "b"],
        {},
        {"a": 1},
    ]
)


def places(value, path=()):
    """The paths of all fields, of long tables and lists the first few."""
    yield path
    items = (
        value if isinstance(value, dict) else range(len(value) if isinstance(value, list) else 0)
    )
    for key, inner in [(key, value[key]) for key in list(items)[:6]]:
        yield from places(inner, (*path, key))


def changed(value, path, new):
    if not path:
        return new
    out = value.copy()
    out[path[0]] = changed(value[path[0]], path[1:], new)
    return out


def tokenizer_or_line(make):
    try:
        return make()
    except UserError as e:
        message = str(e)
    assert "\n" not in message
    return message


JSONS = [json.loads(make().to_str()) for make in (make_tokenizer, *STYLES.values())]


@pytest.mark.fuzz
@bounded(300)
@hypothesis.given(strategies.data())
def test_a_damaged_tokenizer_is_told_in_one_line(tmp_path_factory, data):
    made = data.draw(strategies.sampled_from(JSONS))
    for _ in range(data.draw(strategies.integers(1, 2))):
        path = data.draw(strategies.sampled_from(list(places(made))))
        made = changed(made, path, data.draw(ODD))
    file = tmp_path_factory.getbasetemp() / "damaged.json"
    text = json.dumps(made)
    file.write_text(text[: data.draw(strategies.sampled_from([len(text)] * 9 + [len(text) // 2]))])
    tokenizer = tokenizer_or_line(lambda: bpe.from_json(file))
    if isinstance(tokenizer, Tokenizer):
        assert tokenizer.encode("a film").ids == tokenizer.encode("a film").ids


@pytest.fixture(scope="module")
def whole_folder(tmp_path_factory):
    token = {"content": "[A]", "lstrip": False, "normalized": False, "special": True}
    config = {"added_tokens_decoder": {"900": token}, "eos_token": token, "add_prefix_space": False}
    special = {"eos_token": token, "additional_special_tokens": ["[A]", "[B]"]}
    return save_folder(tmp_path_factory.mktemp("whole"), "gpt2", {"[B]": 901}, config, special)[0]


@pytest.mark.fuzz
@bounded(200)
@hypothesis.given(strategies.data())
def test_damaged_files_of_a_folder_are_told_in_one_line(whole_folder, data):
    name = data.draw(strategies.sampled_from(bpe.FILES))
    path = whole_folder / name
    kept = path.read_text()
    if name == "merges.txt":
        lines = kept.split("\n")
        at = data.draw(strategies.integers(0, len(lines) - 1))
        lines[at] = data.draw(strategies.sampled_from(["", " ", "a", "a b c", "zz zz", "Ġ Ġ"]))
        new = "\n".join(lines)
    else:
        made = json.loads(kept)
        place = data.draw(strategies.sampled_from(list(places(made))))
        new = json.dumps(changed(made, place, data.draw(ODD)))
    try:
        path.write_text(new)
        tokenizer_or_line(lambda: read(whole_folder))
    finally:
        path.write_text(kept)
