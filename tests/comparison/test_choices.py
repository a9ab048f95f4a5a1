"""Multiple choice against an independent implementation: PyTorch, a forward pass a candidate.

Its prompts are put together here from the rows, as lm-evaluation-harness does it: each candidate's
text continues its own context, both are encoded as one text, and the context's tokens are cut off.

With the data at hand (folders piqa and arc_easy of JSONL files), on the real model:

    ICLJAX_DATA=DIR python -m pytest -n 0 -rP -m 'real and parity' tests/comparison/test_choices.py
"""

import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icljax import checkpoints
from icljax.comparison import forward, inputs
from icljax.experiments import config as config_lib
from icljax.models.decoder import Decoder
from tests.conftest import WORDS

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity


# ---- The peer ----------------------------------------------------------------------------------


def line(text):
    return " ".join(text.split())


def piqa(row):
    context = f"Question: {line(row['goal'])} Answer:"
    return [(context, line(row[solution])) for solution in ("sol1", "sol2")]


def arc(row):
    context = f"Question: {line(row['question'])} Answer:"
    return [(context, line(choice)) for choice in row["choices"]]


def winogrande(row):
    before, after = map(line, row["sentence"].split("_"))
    return [(f"{before} {line(row[option])}", after) for option in ("option1", "option2")]


PEERS = {"piqa": piqa, "arc_easy": arc, "winogrande": winogrande}


def peer_score(peer, encode, prefix, context, continuation, score):
    """The continuation's log-probability after a prefix of tokens and a context."""
    own = encode(f"{context} {continuation}")
    start = len(prefix) + len(encode(context))
    ids = torch.tensor([[*prefix, *own]])
    with torch.no_grad():
        logprob = torch.log_softmax(peer(ids).logits[0].float(), -1)
    tokens = range(start, ids.shape[1])
    each = [float(logprob[i - 1, ids[0, i]]) for i in tokens]
    return sum(each) if score == "sum" else sum(each) / len(each)


def peer_scores(peer, encode, prefix, rows, candidates, score):
    return [[peer_score(peer, encode, prefix, *c, score) for c in candidates(row)] for row in rows]


# ---- icljax ------------------------------------------------------------------------------------


def our_scores(prepared, model, params, in_context):
    """Scores [N, Y] in the order of the examples."""
    d = prepared.demonstrations
    first = np.arange(d.context.shape[1]) < len(prepared.encoder.bos)
    valid = d.context_valid[0] if in_context else first
    encode, read = (jax.jit(f, static_argnums=0) for f in (forward.encode, forward.read))
    state = encode(model, params, jnp.asarray(d.context[0]), jnp.asarray(valid))
    queries = prepared.evaluation
    out = np.full((len(prepared.labels), queries.target.shape[3]), np.nan)
    for b in range(len(queries.example)):
        batch = jax.tree.map(lambda x, b=b: x[b], queries)
        example = batch.example.reshape(-1)
        out[example[example >= 0]] = read(model, params, state, batch).logprob[example >= 0]
    return out


def compare(config, folder, peer, in_context):
    """Returns the share of equal choices, the peer's accuracy and the largest difference."""
    checkpoint = checkpoints.open_checkpoint(config.model)
    prepared = inputs.prepare(config, checkpoint, print)
    model = Decoder(checkpoint.config)
    params = checkpoints.load_params(checkpoint.folder, model.config)
    ours = our_scores(prepared, model, params, in_context)

    def encode(text):
        return checkpoint.tokenizer.encode(text, add_special_tokens=False).ids

    def source_rows(split):
        path = folder / f"{split.name.partition('[')[0]}.jsonl"
        return [json.loads(text) for text in path.read_text().split("\n") if text.strip()]

    candidates, train = PEERS[config.task], prepared.dataset.train
    rows, prefix = source_rows(train), [checkpoint.bos]
    drawn = np.random.default_rng(config.seeds[0]).permutation(len(train.labels))
    for i in drawn[: config.num_demonstrations] if in_context else ():
        right = candidates(rows[train.indices[i]])[train.labels[i]]
        prefix += encode(" ".join(right)) + encode("\n")
    rows = source_rows(prepared.dataset.validation)
    rows = [rows[i] for i in prepared.rows]
    theirs = peer_scores(peer, encode, prefix, rows, candidates, config.prompt.score)
    assert all(np.isneginf(s[len(t) :]).all() for s, t in zip(ours, theirs, strict=True))
    worst = max(np.abs(s[: len(t)] - t).max() for s, t in zip(ours, theirs, strict=True))
    choices = np.array([np.argmax(t) for t in theirs])
    same = np.mean(ours.argmax(-1) == choices)
    return float(same), float(np.mean(choices == prepared.labels)), float(worst)


def make_config(task, model, source, examples, demonstrations, **changes):
    config = config_lib.default()
    config.task, config.model, config.data.source = task, str(model), f"jsonl:{source}"
    config.seeds, config.num_demonstrations = (1,), demonstrations
    config.selection.num_examples, config.eval.num_examples = 2, examples
    config.mode, config.selection.split, config.record_position = "paper", "train", "answer"
    config.update_from_flattened_dict(changes)
    config_lib.fill_in(config)
    return config


# ---- Made-up rows on a tiny model --------------------------------------------------------------


def made_up(task, rng):
    """One row of a task, of words that the tiny tokenizer knows."""

    def words(low=1, high=9):
        return " ".join(rng.choice(WORDS[:34], rng.integers(low, high)))

    choices = [words() for _ in range(rng.integers(3, 6))]
    rows = {
        "arc_easy": {"question": words(), "choices": choices, "label": 2},
        "winogrande": {
            "sentence": f"{words(2)} _ {words()} .",
            "option1": words(),
            "option2": words(1, 3),
            "label": 0,
        },
    }
    return rows[task]


@pytest.mark.parametrize(("task", "score"), [("arc_easy", "sum"), ("winogrande", "mean")])
def test_made_up_rows(tiny_folder, tmp_path, task, score):
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("validation", 10)):
        lines = [json.dumps(made_up(task, rng)) for _ in range(count)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    config = make_config(task, tiny_folder, tmp_path, 10, 3, **{"prompt.score": score})
    peer = transformers.AutoModelForCausalLM.from_pretrained(tiny_folder).eval()
    same, _, worst = compare(config, tmp_path, peer, in_context=True)
    assert worst < 1e-4
    assert same == 1


# ---- The real model ----------------------------------------------------------------------------


@pytest.mark.real
@pytest.mark.parametrize("in_context", [False, True], ids=["zero-shot", "in-context"])
@pytest.mark.parametrize("task", ["piqa", "arc_easy"])
def test_smollm2(task, in_context):
    """The same choice on at least 99 of 100 examples."""
    if "ICLJAX_DATA" not in os.environ:
        pytest.skip("ICLJAX_DATA: a folder with piqa and arc_easy")
    folder = Path(os.environ["ICLJAX_DATA"]) / task
    config = make_config(task, "smollm2-135m", folder, 100, 2)
    if task == "piqa":  # it has no train file
        config.data.train_split = "validation[:20%]"
        config.data.validation_split = "validation[20%:]"
    checkpoint = checkpoints.open_checkpoint(config.model)
    peer = transformers.AutoModelForCausalLM.from_pretrained(
        checkpoint.folder, dtype=torch.float32
    ).eval()
    same, accuracy, worst = compare(config, folder, peer, in_context)
    print(
        f"{task}, {'in-context' if in_context else 'zero-shot'}: the same choice on {same:.1%} of "
        f"100, accuracy {accuracy:.1%}, largest difference in log-probability {worst:.1e}"
    )
    assert same >= 0.99
