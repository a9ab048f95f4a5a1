"""Our decoder and settings against PyTorch's `transformers`: tiny random models, no download.

`pytest -rP -m parity tests/models/test_parity.py` prints the largest difference of every
comparison, and after the last test a table of them.
"""

import functools
import warnings
from typing import NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icljax import checkpoints
from icljax.comparison import finetune, forward
from icljax.models import families
from icljax.models.architectures import ARCHITECTURES
from icljax.models.decoder import Decoder, DecoderConfig
from icljax.types import Params
from tests.checkpoints.test_load import ALICE
from tests.comparison.test_forward import make_encoder, pack_once
from tests.conftest import make_tokenizer
from tests.models.test_families import count

with warnings.catch_warnings():  # what importing them warns of is none of our business
    warnings.simplefilter("ignore")
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.parity

SHARED = {"vocab_size": 400, "bos_token_id": 0, "eos_token_id": 1, "attn_implementation": "eager"}
LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}
# Caps low enough to bend what random weights give.
GEMMA_2 = LLAMA | {
    "head_dim": 16,
    "tie_word_embeddings": True,
    "sliding_window": 6,
    "query_pre_attn_scalar": 24,
    "attn_logit_softcapping": 2.0,
    "final_logit_softcapping": 5.0,
}
GEMMA_3 = LLAMA | {
    "head_dim": 16,
    "tie_word_embeddings": True,
    "sliding_window": 6,
    "query_pre_attn_scalar": 24,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 500.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 20.0},
    },
}
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 500.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
QUARTER_ROPE = {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.25}
GPT2 = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 256}
NEO = {
    "hidden_size": 32,
    "num_layers": 3,
    "num_heads": 4,
    "max_position_embeddings": 256,
    "attention_types": [[["global", "local"], 1], [["global"], 1]],
    "window_size": 6,
}
NEOX = {key: LLAMA[key] for key in list(LLAMA)[:4]} | {"max_position_embeddings": 256}
OPT = {key: NEOX[key] for key in NEOX if key != "intermediate_size"} | {"ffn_dim": 48}
XGLM = {
    "d_model": 32,
    "ffn_dim": 48,
    "num_layers": 3,
    "attention_heads": 4,
    "max_position_embeddings": 256,
}
# Name -> (model type, its config). Windows are far shorter than the texts.
FAMILIES = {
    "llama": ("llama", {**LLAMA, "tie_word_embeddings": True}),
    "llama-biases": ("llama", {**LLAMA, "attention_bias": True, "mlp_bias": True}),
    "llama-wide-heads": ("llama", {**LLAMA, "head_dim": 16, "num_key_value_heads": 1}),
    "llama-3.1": ("llama", {**LLAMA, "rope_parameters": LLAMA3_ROPE}),
    "llama-linear": ("llama", {**LLAMA, "rope_parameters": LINEAR_ROPE}),
    "mistral": ("mistral", {**LLAMA, "sliding_window": 7}),
    "qwen2": (
        "qwen2",
        {**LLAMA, "use_sliding_window": True, "sliding_window": 6, "max_window_layers": 2},
    ),
    "qwen3": ("qwen3", {**LLAMA, "head_dim": 16, "attention_bias": True}),
    "gemma": ("gemma", {**LLAMA, "head_dim": 16, "tie_word_embeddings": True}),
    "llama-yarn": ("llama", {**LLAMA, "rope_parameters": YARN_ROPE}),
    "olmo2": ("olmo2", LLAMA),
    "granite": (
        "granite",
        {
            **LLAMA,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.3,
            "attention_multiplier": 0.2,
            "logits_scaling": 2.0,
        },
    ),
    "smollm3": ("smollm3", {**LLAMA, "no_rope_layers": [1, 0, 1], "pad_token_id": 0}),
    "stablelm": ("stablelm", {**LLAMA, "use_qkv_bias": True, "rope_parameters": QUARTER_ROPE}),
    "gemma2": ("gemma2", GEMMA_2),
    "gemma2-uncapped": (
        "gemma2",
        {**GEMMA_2, "attn_logit_softcapping": None, "final_logit_softcapping": None},
    ),
    "gemma3": ("gemma3_text", GEMMA_3),
    "gemma3-linear": (
        "gemma3_text",
        {**GEMMA_3, "rope_parameters": {"full_attention": LINEAR_ROPE}},
    ),
    "gpt2": ("gpt2", GPT2),
    "gpt2-untied": ("gpt2", {**GPT2, "tie_word_embeddings": False}),
    "gpt_neo": ("gpt_neo", NEO),
    "gptj": ("gptj", {**GPT2, "rotary_dim": 4}),
    "gpt_neox": ("gpt_neox", {**NEOX, "rotary_pct": 0.5, "rotary_emb_base": 500}),
    "gpt_neox-sequential": (
        "gpt_neox",
        {**NEOX, "use_parallel_residual": False, "attention_bias": False},
    ),
    "opt": ("opt", OPT),
    "opt-galactica": ("opt", {**OPT, "enable_bias": False, "activation_function": "gelu"}),
    "xglm": ("xglm", XGLM),
}
FINETUNED = ("llama", "gpt2", "gpt_neox", "opt")
COLUMNS = ("logits", "attention output", "scores")
TABLE: dict[str, dict[str, float]] = {}  # family -> what was compared -> largest difference


class Pair(NamedTuple):
    """One model, twice."""

    name: str
    peer: "transformers.PreTrainedModel"
    model: Decoder
    params: Params

    @property
    def config(self) -> DecoderConfig:
        return self.model.config


def peer_model(name):
    """A random float32 model whose biases, norms and attention are far from their neutral start."""
    kind, options = FAMILIES[name]
    config = transformers.AutoConfig.for_model(kind, **SHARED, **options)
    torch.manual_seed(0)
    peer = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return peer.float().eval()


def our_params(peer, folder):
    """What our loader makes of the peer's saved folder."""
    peer.save_pretrained(folder)
    make_tokenizer().save(str(folder / "tokenizer.json"))
    checkpoint = checkpoints.open_checkpoint(str(folder))
    return checkpoint.config, checkpoints.load_params(checkpoint.folder, checkpoint.config)


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request, tmp_path_factory):
    peer = peer_model(request.param)
    config, params = our_params(peer, tmp_path_factory.mktemp(request.param))
    return Pair(request.param, peer, Decoder(config), params)


def close(pair, what, got, expected, atol):
    """Compares, and says how far apart they are."""
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.shape == expected.shape
    difference = np.abs(got - expected).max()
    print(
        f"{pair.name:20} {what:24} largest difference {difference:.1e}"
        f" of {np.abs(expected).max():.3g}"
    )
    row = TABLE.setdefault(pair.name, {})
    row[what] = max(row.get(what, 0.0), difference)
    np.testing.assert_allclose(got, expected, rtol=0, atol=atol)


@pytest.fixture(scope="module", autouse=True)
def table():
    """Printed after the last test."""
    yield
    row = "{:20} {:>10} {:>18} {:>10}".format
    print("\n" + row("largest difference", *COLUMNS))
    for name, seen in TABLE.items():
        print(row(name, *(f"{seen.get(what, np.nan):.1e}" for what in COLUMNS)))


def tokens_of(*shape, seed=0):
    return np.random.default_rng(seed).integers(2, 400, shape).astype(np.int32)


# ---- The peer's intermediates ------------------------------------------------------------------


class Seen(NamedTuple):
    """Of one unpadded sequence of S tokens.

    Attributes:
        logits: [S, V].
        attn_out: [L, S, D].
        scores: [L, H, S, S], scaled, before softmax; query then key; 0 where masked.
        visible: bool [L, S, S], False where masked.
        query: [L, S, H * K], scaled, before rotation.
    """

    logits: np.ndarray
    attn_out: np.ndarray
    scores: np.ndarray
    visible: np.ndarray
    query: np.ndarray


def attention_modules(peer):
    kind, layers = peer.config.model_type, peer.base_model
    if kind == "gpt_neo":
        return [block.attn.attention for block in layers.h]
    if kind in ("gpt2", "gptj"):
        return [block.attn for block in layers.h]
    layers = layers.decoder.layers if kind == "opt" else layers.layers
    return [layer.attention if kind == "gpt_neox" else layer.self_attn for layer in layers]


def look(peer, tokens):
    """One pass of the peer, with hooks on its attention and an eye on what its softmax is given."""
    outputs, scores, softmax = {}, [], torch.nn.functional.softmax
    modules = attention_modules(peer)
    hooks = [
        module.register_forward_hook(lambda module, _, out: outputs.update({module: out}))
        for attention in modules
        for module in (attention, *attention.children())
    ]

    def spy(x, *args, **options):
        scores.append(x.detach().reshape(-1, *x.shape[-2:]).numpy())
        return softmax(x, *args, **options)

    ids = torch.from_numpy(np.asarray(tokens, np.int64))[None]
    with torch.no_grad(), mock.patch.object(torch.nn.functional, "softmax", spy):
        logits = peer(ids).logits[0]
    for hook in hooks:
        hook.remove()
    scores = np.stack(scores)
    visible = scores > -1e30
    assert (visible == visible[:, :1]).all()
    attn_out = np.stack([outputs[module][0][0].numpy() for module in modules])
    query = np.stack([queries(peer, module, outputs).numpy() for module in modules])
    return Seen(logits.numpy(), attn_out, np.where(visible, scores, 0), visible[:, 0], query)


def queries(peer, attention, outputs):
    """Of one layer: [S, H * K], scaled, before rotation."""
    kind, config = peer.config.model_type, peer.config
    if kind == "gpt2":
        query = outputs[attention.c_attn][0].split(config.n_embd, -1)[0]
    elif kind == "gpt_neox":
        joint = outputs[attention.query_key_value][0]
        query = joint.reshape(len(joint), config.num_attention_heads, 3, -1)[:, :, 0]
    else:
        query = outputs[getattr(attention, "q_norm", attention.q_proj)][0]
    if kind == "gemma3_text":  # its norms come after heads and tokens were swapped
        query = query.swapaxes(0, 1)
    query = query.reshape(len(query), config.num_attention_heads, -1)
    scaling = getattr(attention, "scaling", query.shape[-1] ** -0.5)
    query = query * (1.0 if kind == "gpt_neo" else scaling)
    return query.flatten(1)


# ---- Forward passes ----------------------------------------------------------------------------


def jitted(pair, function, *args):
    """`function` of the pair's model and parameters."""
    return jax.jit(functools.partial(function, pair.model))(pair.params, *args)


def our_logits(pair, tokens):
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    return jax.jit(pair.model.apply)({"params": pair.params}, jnp.asarray(tokens), positions)


def test_logits(pair):
    tokens = tokens_of(3, 40)
    with torch.no_grad():
        expected = pair.peer(torch.from_numpy(tokens.astype(np.int64))).logits
    close(pair, "logits", our_logits(pair, tokens), expected, 1e-4)


def test_logits_with_padding(pair):
    tokens, lengths = tokens_of(3, 40), np.array([40, 17, 1])
    valid = np.arange(40) < lengths[:, None]
    with torch.no_grad():
        expected = pair.peer(
            torch.from_numpy(tokens.astype(np.int64)),
            attention_mask=torch.from_numpy(valid.astype(np.int64)),
        ).logits.numpy()
    got = np.asarray(our_logits(pair, tokens))
    assert np.isfinite(got).all()
    close(pair, "logits, padded", got[valid], expected[valid], 1e-4)


def test_record_at_one_position_per_row(pair):
    tokens, at = tokens_of(3, 24), np.array([[23], [11], [0]], np.int32)
    positions = np.broadcast_to(np.arange(24, dtype=np.int32), (3, 24))
    record = jitted(pair, forward.hidden, tokens, positions, None, None, at).record
    seen = [look(pair.peer, row) for row in tokens]
    last = list(zip(seen, at[:, 0], strict=True))
    attn_out = np.stack([s.attn_out[:, i] for s, i in last], 1)
    close(pair, "attention output", record.attn_out[:, :, 0], attn_out, 1e-4)
    scores = np.stack([s.scores[:, :, i] for s, i in last], 1)
    visible = np.stack([s.visible[:, None, i] for s, i in last], 1)
    close(pair, "scores", np.where(visible, record.scores_query[:, :, 0], 0), scores, 1e-4)
    query = np.stack([s.query[:, i] for s, i in last], 1)
    got = record.query[:, :, 0].reshape(query.shape)
    close(pair, "query", got, query, 1e-4)


def test_state_and_queries_equal_whole_texts(pair):
    """`encode` a context once, `read` packed queries after it; the peer reads each whole text."""
    encoder = make_encoder(("very good film", "bad"))
    context = tokens_of(21, seed=5)
    padded = np.concatenate([context, np.zeros(11, np.int32)])
    state = jitted(pair, forward.encode, padded, np.arange(32) < 21)
    texts = [tokens_of(n, seed=n).tolist() for n in (9, 20, 4)]
    packed = pack_once(texts, encoder.answers)
    records = jitted(pair, forward.read, state, packed)
    own, slot_of = forward.own_tokens(packed), packed.example.reshape(-1).tolist()
    for n, text in enumerate(texts):
        slot = slot_of.index(n)
        seen = look(pair.peer, [*context, *text])
        got = jax.tree.map(lambda x, slot=slot: np.asarray(x[slot]), records.attention)
        close(pair, "after a state: output", got.attn_out, seen.attn_out[:, -1], 1e-4)
        close(pair, "after a state: query", got.query, seen.query[:, -1], 1e-4)
        visible = seen.visible[:, -1]
        scores = got.scores_query[..., np.asarray(own[slot])]
        scores = np.where(visible[:, None, 21:], scores, 0)
        close(pair, "after a state: scores", scores, seen.scores[:, :, -1, 21:], 1e-4)
        to_state = np.where(visible[:, :21], records.scores_state[slot][:, :21], 0)
        close(pair, "scores to the state", to_state, seen.scores[:, :, -1, :21].sum(1), 1e-4)
        for y, answer in enumerate(encoder.answers):
            logits = look(pair.peer, [*context, *text, *answer]).logits[-len(answer) - 1 : -1]
            logprob = jax.nn.log_softmax(jnp.asarray(logits))
            expected = np.mean([logprob[i, token] for i, token in enumerate(answer)])
            close(pair, "answer log-probability", records.logprob[slot, y], expected, 1e-4)


# ---- Finetuning --------------------------------------------------------------------------------


def trained_parameters(peer):
    """Makes only the key and value projections trainable, and returns them."""
    peer.requires_grad_(False)
    joint = {"gpt2": "c_attn", "gpt_neox": "query_key_value"}.get(peer.config.model_type)
    names = (joint,) if joint else ("k_proj", "v_proj")
    modules = [getattr(a, name) for a in attention_modules(peer) for name in names]
    trained = [p.requires_grad_(True) for module in modules for p in module.parameters()]
    for parameter in trained if joint else ():
        parameter.register_hook(without_query if joint == "c_attn" else without_query_of_heads)
    return trained


def without_query(gradient):
    """GPT-2's joint projection [(D,) 3 * D]: its first D columns make the query, and stay."""
    gradient = gradient.clone()
    gradient[..., : gradient.shape[-1] // 3] = 0
    return gradient


def without_query_of_heads(gradient):
    """GPT-NeoX's joint projection [H * 3 * K (, D)]: the first K rows of each head stay."""
    heads = gradient.clone().reshape(4, 3, -1)
    heads[:, 0] = 0
    return heads.reshape(gradient.shape)


def peer_finetune(peer, rate, examples):
    """Plain SGD, an example a step: (losses, scaled queries before each step)."""
    optimizer = torch.optim.SGD(trained_parameters(peer), rate)
    losses, queries = [], []
    for tokens in examples:
        queries.append(look(peer, tokens).query)
        ids = torch.from_numpy(tokens.astype(np.int64))[None]
        loss = peer(ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, queries


def leaves_by_name(params):
    paths = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="."): x for path, x in paths}


def test_finetuning(pair, tmp_path):
    if pair.name not in FINETUNED:
        pytest.skip("one model of each form of its projections is enough")
    lengths, rates = [20, 5, 33], np.array([0.01, 0.1], np.float32)
    examples = [tokens_of(n, seed=n) for n in lengths]
    train = np.stack([np.pad(x, (0, 48 - len(x))) for x in examples])
    every = np.stack([np.arange(train.size)] * 2)
    tuned = finetune.finetune(
        pair.model, pair.params, rates, np.stack([train] * 2), np.array([lengths] * 2), every
    )
    before = leaves_by_name(pair.params)
    for run, rate in enumerate(rates):
        peer = peer_model(pair.name)
        losses, queries = peer_finetune(peer, float(rate), examples)
        close(pair, "finetuning losses", tuned.loss[run], np.float32(losses), 1e-5)
        for e, query in enumerate(queries):
            got = tuned.queries[run, :, e * 48 : e * 48 + lengths[e]]
            close(pair, "finetuning queries", got, query, 1e-4)
        _, expected = our_params(peer, tmp_path)
        leaves = jax.tree.map(lambda x, run=run: x[run], tuned.kv_params)
        ours = leaves_by_name(finetune.with_kv_params(pair.params, leaves))
        for name, leaf in leaves_by_name(expected).items():
            if "attention.key" not in name and "attention.value" not in name:
                np.testing.assert_array_equal(ours[name], leaf)
                continue
            close(
                pair, "finetuned " + name.removeprefix("layers.attention."), ours[name], leaf, 1e-5
            )
            # A constant added to all keys changes no softmax, so a key bias may stay.
            assert "key.bias" in name or np.abs(leaf - before[name]).max() > 1e-3


# ---- Full-size models --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_parameter_counts(name):
    """Without memory on either side."""
    hf = ARCHITECTURES[name]
    kind = hf["model_type"]
    peer_config = transformers.AutoConfig.for_model(**{**hf, "bos_token_id": 0, "eos_token_id": 1})
    with torch.device("meta"):
        peer = transformers.AutoModelForCausalLM.from_config(peer_config)
    expected = sum(p.numel() for p in peer.parameters())
    config = families.decoder_config(hf, name)
    assert count(config) == expected
    # What was left to defaults is the same in both.
    assert families.decoder_config(peer_config.to_dict() | {"model_type": kind}, name) == config


# ---- The real model ----------------------------------------------------------------------------


def nll_of(logits, tokens):
    """Mean negative log-likelihood of all tokens but the first."""
    logprob = jax.nn.log_softmax(jnp.asarray(logits)[:-1])
    return -float(jnp.mean(logprob[jnp.arange(len(tokens) - 1), jnp.asarray(tokens[1:])]))


@pytest.mark.real
def test_smollm2():
    checkpoint = checkpoints.open_checkpoint("smollm2-135m")
    peer = transformers.AutoModelForCausalLM.from_pretrained(
        checkpoint.folder, attn_implementation="eager", dtype=torch.float32
    ).eval()
    params = checkpoints.load_params(checkpoint.folder, checkpoint.config)
    pair = Pair("smollm2-135m", peer, Decoder(checkpoint.config), params)
    tokens = np.int32([checkpoint.bos, *checkpoint.tokenizer.encode(ALICE).ids])
    with torch.no_grad():
        expected = peer(torch.from_numpy(tokens.astype(np.int64))[None]).logits[0].numpy()
    got = our_logits(pair, tokens[None])[0]
    close(pair, "logits", got, expected, 1e-3)
    ours, theirs = (np.exp(nll_of(x, tokens)) for x in (got, expected))
    print(f"perplexity of {len(tokens) - 1} tokens: ours {ours:.5f}, transformers {theirs:.5f}")
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
