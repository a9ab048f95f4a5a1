"""The decoder and the three settings: equalities that must hold whatever the weights are."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from icljax.attention import Kind, mixing
from icljax.comparison import finetune, forward
from icljax.data import prompts
from icljax.data.prompts import Query
from icljax.data.task import Task
from icljax.models.config import Rope
from icljax.models.decoder import Decoder, DecoderConfig, init_params
from tests.conftest import make_tokenizer

LLAMA = DecoderConfig(
    vocab_size=400,
    num_layers=3,
    width=32,
    mlp_width=48,
    num_heads=4,
    num_kv_heads=2,
    head_width=8,
    context_length=256,
)
GPT2 = dataclasses.replace(
    LLAMA,
    num_kv_heads=4,
    norm="layer",
    positions="learned",
    mlp="gelu_new",
    qkv_bias=True,
    output_bias=True,
    mlp_bias=True,
)
UNTIED = dataclasses.replace(LLAMA, tied=False, head_width=16)
GEMMA2 = dataclasses.replace(
    LLAMA,
    norms="both",
    mlp="geglu",
    attention=(Kind(window=8, cap=3.0), Kind(cap=3.0)),
    attention_scale=0.3,
    logit_cap=6.0,
)
GEMMA3 = dataclasses.replace(
    GEMMA2,
    qk_norm="head",
    positions=(Rope(20.0), Rope(500.0, factor=4.0)),
    attention=(Kind(window=8), Kind()),
    logit_cap=0.0,
)


def with_attention(kind, **given):
    """LLAMA with the attention that a config asks for."""
    return dataclasses.replace(LLAMA, attention=mixing.parse_kinds({"kind": kind, **given}))


KINDS = {
    "momentum": with_attention("momentum", ema=0.8, learn=("ema",)),
    "normalized": with_attention("linear", feature_map="elu+1", normalize=True),
    "delta": with_attention("delta_momentum+momentum", beta=0.7, learn=("eta", "beta")),
    "mixed": with_attention("retention,momentum,delta", ema_normalized=True),
}
CONFIGS = pytest.mark.parametrize(
    "config",
    [LLAMA, GPT2, UNTIED, GEMMA2, GEMMA3, *KINDS.values()],
    ids=["llama", "gpt2", "untied", "gemma2", "gemma3", *KINDS],
)


@functools.cache
def model_and_params(config):
    params = init_params(config, jax.random.key(0))
    # Larger than at initialisation, so that attention is far from uniform and biases matter.
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    leaves = [x + 0.2 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return Decoder(config), jax.tree.unflatten(tree, leaves)


def random_tokens(*shape, seed=0):
    return np.random.default_rng(seed).integers(2, 400, shape).astype(np.int32)


@functools.partial(jax.jit, static_argnums=0)
def whole_pass(model, params, tokens):
    """One sequence [S] in one pass, nothing cached or packed: logits [S, V], record of all."""
    index = jnp.arange(len(tokens))[None]
    out = forward.hidden(model, params, tokens[None], index, None, None, index)
    return forward.unembed(model, params, out.hidden)[0], out.record


def plain(model, params, tokens):
    """`whole_pass` at one length, so that it compiles once; what follows changes nothing before."""
    padded = np.zeros(96, np.int32)
    padded[: len(tokens)] = tokens
    return whole_pass(model, params, jnp.asarray(padded))


def plain_logits(model, params, tokens):
    return plain(model, params, tokens)[0][: len(tokens)]


encode = jax.jit(forward.encode, static_argnums=0)
read = jax.jit(forward.read, static_argnums=0)


def pack_once(texts, answers, **options):
    """One batch of a row of 64 tokens: prompts with the same candidates."""
    packed = prompts.pack([Query(t, answers) for t in texts], 64, 64, **options)
    return jax.tree.map(lambda x: x[0], packed)


def make_encoder(answers=("good", "terrible")):
    task = Task("made-up", "Review: {text} Sentiment:", answers)
    return prompts.make_encoder(make_tokenizer(), task, "<bos>", "\n", {"<bos>": 0, "<eos>": 1})


@pytest.mark.parametrize("config", [LLAMA, GPT2, KINDS["mixed"]], ids=["llama", "gpt2", "mixed"])
def test_causal_by_gradients(config):
    model, params = model_and_params(config)
    tokens = jnp.asarray(random_tokens(6))

    def output(embedding, position):
        changed = {**params, "embed": {"embedding": embedding}}
        return jnp.sum(
            forward.hidden(model, changed, tokens[None], jnp.arange(6)[None]).hidden[0, position]
            ** 2
        )

    gradient = jax.jit(jax.grad(output), static_argnums=1)(params["embed"]["embedding"], 2)
    touched = np.flatnonzero(np.abs(gradient).sum(-1))
    assert set(touched) == set(tokens[:3].tolist())


@CONFIGS
def test_state_equals_recomputing(config):
    model, params = model_and_params(config)
    tokens = random_tokens(30)
    expected = plain_logits(model, params, tokens)[18:]
    padded = np.concatenate([tokens[:18], np.zeros(6, np.int32)])
    state = encode(model, params, jnp.asarray(padded), jnp.arange(24) < 18)
    assert int(state.length) == 18
    rest = jnp.asarray(tokens[18:])[None]
    positions = 18 + jnp.arange(12)[None]
    out = forward.hidden(model, params, rest, positions, None, state)
    logits = forward.unembed(model, params, out.hidden)[0]
    np.testing.assert_allclose(logits, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("config", "answers"),
    [
        (LLAMA, ("good", "bad")),
        *((c, ("very good film", "bad", "a dull mess .")) for c in (LLAMA, GPT2, *KINDS.values())),
    ],
    ids=["llama-single", "llama", "gpt2", *KINDS],
)
def test_packed_queries_equal_single_passes(config, answers):
    model, params = model_and_params(config)
    encoder = make_encoder(answers)
    rng = np.random.default_rng(0)
    queries = [rng.integers(2, 400, n).tolist() for n in (9, 30, 4, 17, 22, 11)]
    context = random_tokens(20, seed=3)
    state = encode(model, params, jnp.asarray(context), jnp.ones(20, bool))
    packed = prompts.pack([Query(q, encoder.answers) for q in queries], 128, row_length=64)
    got = np.zeros((len(queries), len(answers)))
    for b in range(packed.example.shape[0]):
        batch = jax.tree.map(lambda x, b=b: x[b], packed)
        example = batch.example.reshape(-1)
        logprob = read(model, params, state, batch).logprob
        got[example[example >= 0]] = logprob[example >= 0]
    for n, query in enumerate(queries):
        for y, answer in enumerate(encoder.answers):
            whole = np.concatenate([context, query, answer]).astype(np.int32)
            logits = jax.nn.log_softmax(plain_logits(model, params, whole))
            start = len(context) + len(query) - 1
            places = np.arange(start, start + len(answer))
            np.testing.assert_allclose(
                got[n, y], np.mean(logits[places, np.asarray(answer)]), atol=1e-4
            )


@pytest.mark.parametrize("config", [LLAMA, GPT2, UNTIED, GEMMA2, GEMMA3, KINDS["mixed"]])
def test_record_is_what_a_single_pass_shows(config):
    model, params = model_and_params(config)
    encoder = make_encoder()
    queries = [random_tokens(n, seed=n).tolist() for n in (7, 12)]
    context = random_tokens(10, seed=3)
    state = encode(model, params, jnp.asarray(context), jnp.ones(10, bool))
    packed = pack_once(queries, encoder.answers)
    records = read(model, params, state, packed)
    attention = records.attention
    own = forward.own_tokens(packed)
    order = packed.example.reshape(-1)
    for n, query in enumerate(queries):
        slot = int(np.flatnonzero(order == n)[0])
        whole = np.concatenate([context, query])
        last = len(whole) - 1
        record = plain(model, params, whole)[1]
        np.testing.assert_allclose(attention.attn_out[slot], record.attn_out[:, 0, last], atol=1e-4)
        np.testing.assert_allclose(
            attention.query[slot],
            record.query[:, 0, last].reshape(attention.query[slot].shape),
            atol=1e-4,
        )
        scores = np.asarray(attention.scores_query[slot])[..., np.asarray(own[slot])]
        expected = record.scores_query[:, 0, last, :, : last + 1]
        np.testing.assert_allclose(scores, expected[..., 10:], atol=1e-4)
        to_context = jnp.sum(expected[..., :10], 1)
        np.testing.assert_allclose(records.scores_state[slot], to_context, atol=1e-4)


def test_candidates_of_each_example_equal_single_passes(monkeypatch):
    """Another number of candidates for each, first tokens only read; logits a row at a time."""
    monkeypatch.setattr(forward, "LOGITS_AT_ONCE", 1)
    model, params = model_and_params(LLAMA)
    rng = np.random.default_rng(0)

    def tokens(count):
        return tuple(rng.integers(2, 400, count).tolist())

    queries = [
        Query(list(tokens(9)), (tokens(3), tokens(1), tokens(5)), (2, 0, 3)),
        Query(list(tokens(5)), (tokens(2), tokens(4))),
        Query(list(tokens(30)), (tokens(2), tokens(7), tokens(3))),
    ]
    state = encode(model, params, jnp.asarray(random_tokens(20, seed=3)), jnp.ones(20, bool))
    packed = prompts.pack(queries, 128, 64, score="sum")
    batch = jax.tree.map(lambda x: x[0], packed)
    assert len(packed.example) == 1
    got = jax.jit(forward.read, static_argnums=0)(model, params, state, batch).logprob
    order = batch.example.reshape(-1).tolist()
    for n, query in enumerate(queries):
        scores = got[order.index(n)]
        skipped = query.read_only or (0, 0, 0)
        for y, (candidate, skip) in enumerate(zip(query.candidates, skipped, strict=False)):
            whole = [*random_tokens(20, seed=3), *query.prompt, *candidate]
            logits = jax.nn.log_softmax(plain_logits(model, params, np.int32(whole)))
            first = len(whole) - len(candidate)
            expected = sum(logits[first + m - 1, candidate[m]] for m in range(skip, len(candidate)))
            np.testing.assert_allclose(scores[y], expected, atol=1e-4)
        assert np.isneginf(scores[len(query.candidates) :]).all()


def test_first_label_is_recorded_one_step_later():
    """At the first label's last token, which sees the query and the label, as in a single pass."""
    model, params = model_and_params(LLAMA)
    queries = [random_tokens(n, seed=n).tolist() for n in (7, 12)]
    answers = ((5, 6), (7, 8, 9))
    state = encode(model, params, jnp.asarray(random_tokens(10, seed=3)), jnp.ones(10, bool))
    packed = pack_once(queries, answers, position="first_label")
    records, own = read(model, params, state, packed), forward.own_tokens(packed)
    for n, query in enumerate(queries):
        slot = packed.example.reshape(-1).tolist().index(n)
        whole = [*random_tokens(10, seed=3), *query, *answers[0]]
        last, record = len(whole) - 1, plain(model, params, np.int32(whole))[1]
        np.testing.assert_allclose(
            records.attention.attn_out[slot], record.attn_out[:, 0, last], atol=1e-4
        )
        scores = records.attention.scores_query[slot][..., np.asarray(own[slot])]
        np.testing.assert_allclose(
            scores, record.scores_query[:, 0, last, :, 10 : last + 1], atol=1e-4
        )
    at_answer = read(model, params, state, pack_once(queries, answers))
    slots = packed.example.reshape(-1) >= 0
    np.testing.assert_allclose(records.logprob[slots], at_answer.logprob[slots], atol=1e-5)


def optax_finetune(model, params, rate, examples):
    """The plain way: one example after the other, through optax, unpadded."""
    optimizer = optax.sgd(rate)
    leaves = finetune.kv_params_of(params)
    optimizer_state = optimizer.init(leaves)
    losses, queries = [], []

    @jax.jit
    def loss_fn(leaves, tokens):
        logits, record = whole_pass(model, finetune.with_kv_params(params, leaves), tokens)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits[:-1], tokens[1:]).mean()
        return loss, record.query[:, 0].reshape(*record.query.shape[:1], record.query.shape[2], -1)

    for tokens in examples:
        (loss, query), gradient = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(
            leaves, jnp.asarray(tokens)
        )
        queries.append(query)
        updates, optimizer_state = optimizer.update(gradient, optimizer_state)
        leaves = optax.apply_updates(leaves, updates)
        losses.append(loss)
    return leaves, losses, queries


@pytest.mark.parametrize(
    ("config", "remat"),
    [(LLAMA, False), (GPT2, False), (LLAMA, True)],
    ids=["llama", "gpt2", "remat"],
)
def test_finetune_grid_equals_optax_one_by_one(config, remat):
    model, params = model_and_params(config)
    lengths = [[9, 30, 9], [30, 9, 0]]  # the second run has one demonstration less
    train = np.zeros((2, 3, 32), np.int32)
    for r, e in np.ndindex(2, 3):
        train[r, e, : lengths[r][e]] = random_tokens(lengths[r][e], seed=10 * r + e)
    rates = np.array([0.05, 0.2], np.float32)
    trained = Decoder(dataclasses.replace(config, remat=remat))
    tuned = jax.jit(finetune.finetune, static_argnums=0)(
        trained, params, rates, train, np.array(lengths), np.stack([np.arange(3 * 32)] * 2)
    )
    for r in range(2):
        examples = [train[r, e, :n] for e, n in enumerate(lengths[r]) if n]
        leaves, losses, queries = optax_finetune(model, params, rates[r], examples)
        for got, expected in zip(
            jax.tree.leaves(tuned.kv_params), jax.tree.leaves(leaves), strict=True
        ):
            np.testing.assert_allclose(got[r], expected, atol=1e-5)
        np.testing.assert_allclose(tuned.loss[r, : len(losses)], losses, rtol=1e-5)
        for e, expected in enumerate(queries):
            got = tuned.queries[r, :, e * 32 : e * 32 + len(examples[e])]
            np.testing.assert_allclose(got, expected, atol=1e-5)
    before = finetune.kv_params_of(params)
    for name in ("key", "value"):
        moved = np.abs(tuned.kv_params[name]["kernel"][0] - before[name]["kernel"]).max((1, 2, 3))
        assert np.all(moved > 1e-4), f"{name} of some layer was not trained"


def test_finetuning_memory_does_not_grow_with_the_whole_model():
    config = dataclasses.replace(LLAMA, vocab_size=5000, mlp_width=512)
    model, params = Decoder(config), init_params(config, jax.random.key(0))
    size = sum(x.nbytes for x in jax.tree.leaves(params))
    replicated = sum(x.nbytes for x in jax.tree.leaves(finetune.kv_params_of(params)))

    def output_bytes(runs):
        out = jax.eval_shape(
            functools.partial(finetune.finetune, model),
            params,
            jnp.ones(runs),
            jnp.zeros((runs, 2, 16), jnp.int32),
            jnp.full((runs, 2), 9),
            jnp.zeros((runs, 7), jnp.int32),
        )
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(out.kv_params))

    assert output_bytes(8) == 8 * replicated
    assert replicated < size / 20


@pytest.mark.parametrize("longest", [16, 48, 64, 80, 400])
def test_step_sizes_are_few_and_hold_the_longest(longest):
    sizes = finetune.step_sizes(longest)
    assert sizes[-1] == longest
    assert len(sizes) <= 4
    assert list(sizes) == sorted(set(sizes))


def test_bfloat16_compute_stays_close():
    model, params = model_and_params(LLAMA)
    tokens = random_tokens(24)
    half = Decoder(dataclasses.replace(LLAMA, dtype="bfloat16"))
    exact, rounded = (plain_logits(m, params, tokens) for m in (model, half))
    assert rounded.dtype == jnp.float32
    np.testing.assert_allclose(rounded, exact, atol=0.05 * float(jnp.abs(exact).max()))


@pytest.mark.parametrize("config", [LLAMA, KINDS["mixed"]], ids=["llama", "mixed"])
def test_a_prompt_in_two_parts_leaves_the_state_of_the_whole(config):
    model, params = model_and_params(config)
    tokens = jnp.asarray(random_tokens(30))
    whole = encode(model, params, tokens, jnp.ones(30, bool))
    first = encode(model, params, jnp.pad(tokens[:13], (0, 3)), jnp.arange(16) < 13)
    both = encode(model, params, tokens[13:], jnp.ones(17, bool), first)
    valid = np.asarray(both.valid)
    assert int(both.length) == 30
    np.testing.assert_allclose(both.keys[:, valid], whole.keys, atol=1e-5)
    np.testing.assert_allclose(both.values[:, valid], whole.values, atol=1e-5)
    for got, expected in zip(
        jax.tree.leaves(both.memory), jax.tree.leaves(whole.memory), strict=True
    ):
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_linear_attention_leaves_its_weight_update():
    """The state is dW_ICL = sum_i v_i k_i^T, and keys and values play no part in reading it."""
    model, params = model_and_params(with_attention("linear"))
    state = encode(model, params, jnp.asarray(random_tokens(12)), jnp.ones(12, bool))
    expected = jnp.einsum("LTGV,LTGK->LGVK", state.values, state.keys)
    np.testing.assert_allclose(state.memory.s, expected, rtol=1e-5, atol=1e-5)
    tokens = jnp.asarray(random_tokens(7, seed=2))[None]
    positions = 12 + jnp.arange(7)[None]
    nothing = state._replace(keys=0 * state.keys, values=0 * state.values)
    out, same = (
        forward.hidden(model, params, tokens, positions, None, s).hidden for s in (state, nothing)
    )
    np.testing.assert_array_equal(out, same)


@pytest.mark.parametrize("kind", ["softmax", "momentum"])
def test_jax_nn_attention_is_ours(kind):
    ours = with_attention(kind)
    theirs = dataclasses.replace(ours, implementation="jax_nn")
    model, params = model_and_params(ours)
    tokens, index = jnp.asarray(random_tokens(1, 20)), jnp.arange(20)[None]
    expected = forward.hidden(model, params, tokens, index).hidden
    got = forward.hidden(Decoder(theirs), params, tokens, index).hidden
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_padding_beyond_the_table_of_positions_changes_nothing():
    """Prompts are padded to multiples of 64, training examples of 16; a table may be shorter."""
    config = dataclasses.replace(GPT2, context_length=40)
    model, params = model_and_params(config)
    tokens = np.pad(random_tokens(36), (0, 28))
    valid = np.arange(64) < 36
    state = forward.encode(model, params, jnp.asarray(tokens), jnp.asarray(valid))
    queries = prompts.pack([Query([5, 6, 7, 8], ((9,), (10,)))], 64, 64)
    queries = jax.tree.map(lambda x: x[0], queries)
    got = forward.read(model, params, state, queries)
    exact = forward.encode(model, params, jnp.asarray(tokens[:36]), jnp.ones(36, bool))
    np.testing.assert_allclose(
        got.logprob, forward.read(model, params, exact, queries).logprob, atol=1e-5
    )
    leaves = finetune.kv_params_of(params)
    gradient, loss, _ = finetune.gradients(model, params, leaves, tokens[:48], jnp.int32(36))
    short, short_loss, _ = finetune.gradients(model, params, leaves, tokens[:36], jnp.int32(36))
    np.testing.assert_allclose(loss, short_loss, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradient, short)
