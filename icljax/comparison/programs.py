"""The job's jitted programs on arrays of static shape, and the loops that feed them batches."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from icljax.comparison import pairs, settings
from icljax.comparison.pairs import Similarity, TrainingTokens
from icljax.data.prompts import Demonstrations, Queries
from icljax.models.decoder import Decoder, DecoderConfig, State
from icljax.runtime import sharding
from icljax.runtime.chunks import Arrays
from icljax.types import Array, Params

DATA = P("data")
TRAINING_QUERIES = P(None, None, "model")  # [L, C, H * K] of one run


class Programs(NamedTuple):
    """The job's jitted programs, one model, any weights; and the mesh that they run on."""

    encode: Any
    finetune: Any
    score: Any
    score_states: Any
    update: Any
    compare: Any
    pick: Any
    mesh: Mesh


class SeedTokens(NamedTuple):
    """A seed's demonstrations, as a prompt leaves them and as finetuning sees them.

    Attributes:
        state: what the prompt leaves behind.
        columns, example: int32 [C], as in `prompts.Demonstrations`.
        update: float32 [L, G, V, K], dW_ICL.
    """

    state: State
    columns: Array
    example: Array
    update: jax.Array


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
    decoder: DecoderConfig,
    config: ConfigDict,
    bos: Sequence[int],
    num_demonstrations: int,
    mesh: Mesh,
) -> Programs:
    """Builds (does not yet compile) the job's programs.

    Over the mesh's data axis every program is a map with no communication: finetuning runs are
    split in `finetune` and `score`, rows of queries in `score_states` and `compare`. The model axis
    is left to the compiler, which follows the parameters' shardings. What a program returns to the
    host is replicated, so that every process holds it.

    Args:
        bos: token ids that start every prompt.
    """
    model = Decoder(decoder)
    encode = functools.partial(settings.encode, model)
    trained = Decoder(dataclasses.replace(decoder, remat=config.finetune.remat))
    start = jnp.asarray(bos, jnp.int32)
    split = functools.partial(sharding.over_data, mesh)
    whole = NamedSharding(mesh, P())

    def bos_state(params: Params) -> State:
        return encode(params, start, jnp.ones(start.shape, bool))

    def encode_all(params: Params, tokens: jax.Array, valid: jax.Array) -> State:
        states = jax.lax.map(lambda x: encode(params, *x), (tokens, valid))
        heads = NamedSharding(mesh, P(None, None, None, "model", None))
        keys, values = jax.lax.with_sharding_constraint((states.keys, states.values), heads)
        return states._replace(keys=keys, values=values)

    def finetune(params: Params, rates: Array, runs: Demonstrations) -> settings.Finetuned:
        # Every device takes the same branch of a step, whatever its own runs would need.
        longest = jnp.max(runs.train_length, 0)

        def local(params: Params, longest: Array, rates: Array, runs: Demonstrations) -> Any:
            examples = (runs.train, runs.train_length, longest)
            out = settings.finetune(trained, params, rates, *examples, config.finetune.method)
            compared = jax.vmap(lambda q, index: q[:, index])(out.queries, runs.train_index)
            return out._replace(queries=compared)

        out = split(local, (P(), P(), DATA, DATA), DATA)(params, longest, rates, runs)
        return out._replace(loss=jax.lax.with_sharding_constraint(out.loss, whole))

    def against_seed(
        params: Params,
        zsl: settings.Records,
        queries: Queries,
        seed: SeedTokens,
        index: jax.Array,
        tuned: tuple[Params, jax.Array],
    ) -> tuple[jax.Array, jax.Array, Similarity]:
        """ICL's log-probabilities on one seed, FT's and the similarity of each of its runs."""
        icl = settings.read(model, params, seed.state, queries)
        mask = settings.own_tokens(queries)
        of_seed = jax.random.fold_in(jax.random.key(config.metrics.seed), index)
        fold = functools.partial(jax.random.fold_in, of_seed)
        keys = jax.vmap(fold)(queries.example.reshape(-1))

        def one(run: tuple[Params, jax.Array]) -> tuple[jax.Array, Similarity]:
            leaves, train_queries = run
            tuned = settings.with_key_value(params, leaves)
            ft = settings.read(model, tuned, bos_state(tuned), queries)
            similarity = pairs.similarity(
                zsl,
                icl,
                ft,
                TrainingTokens(seed.columns, seed.example, train_queries, seed.update),
                mask,
                keys,
                fold(jnp.uint32(2**32 - 1)),
                config.metrics.random_update,
                num_demonstrations,
            )
            return ft.logprob, similarity

        return icl.logprob, *_map(one, tuned)

    def score(
        params: Params,
        seeds: SeedTokens,
        which: jax.Array,
        numbers: jax.Array,
        tuned: tuple[Params, jax.Array],
        queries: Queries,
    ) -> tuple[jax.Array, Similarity]:
        """FT's answer log-probabilities [runs, N, Y] and similarities [runs, N, L].

        Args:
            seeds: with a leading axis over the seeds of these runs.
            which: int32 [groups], a place in `seeds` for each equal share of the runs.
            numbers: int32 [groups], that seed's place among all.
        """
        zsl = settings.read(model, params, bos_state(params), queries)

        def group(inputs: tuple[jax.Array, jax.Array, Any]) -> tuple[jax.Array, Similarity]:
            place, number, tuned = inputs
            seed = jax.tree.map(lambda x: x[place], seeds)
            return against_seed(params, zsl, queries, seed, number, tuned)[1:]

        shares = jax.tree.map(lambda x: x.reshape(which.shape[0], -1, *x.shape[1:]), tuned)
        out = _map(group, (which, numbers, shares))
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), out)

    def score_states(params: Params, states: State, queries: Queries) -> jax.Array:
        """The same of prompts: [states, N, Y]."""

        def local(params: Params, states: State, queries: Queries) -> jax.Array:
            return jax.lax.map(lambda s: settings.read(model, params, s, queries).logprob, states)

        return split(local, (P(), P(), DATA), P(None, "data"))(params, states, queries)

    def update(states: State, columns: Array, compared: Array) -> jax.Array:
        """dW_ICL of every seed's demonstrations: [R, L, G, V, K]."""

        def one(inputs: tuple[State, Array, jax.Array]) -> jax.Array:
            state, columns, compared = inputs
            shift = state.length - start.shape[0]
            return pairs.demonstration_update(state, columns, compared, shift, decoder.rope)

        return jax.lax.map(one, (states, columns, compared))

    def compare_batch(
        params: Params,
        seeds: SeedTokens,
        tuned: tuple[Params, jax.Array],
        queries: Queries,
        numbers: jax.Array,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array, Similarity]]:
        zsl = settings.read(model, params, bos_state(params), queries)

        def one(inputs: tuple[Any, ...]) -> tuple[jax.Array, jax.Array, Similarity]:
            seed, number, tuned = inputs
            tuned = jax.tree.map(lambda x: x[None], tuned)
            icl, *of_run = against_seed(params, zsl, queries, seed, number, tuned)
            return icl, *jax.tree.map(lambda x: x[0], of_run)

        return zsl.logprob, _map(one, (seeds, numbers, tuned))

    by_run = split(score, (P(), P(), DATA, DATA, DATA, P()), DATA)
    by_row = split(compare_batch, (P(), P(), P(), DATA, P()), (DATA, P(None, "data")))
    return Programs(
        encode=jax.jit(encode_all),
        finetune=jax.jit(finetune),
        score=jax.jit(by_run, out_shardings=whole),
        score_states=jax.jit(score_states, out_shardings=whole),
        update=jax.jit(update),
        compare=jax.jit(by_row, out_shardings=whole),
        pick=jax.jit(functools.partial(_pick, mesh)),
        mesh=mesh,
    )


def _map(function: Callable[[Any], Any], xs: Any) -> Any:
    """`jax.lax.map`, but no loop for a single item: XLA would run such a loop's reads twice."""
    if jax.tree.leaves(xs)[0].shape[0] > 1:
        return jax.lax.map(function, xs)
    out = function(jax.tree.map(lambda x: x[0], xs))
    return jax.tree.map(lambda x: x[None], out)


def _pick(mesh: Mesh, tuned: settings.Finetuned, index: Array) -> tuple[Params, jax.Array]:
    """Run `index`'s leaves and training queries, for every part of the data axis.

    A sum to which one run alone adds something: the runs are never gathered in one place.
    """
    here = jnp.arange(tuned.loss.shape[0]) == index

    def one(x: jax.Array) -> jax.Array:
        mine = here.reshape(-1, *(1,) * (x.ndim - 1))
        return jnp.sum(jnp.where(mine, x, 0), 0, dtype=x.dtype)

    leaves, queries = jax.tree.map(one, (tuned.key_value, tuned.queries))
    where = (sharding.shardings(leaves, mesh), NamedSharding(mesh, TRAINING_QUERIES))
    return jax.lax.with_sharding_constraint((leaves, queries), where)


def encode_demonstrations(
    programs: Programs,
    params: Params,
    demonstrations: Demonstrations,
    seeds: Sequence[int] | np.ndarray,
) -> SeedTokens:
    """What the demonstrations of some seeds leave behind (leading axis over these seeds)."""
    some = jax.tree.map(lambda x: np.asarray(x)[np.asarray(seeds)], demonstrations)
    states = programs.encode(
        params, *sharding.put((some.context, some.context_valid), programs.mesh)
    )
    columns, example = sharding.put((some.columns, some.example), programs.mesh)
    return SeedTokens(states, columns, example, programs.update(states, columns, example >= 0))


def slots_in_order(queries: Queries) -> tuple[np.ndarray, np.ndarray]:
    """The packed examples in ascending order, and where each stands among all batches' slots."""
    example = np.asarray(queries.example).reshape(-1)
    where = np.flatnonzero(example >= 0)
    where = where[np.argsort(example[where])]
    return example[where], where


def batches(queries: Queries, together: int = 1) -> list[Queries]:
    """The batches of packed queries, `together` of them as one; the last is filled up with none."""
    missing = -len(queries.example) % together

    def join(name: str, x: np.ndarray) -> np.ndarray:
        empty = -1 if name in ("segment", "example") else 0
        x = np.pad(x, ((0, missing), *((0, 0),) * (x.ndim - 1)), constant_values=empty)
        return x.reshape(-1, together * x.shape[1], *x.shape[2:])

    joined = Queries(**{name: join(name, x) for name, x in queries._asdict().items()})
    return [jax.tree.map(lambda x, b=b: x[b], joined) for b in range(len(joined.example))]


def read_all(
    program: Callable[[Queries], Any],
    queries: Queries,
    mesh: Mesh,
    advance: Callable[[], None],
    by_row: bool = False,
) -> Any:
    """What a program gives of every batch, [runs, N, ...], in the order of the examples.

    Args:
        by_row: whether the program splits the rows of a batch over the data axis.
    """
    spec, together = (DATA, mesh.shape["data"]) if by_row else (P(), 1)
    collected = []
    for batch in batches(queries, together):
        collected.append(jax.tree.map(np.asarray, program(sharding.put(batch, mesh, spec))))
        advance()
    _, where = slots_in_order(queries)
    return jax.tree.map(lambda *x: np.concatenate(x, 1)[:, where], *collected)


def compare_settings(
    programs: Programs,
    params: Params,
    finetuned: Callable[[Sequence[int]], tuple[Params, jax.Array]],
    demonstrations: Demonstrations,
    queries: Queries,
    at_once: int,
    committed: Callable[[str, Callable[[], Arrays]], Arrays],
    advance: Callable[[int], None],
) -> Comparison:
    """ZSL, ICL and FT over batches of queries for every seed, reduced on the device.

    Args:
        finetuned: gives seeds' key and value leaves, and training queries [seeds, L, C, H * K].
        at_once: seeds whose states and leaves are on the devices together.
        committed: gives a batch's result, from disk or by the function it is handed.
    """
    mesh, num_seeds = programs.mesh, len(demonstrations.context)

    def prepare(group: np.ndarray) -> tuple[SeedTokens, tuple[Params, jax.Array]]:
        seeds = encode_demonstrations(programs, params, demonstrations, group)
        return seeds, finetuned(group.tolist())

    def read(prepared: Callable[[], Any], group: np.ndarray, batch: Queries) -> Arrays:
        there, seeds = sharding.put(batch, mesh, DATA), sharding.put(group, mesh)
        zsl, (icl, ft, similarity) = programs.compare(params, *prepared(), there, seeds)
        out = {"zsl": zsl[None], "icl": icl, "ft": ft, **similarity._asdict()}
        return {name: np.asarray(x) for name, x in out.items()}

    collected: list[Arrays] = []
    for group in seed_groups(num_seeds, at_once):
        # Nothing is encoded or read from disk for a group whose batches are all committed.
        prepared = functools.cache(functools.partial(prepare, group))
        parts = []
        for number, batch in enumerate(batches(queries, mesh.shape["data"])):
            name = f"{group[0]:03d}-{number:04d}"
            parts.append(committed(name, functools.partial(read, prepared, group, batch)))
            advance(int(np.sum(batch.example >= 0)) * len(np.unique(group)))
        collected.append({k: np.concatenate([p[k] for p in parts], 1) for k in parts[0]})
    example, where = slots_in_order(queries)
    whole: dict[str, Any] = {
        k: np.concatenate([c[k] for c in collected])[:num_seeds, where] for k in collected[0]
    }
    zsl, icl, ft = whole.pop("zsl")[0], whole.pop("icl"), whole.pop("ft")
    return Comparison(example, zsl, icl, ft, Similarity(**whole))


def seed_groups(num_seeds: int, at_once: int) -> list[np.ndarray]:
    """Seeds in groups of one size, the last filled up with its last: int [groups][size]."""
    count = math.ceil(num_seeds / at_once)
    size = math.ceil(num_seeds / count)
    every = np.minimum(np.arange(count * size), num_seeds - 1)
    return list(every.reshape(count, size))
