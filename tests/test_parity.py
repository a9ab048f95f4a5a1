"""Our decoder and settings against PyTorch's `transformers`: tiny random models, no download.

`pytest -rP tests/test_parity.py` prints the largest difference of every comparison.
"""

import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_tokenizer
from test_checkpoints import ALICE
from test_settings import make_encoder

from icljax import checkpoints, prompts, settings
from icljax.model import Decoder, DecoderConfig, Params

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
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
}
GPT2 = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 256}
FAMILIES = {
    "llama": ("llama", {**LLAMA, "tie_word_embeddings": True}),
    "llama-untied-biases": (
        "llama",
        {**LLAMA, "tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True},
    ),
    "llama-wide-heads": (
        "llama",
        {**LLAMA, "tie_word_embeddings": False, "head_dim": 16, "num_key_value_heads": 1},
    ),
    "gpt2": ("gpt2", GPT2),
    "gpt2-untied": ("gpt2", {**GPT2, "tie_word_embeddings": False}),
}


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
    print(
        f"{pair.name:20} {what:24} largest difference {np.abs(got - expected).max():.1e}"
        f" of {np.abs(expected).max():.3g}"
    )
    np.testing.assert_allclose(got, expected, rtol=0, atol=atol)


def tokens_of(*shape, seed=0):
    return np.random.default_rng(seed).integers(2, 400, shape).astype(np.int32)


# ---- The peer's intermediates ------------------------------------------------------------------


class Seen(NamedTuple):
    """Of one unpadded sequence of S tokens.

    Attributes:
        logits: [S, V].
        attn_out: [L, S, D].
        scores: [L, H, S, S], scaled, before softmax and mask; query then key.
        query: [L, S, H * K], scaled, before rotation.
    """

    logits: np.ndarray
    attn_out: np.ndarray
    scores: np.ndarray
    query: np.ndarray


def attention_modules(peer):
    if peer.config.model_type == "gpt2":
        return [block.attn for block in peer.transformer.h]
    return [layer.self_attn for layer in peer.model.layers]


def look(peer, tokens):
    """One pass of the peer with hooks on its projections."""
    outputs = {}
    hooks = [
        module.register_forward_hook(lambda module, _, out: outputs.update({module: out.detach()}))
        for attention in attention_modules(peer)
        for module in attention.children()
        if not isinstance(module, torch.nn.Dropout)
    ]
    ids = torch.from_numpy(np.asarray(tokens, np.int64))[None]
    with torch.no_grad():
        logits = peer(ids).logits[0]
    for hook in hooks:
        hook.remove()
    parts = gpt2_parts if peer.config.model_type == "gpt2" else llama_parts
    layers = [parts(peer, attention, outputs) for attention in attention_modules(peer)]
    attn_out, scores, query = (torch.stack(x).numpy() for x in zip(*layers, strict=True))
    return Seen(logits.numpy(), attn_out, scores, query)


def gpt2_parts(peer, attention, outputs):
    """Attention output, scores and queries of one layer; GPT-2's c_attn makes q, k, v at once."""
    q, k, _ = outputs[attention.c_attn][0].split(peer.config.n_embd, -1)
    query = q / attention.head_dim**0.5
    heads = peer.config.n_head
    q, k = (x.reshape(x.shape[0], heads, -1).transpose(0, 1) for x in (query, k))
    return outputs[attention.c_proj][0], q @ k.mT, query


def llama_parts(peer, attention, outputs):
    """The same of a Llama layer, with the rotation that `transformers` itself applies."""
    from transformers.models.llama import modeling_llama  # slow: not for runs without this marker

    q, k = outputs[attention.q_proj], outputs[attention.k_proj]
    query = q[0] * attention.scaling
    q, k = (x.reshape(*x.shape[:2], -1, attention.head_dim).transpose(1, 2) for x in (q, k))
    cos, sin = peer.model.rotary_emb(q, torch.arange(q.shape[2])[None])
    q, k = modeling_llama.apply_rotary_pos_emb(q, k, cos, sin)
    k = modeling_llama.repeat_kv(k, attention.num_key_value_groups)
    return outputs[attention.o_proj][0], (q @ k.mT)[0] * attention.scaling, query


# ---- Forward passes ----------------------------------------------------------------------------


def our_logits(pair, tokens):
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    return pair.model.apply({"params": pair.params}, jnp.asarray(tokens), positions)


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
    record = settings.forward(pair.model, pair.params, tokens, positions, None, None, at).record
    seen = [look(pair.peer, row) for row in tokens]
    last = list(zip(seen, at[:, 0], strict=True))
    attn_out = np.stack([s.attn_out[:, i] for s, i in last], 1)
    close(pair, "attention output", record.attn_out[:, :, 0], attn_out, 1e-4)
    scores = np.stack([s.scores[:, :, i] for s, i in last], 1)
    close(pair, "scores", record.scores_query[:, :, 0], scores, 1e-4)
    query = np.stack([s.query[:, i] for s, i in last], 1)
    close(pair, "query", record.query[:, :, 0], query, 1e-4)


def test_state_and_queries_equal_whole_texts(pair):
    """`encode` a context once, `read` packed queries after it; the peer reads each whole text."""
    encoder = make_encoder(("very good film", "bad"))
    context = tokens_of(21, seed=5)
    padded = np.concatenate([context, np.zeros(11, np.int32)])
    state = settings.encode(pair.model, pair.params, jnp.asarray(padded), jnp.arange(32) < 21)
    texts = [tokens_of(n, seed=n).tolist() for n in (9, 20, 4)]
    packed = jax.tree.map(lambda x: x[0], prompts.pack(texts, encoder, 64, 64))
    records = settings.read(pair.model, pair.params, state, packed)
    own, slot_of = settings.own_tokens(packed), packed.example.reshape(-1).tolist()
    for n, text in enumerate(texts):
        slot = slot_of.index(n)
        seen = look(pair.peer, [*context, *text])
        got = jax.tree.map(lambda x, slot=slot: np.asarray(x[slot]), records.attention)
        close(pair, "after a state: output", got.attn_out, seen.attn_out[:, -1], 1e-4)
        close(pair, "after a state: query", got.query, seen.query[:, -1], 1e-4)
        scores = got.scores_query[..., np.asarray(own[slot])]
        close(pair, "after a state: scores", scores, seen.scores[:, :, -1, 21:], 1e-4)
        to_state = seen.scores[:, :, -1, :21].sum(1)
        close(pair, "scores to the state", got.scores_state[:, :21], to_state, 1e-4)
        for y, answer in enumerate(encoder.answers):
            logits = look(pair.peer, [*context, *text, *answer]).logits[-len(answer) - 1 : -1]
            logprob = jax.nn.log_softmax(jnp.asarray(logits))
            expected = np.mean([logprob[i, token] for i, token in enumerate(answer)])
            close(pair, "answer log-probability", records.logprob[slot, y], expected, 1e-4)


# ---- Finetuning --------------------------------------------------------------------------------


def trained_parameters(peer):
    """Makes only the key and value projections trainable, and returns them."""
    peer.requires_grad_(False)
    joint = peer.config.model_type == "gpt2"
    names = ("c_attn",) if joint else ("k_proj", "v_proj")
    modules = [getattr(a, name) for a in attention_modules(peer) for name in names]
    trained = [p.requires_grad_(True) for module in modules for p in module.parameters()]
    for parameter in trained if joint else ():
        parameter.register_hook(without_query)
    return trained


def without_query(gradient):
    """GPT-2's joint projection [(D,) 3 * D]: its first D columns make the query, and stay."""
    gradient = gradient.clone()
    gradient[..., : gradient.shape[-1] // 3] = 0
    return gradient


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
    lengths, rates = [20, 5, 33], np.array([0.01, 0.1], np.float32)
    examples = [tokens_of(n, seed=n) for n in lengths]
    train = np.stack([np.pad(x, (0, 48 - len(x))) for x in examples])
    tuned = settings.finetune(
        pair.model, pair.params, rates, np.stack([train] * 2), np.array([lengths] * 2)
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
        leaves = jax.tree.map(lambda x, run=run: x[run], tuned.key_value)
        ours = leaves_by_name(settings.with_key_value(pair.params, leaves))
        for name, leaf in leaves_by_name(expected).items():
            if "attention.key" not in name and "attention.value" not in name:
                np.testing.assert_array_equal(ours[name], leaf)
                continue
            close(
                pair, "finetuned " + name.removeprefix("layers.attention."), ours[name], leaf, 1e-5
            )
            # A constant added to all keys changes no softmax, so a key bias may stay.
            assert "key.bias" in name or np.abs(leaf - before[name]).max() > 1e-3


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
