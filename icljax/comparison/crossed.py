"""Prompts x updates: every prompt and every update is read once, and all pairs are compared.

Shape glossary: R seeds; P = U = 2 R prompts and updates: those of every seed's demonstrations, then
those of the same with wrong labels; N queries, L layers, Y answers; letters of the records as in
icljax/models/decoder.py.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from icljax import metrics
from icljax.comparison import forward
from icljax.comparison.finetune import with_kv_params
from icljax.comparison.forward import Records
from icljax.comparison.programs import DATA, Static, Subject, encode_demonstrations, map_over
from icljax.comparison.programs import zero_shot as read_zero_shot
from icljax.comparison.reading import batches, slots_in_order
from icljax.data.prompts import Queries
from icljax.models.decoder import Decoder, State
from icljax.runtime import sharding
from icljax.runtime.chunks import Arrays, Chunks
from icljax.types import Params


class Change(NamedTuple):
    """What a prompt or an update makes of zero-shot, float32; of several with a leading axis.

    Attributes:
        logprob: [N, Y], each candidate's score (not its change).
        output: [N, L, D], change of the attention output.
        scores: [N, L, H, S], change of the attention logits to the query's own tokens.
    """

    logprob: jax.Array
    output: jax.Array
    scores: jax.Array


def change(after: Records, zsl: Records, mask: jax.Array) -> Change:
    """What `after` is beside zero-shot; mask: bool [N, L, S] or [N, 1, S], the own tokens."""
    new, old = after.attention, zsl.attention
    scores = metrics.map_change(new.scores_query, old.scores_query, mask)
    return Change(after.logprob, new.attn_out - old.attn_out, scores)


def cross(
    static: Static,
    num_seeds: int,
    params: Params,
    states: State,
    kv_params: Params,
    queries: Queries,
) -> dict[str, jax.Array]:
    """All pairs of prompts and updates on a batch of queries; arrays of `AXES`.

    Args:
        num_seeds: R.
        states: what the prompts leave behind, with a leading P axis.
        kv_params: key and value leaves of the updates, with a leading U axis.
    """
    zsl = read_zero_shot(static, params, queries)
    mask = forward.own_tokens(queries, static.decoder)
    there = jnp.asarray(queries.example).reshape(-1) >= 0

    def of_prompt(state: State) -> Change:
        return change(forward.read(Decoder(static.decoder), params, state, queries), zsl, mask)

    def of_update(kv_params: Params) -> Change:
        return change(read_zero_shot(static, with_kv_params(params, kv_params), queries), zsl, mask)

    prompts: Change = map_over(of_prompt, states)
    updates: Change = map_over(of_update, kv_params)
    size = jnp.linalg.norm(zsl.attention.attn_out, axis=-1)[None]
    return {
        "logprob_zsl": zsl.logprob,
        "logprob_icl": prompts.logprob,
        "logprob_ft": updates.logprob,
        "step_icl": jnp.linalg.norm(prompts.output, axis=-1) / size,
        "step_ft": jnp.linalg.norm(updates.output, axis=-1) / size,
        **pairs(prompts, updates, mask, there, num_seeds),
    }


def pairs(
    prompts: Change, updates: Change, mask: jax.Array, there: jax.Array, num_seeds: int
) -> dict[str, jax.Array]:
    """Similarities of all pairs, of own pairs across queries, and of contrasts; by `AXES`.

    Args:
        mask: bool [N, L, S] or [N, 1, S], the queries' own tokens.
        there: bool [N], slots that hold a query.
    """
    later = _next_query(there)
    own = jnp.arange(prompts.output.shape[0])
    # Attention maps of two queries have no tokens in common.
    elsewhere = metrics.pairwise_cosine(prompts.output, updates.output[:, later])[own, own]

    def alike(part: Callable[[jax.Array], jax.Array]) -> tuple[jax.Array, jax.Array]:
        return (
            metrics.pairwise_cosine(part(prompts.output), part(updates.output)),
            metrics.pairwise_map_cosine(part(prompts.scores), part(updates.scores), mask),
        )

    parts = {
        "pair": lambda x: x,
        "specific": lambda x: metrics.demonstration_specific(x[:num_seeds]),
        "label": lambda x: x[:num_seeds] - x[num_seeds:],
    }
    out = {"query_output": jnp.where((later >= 0)[None, :, None], elsewhere, jnp.nan)}
    for name, part in parts.items():
        out[f"{name}_output"], out[f"{name}_map"] = alike(part)
    return out


def _next_query(there: jax.Array) -> jax.Array:
    """For each slot the next that holds a query, round the end: int32 [N]; -1: there is none."""
    count = there.shape[0]
    if count == 1:
        return jnp.full(1, -1)
    steps = (jnp.arange(count)[:, None] + 1 + jnp.arange(count - 1)[None]) % count
    found = jnp.take_along_axis(steps, jnp.argmax(there[steps], 1)[:, None], 1)[:, 0]
    return jnp.where(there & jnp.any(there[steps], 1), found, -1)


# The arrays of `cross`, and which of their axes is the queries':
#   logprob_zsl [N, Y]; logprob_icl [P, N, Y], logprob_ft [U, N, Y];
#   step_icl [P, N, L], step_ft [U, N, L]: the change's share of the zero-shot output's norm;
#   pair [P, U, N, L]: of every prompt's and every update's change;
#   query [P, N, L]: the own update's change of the next query instead;
#   specific [R, R, N, L]: of each side minus its mean over seeds;
#   label [R, R, N, L]: of each side's difference between right and wrong labels.
AXES = {
    "logprob_zsl": 0,
    **dict.fromkeys(("logprob_icl", "logprob_ft", "step_icl", "step_ft", "query_output"), 1),
    **{f"{kind}_{of}": 2 for kind in ("pair", "specific", "label") for of in ("output", "map")},
}


@dataclasses.dataclass(frozen=True)
class Programs:
    """The jitted programs of a crossed comparison, beside those of `comparison.programs`."""

    cross: Callable[[Params, State, Params, Queries], dict[str, jax.Array]]
    score: Callable[[Params, Params, Queries], jax.Array]


def make_programs(static: Static, num_seeds: int) -> Programs:
    """Builds the programs: `cross`, rows of queries over the data axis, and `score`."""
    specs = {name: P(*[None] * axis, "data") for name, axis in AXES.items()}
    function = functools.partial(cross, static, num_seeds)
    split = sharding.over_data(static.mesh, function, (P(), P(), P(), DATA), specs)
    by_row = sharding.over_data(
        static.mesh, functools.partial(score, static), (P(), P(), DATA), P(None, "data")
    )
    whole = NamedSharding(static.mesh, P())
    return Programs(
        cross=jax.jit(split, out_shardings=whole), score=jax.jit(by_row, out_shardings=whole)
    )


def score(static: Static, params: Params, kv_params: Params, queries: Queries) -> jax.Array:
    """FT's answer log-probabilities of several updates: [U, N, Y]."""

    def one(kv_params: Params) -> jax.Array:
        return read_zero_shot(static, with_kv_params(params, kv_params), queries).logprob

    return jax.lax.map(one, kv_params)


def read_crossed(
    programs: Programs,
    subject: Subject,
    kv_params: Callable[[], Params],
    queries: Queries,
    chunks: Chunks,
    advance: Callable[[int], None],
) -> tuple[np.ndarray, Arrays]:
    """Reads all queries, batch by batch, each batch a chunk.

    Args:
        subject: the demonstrations of all prompts (leading axis P).
        kv_params: gives the updates' leaves; called once, where a batch is not committed.

    Returns:
        (place of each query in `Inputs.labels`, arrays of `cross` in that order).
    """

    @functools.cache
    def prepared() -> tuple[State, Params]:
        everyone: Sequence[int] = range(len(subject.demonstrations.context))
        there = encode_demonstrations(
            subject.programs, subject.params, subject.demonstrations, everyone
        )
        return there.state, kv_params()

    def read(batch: Queries) -> Arrays:
        there: Any = subject.programs.devices.put(batch, DATA)
        out = programs.cross(subject.params, *prepared(), there)
        return {name: np.asarray(x) for name, x in out.items()}

    collected = []
    together = subject.programs.devices.mesh.shape["data"]
    for number, batch in enumerate(batches(queries, together)):
        collected.append(chunks.once(f"crossed-{number:04d}", functools.partial(read, batch)))
        advance(int(np.sum(np.asarray(batch.example) >= 0)))
    example, where = slots_in_order(queries)
    joined = {
        name: np.take(np.concatenate([c[name] for c in collected], axis), where, axis)
        for name, axis in AXES.items()
    }
    return example, joined
