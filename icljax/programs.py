"""The job's jitted programs on arrays of static shape, and the loops that feed them batches."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from icljax import compare, settings
from icljax.compare import Similarity, TrainingTokens
from icljax.model import Array, Decoder, DecoderConfig, Params, State
from icljax.prompts import Demonstrations, Encoder, Queries


class Programs(NamedTuple):
    """The job's jitted programs; one model, any weights."""

    encode: Any
    finetune: Any
    score: Any
    score_states: Any
    update: Any
    compare: Any


class Comparison(NamedTuple):
    """What is kept of evaluated examples, NumPy.

    Attributes:
        example: int [N], the examples' place in `Job.labels`.
        logprob_zsl: [N, Y].
        logprob_icl, logprob_ft: [R, N, Y].
        similarity: Similarity of [R, N, L].
    """

    example: np.ndarray
    logprob_zsl: np.ndarray
    logprob_icl: np.ndarray
    logprob_ft: np.ndarray
    similarity: Similarity


def make_programs(
    decoder: DecoderConfig, config: ConfigDict, encoder: Encoder, num_demonstrations: int
) -> Programs:
    """Builds (does not yet compile) the job's programs."""
    model = Decoder(decoder)
    encode = functools.partial(settings.encode, model)
    trained = Decoder(dataclasses.replace(decoder, remat=config.finetune.remat))
    bos = jnp.asarray(encoder.bos, jnp.int32)

    def bos_state(params: Params) -> State:
        return encode(params, bos, jnp.ones(bos.shape, bool))

    def finetune(params: Params, rates: Array, runs: Demonstrations) -> settings.Finetuned:
        out = settings.finetune(trained, params, rates, runs.train, runs.train_length)
        compared = jax.vmap(lambda q, index: q[:, index])(out.queries, runs.train_index)
        return out._replace(queries=compared)

    def score(params: Params, leaves: Params, queries: Queries) -> jax.Array:
        """Answer log-probabilities of finetuned runs: [runs, N, Y]."""

        def one(leaves: Params) -> jax.Array:
            tuned = settings.with_key_value(params, leaves)
            return settings.read(model, tuned, bos_state(tuned), queries).logprob

        return jax.lax.map(one, leaves)

    def score_states(params: Params, states: State, queries: Queries) -> jax.Array:
        """The same of prompts: [states, N, Y]."""
        return jax.lax.map(lambda s: settings.read(model, params, s, queries).logprob, states)

    def update(states: State, columns: Array, compared: Array) -> jax.Array:
        """dW_ICL of every seed's demonstrations: [R, L, G, V, K]."""
        theta = decoder.rope_theta if decoder.positions == "rotary" else None

        def one(inputs: tuple[State, Array, jax.Array]) -> jax.Array:
            state, columns, compared = inputs
            shift = state.length - bos.shape[0]
            return compare.demonstration_update(state, columns, compared, shift, theta)

        return jax.lax.map(one, (states, columns, compared))

    def compare_batch(
        params: Params,
        icl_states: State,
        leaves: Params,
        training: TrainingTokens,
        queries: Queries,
        seed_index: jax.Array,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array, Similarity]]:
        zsl = settings.read(model, params, bos_state(params), queries)
        mask = settings.own_tokens(queries)
        base = jax.random.key(config.metrics.seed)

        def one(inputs: tuple[Any, ...]) -> tuple[jax.Array, jax.Array, Similarity]:
            icl_state, leaves, training, seed = inputs
            icl = settings.read(model, params, icl_state, queries)
            tuned = settings.with_key_value(params, leaves)
            ft = settings.read(model, tuned, bos_state(tuned), queries)
            fold = functools.partial(jax.random.fold_in, jax.random.fold_in(base, seed))
            keys = jax.vmap(fold)(queries.example.reshape(-1))
            similarity = compare.similarity(
                zsl,
                icl,
                ft,
                training,
                mask,
                keys,
                fold(jnp.uint32(2**32 - 1)),
                config.metrics.random_update,
                num_demonstrations,
            )
            return icl.logprob, ft.logprob, similarity

        return zsl.logprob, jax.lax.map(one, (icl_states, leaves, training, seed_index))

    def encode_all(params: Params, tokens: jax.Array, valid: jax.Array) -> State:
        return jax.lax.map(lambda x: encode(params, *x), (tokens, valid))

    programs = (encode_all, finetune, score, score_states, update, compare_batch)
    return Programs(*(jax.jit(program) for program in programs))


def encode_demonstrations(
    programs: Programs, params: Params, demonstrations: Demonstrations
) -> State:
    """The states that the demonstrations of every seed leave behind (leading axis R)."""
    return programs.encode(params, demonstrations.context, demonstrations.context_valid)


def slots_in_order(queries: Queries) -> tuple[np.ndarray, np.ndarray]:
    """The packed examples in ascending order, and where each stands among all batches' slots."""
    example = np.asarray(queries.example).reshape(-1)
    where = np.flatnonzero(example >= 0)
    where = where[np.argsort(example[where])]
    return example[where], where


def batches(queries: Queries) -> list[Queries]:
    """The batches of packed queries, one by one."""
    count = queries.example.shape[0]
    return [jax.tree.map(lambda x, b=b: x[b], queries) for b in range(count)]


def read_all(
    program: Callable[[Queries], jax.Array], queries: Queries, advance: Callable[[], None]
) -> np.ndarray:
    """Answer log-probabilities [runs, N, Y] of every batch, in the order of the examples."""
    collected = []
    for batch in batches(queries):
        collected.append(np.asarray(program(batch)))
        advance()
    _, where = slots_in_order(queries)
    return np.concatenate(collected, 1)[:, where]


def compare_settings(
    programs: Programs,
    params: Params,
    states: State,
    finetuned: tuple[Params, jax.Array],
    demonstrations: Demonstrations,
    queries: Queries,
    advance: Callable[[int], None],
) -> Comparison:
    """ZSL, ICL and FT over batches of queries for every seed, reduced on the device.

    Args:
        states: of `encode_demonstrations`.
        finetuned: key and value leaves, and training queries [R, L, C, H * K].
    """
    leaves, train_queries = finetuned
    columns, example = demonstrations.columns, demonstrations.example
    update = programs.update(states, columns, np.asarray(example) >= 0)
    training = TrainingTokens(columns, example, train_queries, update)
    seeds = np.arange(len(demonstrations.context))
    collected: list[Any] = []
    for batch in batches(queries):
        out = programs.compare(params, states, leaves, training, batch, seeds)
        collected.append(jax.tree.map(np.asarray, out))
        advance(int(np.sum(batch.example >= 0)))
    example, where = slots_in_order(queries)
    zsl = np.concatenate([c[0] for c in collected])
    per_seed = jax.tree.map(lambda *x: np.concatenate(x, 1), *(c[1] for c in collected))
    icl, ft, similarity = jax.tree.map(lambda x: x[:, where], per_seed)
    return Comparison(example, zsl[where], icl, ft, similarity)
