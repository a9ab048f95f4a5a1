"""Prompts x updates: every prompt and every update is read once, and all pairs are compared.

Shape glossary: R seeds; P prompts and U updates, R of each of the plan's; N queries, L layers, Y
answers; letters of the records as in icljax/models/decoder.py.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from icljax import metrics
from icljax.comparison import forward, synthetic
from icljax.comparison.finetune import Learned, with_kv_params
from icljax.comparison.forward import Records
from icljax.comparison.programs import DATA, Static, map_over
from icljax.comparison.programs import zero_shot as read_zero_shot
from icljax.data.prompts import Demonstrations, Queries
from icljax.models.decoder import Decoder, State
from icljax.runtime import sharding
from icljax.types import Array, Params

DRAWN = "drawn"  # the variant of the demonstrations as they are


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Plan:
    """Which prompts and updates there are: R of each name, one for each seed, in this order.

    Attributes:
        seeds: R.
        prompts: variants of the demonstrations, `DRAWN` first.
        updates: the same variants, finetuned on; then names of `catalog.SYNTHETIC`.
        contrasts: the variant with wrong labels; "": there is none, and no contrasts.
        tokens: whether rankings of the demonstrations' tokens are compared.
    """

    seeds: int
    prompts: tuple[str, ...]
    updates: tuple[str, ...]
    contrasts: str = ""
    tokens: bool = False

    def block(self, matrix: np.ndarray, prompts: str, updates: str) -> np.ndarray:
        """The pairs [R, R, ...] of these names, of [P, U, ...]."""
        return self.of_prompts(self.of_updates(matrix.swapaxes(0, 1), updates), prompts, 1)

    def of_prompts(self, x: np.ndarray, name: str, axis: int = 0) -> np.ndarray:
        """The R rows of these prompts, of [P, ...]."""
        return self._rows(x, self.prompts.index(name), axis)

    def of_updates(self, x: np.ndarray, name: str) -> np.ndarray:
        """The R rows of these updates, of [U, ...]."""
        return self._rows(x, self.updates.index(name), 0)

    def _rows(self, x: np.ndarray, place: int, axis: int) -> np.ndarray:
        """Rows of the `place`-th name; the axis comes first."""
        return np.moveaxis(x, axis, 0)[place * self.seeds : (place + 1) * self.seeds]


class Change(NamedTuple):
    """What a prompt or an update makes of zero-shot, float32; of several with a leading axis.

    Of zero-shot itself: its values.

    Attributes:
        logprob: [N, Y], each candidate's score (not its change).
        output: [N, L, D], change of the attention output.
        scores: [N, L, H, S], change of the attention logits to the query's own tokens.
        tokens: [N, L, C], weights of the demonstrations' tokens, NaN on padding and on what a
            window hides in the prompt; of zero-shot, which has none, [N, L, 0].
    """

    logprob: jax.Array
    output: jax.Array
    scores: jax.Array
    tokens: jax.Array


class Prompts(NamedTuple):
    """What prompts leave behind, with a leading P axis.

    Attributes:
        state: of each.
        columns, example: int32 [P, C], as in `prompts.Demonstrations`, aligned over variants.
    """

    state: State
    columns: Array
    example: Array


def zero_shot(static: Static, params: Params, queries: Queries) -> Change:
    """A batch of queries, zero-shot."""
    attention = (records := read_zero_shot(static, params, queries)).attention
    none = jnp.zeros((*attention.attn_out.shape[:2], 0))
    return Change(records.logprob, attention.attn_out, attention.scores_query, none)


def read_prompts(
    static: Static, params: Params, prompts: Prompts, zsl: Change, queries: Queries
) -> Change:
    """What prompts change, and their attention's weights of their own tokens."""
    mask = forward.own_tokens(queries, static.decoder)

    def one(prompt: Prompts) -> Change:
        records = forward.read(Decoder(static.decoder), params, prompt.state, queries)
        seen = forward.seen_of_state(queries, prompt.state, static.decoder)[..., prompt.columns]
        seen = seen & (jnp.asarray(prompt.example) >= 0)[None, None]
        weights = jnp.where(seen, records.scores_state[..., prompt.columns], jnp.nan)
        return _change(records, zsl, mask, weights)

    out: Change = map_over(one, prompts)
    return out


def read_updates(
    static: Static, params: Params, learned: Learned, zsl: Change, queries: Queries
) -> Change:
    """What updates change, and their weights of the tokens that they were finetuned on."""
    mask = forward.own_tokens(queries, static.decoder)

    def one(run: Learned) -> Change:
        records = read_zero_shot(static, with_kv_params(params, run.kv_params), queries)
        weights = metrics.finetuning_attention(run.queries, records.attention.query)
        return _change(records, zsl, mask, weights)

    out: Change = map_over(one, learned)
    return out


def _change(after: Records, zsl: Change, mask: jax.Array, weights: jax.Array) -> Change:
    """Mask: bool [N, L, S] or [N, 1, S], the own tokens."""
    new = after.attention
    scores = metrics.map_change(new.scores_query, zsl.scores, mask)
    return Change(after.logprob, new.attn_out - zsl.output, scores, weights)


def pairs(
    static: Static,
    plan: Plan,
    zsl: Change,
    prompts: Change,
    updates: tuple[Change, ...],
    queries: Queries,
) -> dict[str, jax.Array]:
    """All pairs of prompts and updates on a batch of queries; arrays of `AXES`.

    Args:
        updates: pieces of them; what fills up the last one is left out.
    """
    count = len(plan.updates) * plan.seeds
    joined: Change = jax.tree.map(lambda *x: jnp.concatenate(x)[:count], *updates)
    mask = forward.own_tokens(queries, static.decoder)
    size = jnp.linalg.norm(zsl.output, axis=-1)[None]
    out = {
        "logprob_zsl": zsl.logprob,
        "logprob_icl": prompts.logprob,
        "logprob_ft": joined.logprob,
        "step_icl": jnp.linalg.norm(prompts.output, axis=-1) / size,
        "step_ft": jnp.linalg.norm(joined.output, axis=-1) / size,
        **_alike("pair", prompts, joined, mask),
    }
    there = jnp.asarray(queries.example).reshape(-1) >= 0
    if plan.tokens:
        out |= rankings(plan, prompts, joined, there)
    if plan.contrasts:
        out |= contrasts(plan, prompts, joined, mask, there)
    return out


def _rows(plan: Plan, change: Change, name: str) -> Change:
    """Those of a variant; variants stand first in prompts and in updates."""
    start = plan.prompts.index(name) * plan.seeds
    return jax.tree.map(lambda x: x[start : start + plan.seeds], change)


def rankings(
    plan: Plan, prompts: Change, updates: Change, there: jax.Array
) -> dict[str, jax.Array]:
    """Kendall's tau of the tokens' weights in pairs of one seed, on the same and another query.

    Args:
        there: bool [N], slots that hold a query.
    """
    names = [name for name in (DRAWN, plan.contrasts) if name]
    icl, ft = (
        jnp.stack([_rows(plan, side, name).tokens for name in names]) for side in (prompts, updates)
    )
    shape = (len(names), *icl.shape)  # prompts, updates, R, N, L, C
    ours = jnp.broadcast_to(icl[:, None], shape)
    tau = metrics.kendall_tau(ours, jnp.broadcast_to(ft[None], shape), ~jnp.isnan(ours))
    later = _next_query(there)
    elsewhere = metrics.kendall_tau(icl[0], ft[0][:, later], ~jnp.isnan(icl[0]))
    return {
        "kendall": tau,
        "query_kendall": jnp.where((later >= 0)[None, :, None], elsewhere, jnp.nan),
    }


def contrasts(
    plan: Plan, prompts: Change, updates: Change, mask: jax.Array, there: jax.Array
) -> dict[str, jax.Array]:
    """Own pairs across queries, and pairs of what is owed to demonstrations and to labels.

    Args:
        mask: bool [N, L, S] or [N, 1, S], the queries' own tokens.
        there: bool [N], slots that hold a query.
    """
    right = [_rows(plan, side, DRAWN) for side in (prompts, updates)]
    wrong = [_rows(plan, side, plan.contrasts) for side in (prompts, updates)]
    later, own = _next_query(there), jnp.arange(plan.seeds)
    # Attention maps of two queries have no tokens in common.
    elsewhere = metrics.pairwise_cosine(right[0].output, right[1].output[:, later])[own, own]
    specific = [jax.tree.map(metrics.demonstration_specific, side) for side in right]
    of_labels = [jax.tree.map(jnp.subtract, *sides) for sides in zip(right, wrong, strict=True)]
    return {
        "query_output": jnp.where((later >= 0)[None, :, None], elsewhere, jnp.nan),
        **_alike("specific", specific[0], specific[1], mask),
        **_alike("label", of_labels[0], of_labels[1], mask),
    }


def _alike(name: str, prompts: Change, updates: Change, mask: jax.Array) -> dict[str, jax.Array]:
    return {
        f"{name}_output": metrics.pairwise_cosine(prompts.output, updates.output),
        f"{name}_map": metrics.pairwise_map_cosine(prompts.scores, updates.scores, mask),
    }


def _next_query(there: jax.Array) -> jax.Array:
    """For each slot the next that holds a query, round the end: int32 [N]; -1: there is none."""
    count = there.shape[0]
    if count == 1:
        return jnp.full(1, -1)
    steps = (jnp.arange(count)[:, None] + 1 + jnp.arange(count - 1)[None]) % count
    found = jnp.take_along_axis(steps, jnp.argmax(there[steps], 1)[:, None], 1)[:, 0]
    return jnp.where(there & jnp.any(there[steps], 1), found, -1)


# The arrays of `pairs`, and which of their axes is the queries':
#   logprob_zsl [N, Y]; logprob_icl [P, N, Y], logprob_ft [U, N, Y];
#   step_icl [P, N, L], step_ft [U, N, L]: the change's share of the zero-shot output's norm;
#   pair [P, U, N, L]: of every prompt's and every update's change;
# with `Plan.tokens`, W being drawn and, with contrasts, wrong labels:
#   kendall [W, W, R, N, L]: of own prompts and updates; query_kendall [R, N, L]: of the next query;
# and with contrasts:
#   query_output [R, N, L]: the own update's change of the next query instead;
#   specific [R, R, N, L]: of each side minus its mean over seeds;
#   label [R, R, N, L]: of each side's difference between right and wrong labels.
AXES = {
    "logprob_zsl": 0,
    **dict.fromkeys(("logprob_icl", "logprob_ft", "step_icl", "step_ft", "query_output"), 1),
    **{f"{kind}_{of}": 2 for kind in ("pair", "specific", "label") for of in ("output", "map")},
    **{"kendall": 3, "query_kendall": 1},
}
_ALWAYS = ("logprob", "step", "pair")  # start the names of those that every plan has


def array_names(plan: Plan) -> list[str]:
    """Those of `AXES` that a plan has."""
    ranked = [name for name in AXES if "kendall" in name]
    return [
        name
        for name in AXES
        if name.startswith(_ALWAYS) or (plan.tokens if name in ranked else plan.contrasts)
    ]


def mean_step(zsl: Change, updates: Change, queries: Queries) -> jax.Array:
    """||change|| / ||zero-shot|| of attention outputs, mean over layers and queries: [U]."""
    there = jnp.asarray(queries.example).reshape(1, -1, 1) >= 0
    size = jnp.linalg.norm(zsl.output, axis=-1)[None]
    steps = jnp.where(there, jnp.linalg.norm(updates.output, axis=-1) / size, 0)
    return jnp.sum(steps, (1, 2)) / (jnp.sum(there) * size.shape[-1])


@dataclasses.dataclass(frozen=True)
class Programs:
    """The jitted programs of crossed comparisons; each as the function of its name says."""

    zero_shot: Callable[[Params, Queries], Change]
    prompts: Callable[[Params, Prompts, Change, Queries], Change]
    updates: Callable[[Params, Learned, Change, Queries], Change]
    pairs: Callable[[Plan, Change, Change, tuple[Change, ...], Queries], dict[str, jax.Array]]
    mean_step: Callable[[Change, Change, Queries], jax.Array]
    random_steps: Callable[[Params, Demonstrations, Array], Params]
    noise: Callable[[Params, Array], Params]
    sized: Callable[[Params, Params, Params, Array | float], Params]


def make_programs(static: Static) -> Programs:
    """The programs: rows of queries over the data axis; what the host reads is replicated."""
    mesh, whole = static.mesh, NamedSharding(static.mesh, P())
    of_zsl, of_several = P("data"), P(None, "data")

    def rows(
        function: Callable[..., Change], in_specs: tuple[P, ...], out: P
    ) -> Callable[..., Change]:
        function = functools.partial(function, static)
        split: Callable[..., Change] = sharding.over_data(mesh, function, in_specs, out)
        return jax.jit(split)

    @functools.partial(jax.jit, out_shardings=whole)
    def all_pairs(
        plan: Plan, zsl: Change, prompts: Change, updates: tuple[Change, ...], queries: Queries
    ) -> dict[str, jax.Array]:
        specs = (of_zsl, of_several, of_several, DATA)
        out = {name: P(*[None] * AXES[name], "data") for name in array_names(plan)}
        function = functools.partial(pairs, static, plan)
        found: dict[str, jax.Array] = sharding.over_data(mesh, function, specs, out)(
            zsl, prompts, updates, queries
        )
        return found

    def split_heads(function: Callable[..., Params]) -> Callable[..., Params]:
        """Its key and value leaves of several runs, split as a model's; else they are gathered."""

        def call(*arguments: Any) -> Params:
            made = function(*arguments)
            where = sharding.shardings(jax.tree.map(lambda x: x[0], made), mesh)
            several = jax.tree.map(lambda x: NamedSharding(mesh, P(None, *x.spec)), where)
            out: Params = jax.lax.with_sharding_constraint(made, several)
            return out

        return jax.jit(call)

    model, seed = Decoder(static.decoder), static.random_seed
    return Programs(
        zero_shot=rows(zero_shot, (P(), DATA), of_zsl),
        prompts=rows(read_prompts, (P(), P(), of_zsl, DATA), of_several),
        updates=rows(read_updates, (P(), P(), of_zsl, DATA), of_several),
        pairs=all_pairs,
        mean_step=jax.jit(mean_step, out_shardings=whole),
        random_steps=split_heads(functools.partial(synthetic.random_steps, model, seed)),
        noise=split_heads(functools.partial(synthetic.noise, seed)),
        sized=jax.jit(synthetic.sized),
    )
