"""The jitted programs of a comparison, on arrays of static shape: pure functions and their table.

Shape glossary: R seeds, N query slots of a batch, Y candidates, L layers, C demonstration tokens
compared; letters of the records as in icljax/models/decoder.py.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from icljax.comparison import forward, pairs
from icljax.comparison.finetune import Finetuned, Learned, finetune, with_kv_params
from icljax.comparison.forward import Records
from icljax.comparison.pairs import Similarity, TrainingTokens
from icljax.data.prompts import Demonstrations, Queries
from icljax.models.decoder import Decoder, DecoderConfig, State, init_params
from icljax.runtime import sharding
from icljax.types import Array, Params

DATA = P("data")
TRAINING_QUERIES = P(None, None, "model")  # [L, C, H * K] of one run
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Static:
    """What is the same in every call of a job's programs.

    Attributes:
        decoder: of the model.
        bos: token ids that start every prompt.
        num_demonstrations: of a seed, at most.
        method, remat: of finetuning.
        random_kind, random_seed: of the baselines' random vectors.
        mesh: the devices.
    """

    decoder: DecoderConfig
    bos: tuple[int, ...]
    num_demonstrations: int
    method: str
    remat: bool
    random_kind: str
    random_seed: int
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


class Devices:
    """The devices that programs run on: what is put there, and what memory is left.

    Attributes:
        mesh: their axes, data and model.
    """

    def __init__(self, mesh: Mesh):
        self.mesh = mesh

    def put(self, tree: T, spec: P = sharding.REPLICATED) -> T:
        """NumPy arrays as arrays on the mesh, all by one spec."""
        placed: T = sharding.put(tree, self.mesh, spec)
        return placed

    def free_memory(self) -> int:
        """Bytes a device may give to finetuning: half of what is free, on CPUs 1 GiB for all."""
        stats = jax.local_devices()[0].memory_stats() if jax.default_backend() != "cpu" else None
        if not stats or "bytes_limit" not in stats:
            return (1 << 30) // jax.local_device_count()
        return (stats["bytes_limit"] - stats.get("bytes_in_use", 0)) // 2


@dataclasses.dataclass(frozen=True)
class Programs:
    """The job's jitted programs, one model, any weights; each as the function of its name says."""

    encode: Callable[[Params, Array, Array], State]
    update: Callable[[State, Array, Array], jax.Array]
    finetune: Callable[[Params, Array, Demonstrations], Finetuned]
    pick: Callable[[Finetuned, Array], Learned]
    stack: Callable[[list[Learned]], Learned]
    score: Callable[
        [Params, SeedTokens, Array, Array, Learned, Queries], tuple[jax.Array, Similarity]
    ]
    score_states: Callable[[Params, State, Queries], jax.Array]
    compare: Callable[
        [Params, SeedTokens, Learned, Queries, Array],
        tuple[jax.Array, tuple[jax.Array, jax.Array, Similarity]],
    ]
    initialize: Callable[[Params, int], Params]
    devices: Devices


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is compared: weights on the demonstrations of R seeds, by the job's programs."""

    programs: Programs
    params: Params
    demonstrations: Demonstrations


def make_programs(
    decoder: DecoderConfig,
    config: ConfigDict,
    bos: Sequence[int],
    num_demonstrations: int,
    mesh: Mesh,
) -> Programs:
    """Builds (does not yet compile) the job's programs; arguments of `make_static`."""
    return programs_of(make_static(decoder, config, bos, num_demonstrations, mesh))


def make_static(
    decoder: DecoderConfig,
    config: ConfigDict,
    bos: Sequence[int],
    num_demonstrations: int,
    mesh: Mesh,
) -> Static:
    """What is the same in every call of a job's programs.

    Args:
        bos: token ids that start every prompt.
    """
    return Static(
        decoder,
        tuple(bos),
        num_demonstrations,
        config.finetune.method,
        config.finetune.remat,
        config.metrics.random_update,
        config.metrics.seed,
        mesh,
    )


def programs_of(static: Static) -> Programs:
    """The programs, jitted.

    Over the mesh's data axis every program is a map with no communication: finetuning runs are
    split in `finetune` and `score`, rows of queries in `score_states` and `compare`. The model axis
    is left to the compiler, which follows the parameters' shardings. What a program returns to the
    host is replicated, so that every process holds it.
    """
    mesh = static.mesh

    def of(function: Callable[..., T]) -> Callable[..., T]:
        return functools.partial(function, static)

    split = functools.partial(sharding.over_data, mesh)
    by_run = split(of(score), (P(), P(), DATA, DATA, DATA, P()), DATA)
    of_states = split(of(score_states), (P(), P(), DATA), P(None, "data"))
    by_row = split(of(compare), (P(), P(), P(), DATA, P()), (DATA, P(None, "data")))
    whole = NamedSharding(mesh, P())
    return Programs(
        encode=jax.jit(of(encode)),
        update=jax.jit(of(update)),
        finetune=jax.jit(of(finetune_runs)),
        pick=jax.jit(of(pick)),
        stack=jax.jit(stack),
        score=jax.jit(by_run, out_shardings=whole),
        score_states=jax.jit(of_states, out_shardings=whole),
        compare=jax.jit(by_row, out_shardings=whole),
        initialize=functools.partial(initialize, static.decoder),
        devices=Devices(mesh),
    )


def encode(static: Static, params: Params, tokens: Array, valid: Array) -> State:
    """What prompts leave behind, one after the other; tokens and valid [R, T]."""
    one = functools.partial(forward.encode, Decoder(static.decoder), params)
    states = jax.lax.map(lambda x: one(*x), (tokens, valid))
    heads = NamedSharding(static.mesh, P(None, None, None, "model", None))
    keys, values = jax.lax.with_sharding_constraint((states.keys, states.values), heads)
    return states._replace(keys=keys, values=values)


def update(static: Static, states: State, columns: Array, compared: Array) -> jax.Array:
    """dW_ICL of every seed's demonstrations: [R, L, G, V, K]."""

    def one(inputs: tuple[State, Array, jax.Array]) -> jax.Array:
        state, columns, compared = inputs
        shift = state.length - len(static.bos)
        return pairs.demonstration_update(state, columns, compared, shift, static.decoder)

    return jax.lax.map(one, (states, columns, compared))


def finetune_runs(
    static: Static, params: Params, learning_rates: Array, runs: Demonstrations
) -> Finetuned:
    """Finetunes runs, each on its demonstrations; of training queries, those that are compared."""
    model = Decoder(dataclasses.replace(static.decoder, remat=static.remat))
    # Every device takes the same branch of a step, whatever its own runs would need.
    longest = jnp.max(runs.train_length, 0)

    def local(params: Params, longest: Array, rates: Array, runs: Demonstrations) -> Finetuned:
        examples = (runs.train, runs.train_length, runs.train_index, longest)
        return finetune(model, params, rates, *examples, static.method)

    split = sharding.over_data(static.mesh, local, (P(), P(), DATA, DATA), DATA)
    out: Finetuned = split(params, longest, learning_rates, runs)
    whole = NamedSharding(static.mesh, P())
    return out._replace(loss=jax.lax.with_sharding_constraint(out.loss, whole))


def pick(static: Static, finetuned: Finetuned, index: Array) -> Learned:
    """What run `index` learned, for every part of the data axis.

    Where runs are split over devices, a sum to which one run alone adds something: they are never
    gathered in one place.
    """

    def one(x: jax.Array) -> jax.Array:
        if static.mesh.shape["data"] == 1:
            return jax.lax.dynamic_index_in_dim(x, index, keepdims=False)
        mine = (jnp.arange(x.shape[0]) == index).reshape(-1, *(1,) * (x.ndim - 1))
        return jnp.sum(jnp.where(mine, x, 0), 0, dtype=x.dtype)

    learned = jax.tree.map(one, finetuned.learned)
    where = sharding.shardings(learned.kv_params, static.mesh)
    kv_params = jax.lax.with_sharding_constraint(learned.kv_params, where)
    where = NamedSharding(static.mesh, TRAINING_QUERIES)
    return Learned(kv_params, jax.lax.with_sharding_constraint(learned.queries, where))


def stack(runs: list[Learned]) -> Learned:
    """What several runs learned, with a leading axis over them."""
    return jax.tree.map(lambda *x: jnp.stack(x), *runs)


def score(
    static: Static,
    params: Params,
    seeds: SeedTokens,
    which: Array,
    numbers: Array,
    learned: Learned,
    queries: Queries,
) -> tuple[jax.Array, Similarity]:
    """FT's answer log-probabilities [runs, N, Y] and similarities [runs, N, L].

    Args:
        seeds: with a leading axis over the seeds of these runs.
        which: int32 [groups], a place in `seeds` for each equal share of the runs.
        numbers: int32 [groups], that seed's place among all.
    """
    zsl = zero_shot(static, params, queries)

    def group(inputs: tuple[Array, Array, Learned]) -> tuple[jax.Array, Similarity]:
        place, number, learned = inputs
        seed = jax.tree.map(lambda x: x[place], seeds)
        return _against_seed(static, params, zsl, queries, seed, number, learned)[1:]

    shares = jax.tree.map(lambda x: x.reshape(which.shape[0], -1, *x.shape[1:]), learned)
    out = map_over(group, (which, numbers, shares))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), out)


def score_states(static: Static, params: Params, states: State, queries: Queries) -> jax.Array:
    """Answer log-probabilities after each of several prompts: [states, N, Y]."""
    one = functools.partial(forward.read, Decoder(static.decoder), params)
    return jax.lax.map(lambda state: one(state, queries).logprob, states)


def compare(
    static: Static,
    params: Params,
    seeds: SeedTokens,
    learned: Learned,
    queries: Queries,
    numbers: Array,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, Similarity]]:
    """ZSL's log-probabilities [N, Y]; of each seed ICL's, FT's and their similarities [R, N, ..].

    Args:
        seeds, learned: with a leading axis over the seeds.
        numbers: int32 [R], each seed's place among all.
    """
    zsl = zero_shot(static, params, queries)

    def one(
        inputs: tuple[SeedTokens, Array, Learned],
    ) -> tuple[jax.Array, jax.Array, Similarity]:
        seed, number, learned = inputs
        learned = jax.tree.map(lambda x: x[None], learned)
        icl, *of_run = _against_seed(static, params, zsl, queries, seed, number, learned)
        return icl, *jax.tree.map(lambda x: x[0], of_run)

    return zsl.logprob, map_over(one, (seeds, numbers, learned))


def zero_shot(static: Static, params: Params, queries: Queries) -> Records:
    """Queries after BOS alone: ZSL, and with finetuned weights FT."""
    model, start = Decoder(static.decoder), jnp.asarray(static.bos, jnp.int32)
    state = forward.encode(model, params, start, jnp.ones(start.shape, bool))
    return forward.read(model, params, state, queries)


def _against_seed(
    static: Static,
    params: Params,
    zsl: Records,
    queries: Queries,
    seed: SeedTokens,
    number: Array,
    learned: Learned,
) -> tuple[jax.Array, jax.Array, Similarity]:
    """ICL's log-probabilities on one seed, FT's and the similarity of each of its runs."""
    icl = forward.read(Decoder(static.decoder), params, seed.state, queries)
    mask = forward.own_tokens(queries, static.decoder)
    seen = forward.seen_of_state(queries, seed.state, static.decoder)[..., seed.columns]
    of_seed = jax.random.fold_in(jax.random.key(static.random_seed), number)
    fold = functools.partial(jax.random.fold_in, of_seed)
    keys = jax.vmap(fold)(queries.example.reshape(-1))

    def one(run: Learned) -> tuple[jax.Array, Similarity]:
        ft = zero_shot(static, with_kv_params(params, run.kv_params), queries)
        training = TrainingTokens(
            seed.columns, seed.example, seen, run.queries, seed.update, static.num_demonstrations
        )
        draws = pairs.Draws(keys, fold(jnp.uint32(2**32 - 1)), static.random_kind)
        return ft.logprob, pairs.similarity(pairs.recorded(zsl, icl, ft, training, mask, draws))

    return icl.logprob, *map_over(one, learned)


def map_over(function: Callable[[Any], T], xs: Any) -> T:
    """`jax.lax.map`, but no loop for a single item: XLA would run such a loop's reads twice."""
    if jax.tree.leaves(xs)[0].shape[0] > 1:
        mapped: T = jax.lax.map(function, xs)
        return mapped
    out = function(jax.tree.map(lambda x: x[0], xs))
    return jax.tree.map(lambda x: x[None], out)


def initialize(decoder: DecoderConfig, params: Params, seed: int) -> Params:
    """Fresh parameters with the types and places of `params`, of which shapes are enough."""

    def init(key: jax.Array) -> Params:
        return jax.tree.map(
            lambda new, old: new.astype(old.dtype), init_params(decoder, key), params
        )

    where = jax.tree.map(lambda x: x.sharding, params)
    return jax.jit(init, out_shardings=where)(jax.random.key(seed))


def encode_demonstrations(
    programs: Programs,
    params: Params,
    demonstrations: Demonstrations,
    seeds: Sequence[int] | np.ndarray,
) -> SeedTokens:
    """What the demonstrations of some seeds leave behind (leading axis over these seeds)."""
    some = jax.tree.map(lambda x: np.asarray(x)[np.asarray(seeds)], demonstrations)
    put = programs.devices.put
    states = programs.encode(params, *put((some.context, some.context_valid)))
    columns, example, compared = put((some.columns, some.example, some.example >= 0))
    return SeedTokens(states, columns, example, programs.update(states, columns, compared))
