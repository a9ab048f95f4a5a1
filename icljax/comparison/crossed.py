"""Prompts x updates: every prompt and every update is read once, and all pairs are compared.

Shape glossary: R seeds; P prompts and U updates, R of each of the plan's; N queries, L layers, Y
answers; letters of the records as in icljax/models/decoder.py.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

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
from icljax.records import CROSSED_AXES
from icljax.runtime import sharding
from icljax.types import Array, Params

T = TypeVar("T")  # a tree of arrays
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
        return matrix[self._rows(self.prompts, prompts), self._rows(self.updates, updates)]

    def of_prompts(self, x: T, name: str) -> T:
        """The R rows of these prompts, of a tree of [P, ...]."""
        return self._of(x, self._rows(self.prompts, name))

    def of_updates(self, x: T, name: str) -> T:
        """The R rows of these updates, of a tree of [U, ...]."""
        return self._of(x, self._rows(self.updates, name))

    def _rows(self, names: tuple[str, ...], name: str) -> slice:
        start = names.index(name) * self.seeds
        return slice(start, start + self.seeds)

    def _of(self, tree: T, rows: slice) -> T:
        cut: T = jax.tree.map(lambda x: x[rows], tree)
        return cut


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
    out = {
        "logprob_zsl": zsl.logprob,
        "logprob_icl": prompts.logprob,
        "logprob_ft": joined.logprob,
        "step_icl": _step(zsl, prompts),
        "step_ft": _step(zsl, joined),
        **_alike("pair", prompts, joined, mask),
    }
    there = jnp.asarray(queries.example).reshape(-1) >= 0
    if plan.tokens:
        out |= rankings(plan, prompts, joined, there)
    if plan.contrasts:
        out |= contrasts(plan, prompts, joined, mask, there)
    return out


def _step(zsl: Change, changes: Change) -> jax.Array:
    """||change|| / ||zero-shot|| of attention outputs: [P or U, N, L]."""
    return jnp.linalg.norm(changes.output, axis=-1) / jnp.linalg.norm(zsl.output, axis=-1)[None]


def rankings(
    plan: Plan, prompts: Change, updates: Change, there: jax.Array
) -> dict[str, jax.Array]:
    """Kendall's tau of the tokens' weights in pairs of one seed, on the same and another query.

    Args:
        there: bool [N], slots that hold a query.
    """
    names = [name for name in (DRAWN, plan.contrasts) if name]
    icl = jnp.stack([plan.of_prompts(prompts.tokens, name) for name in names])
    ft = jnp.stack([plan.of_updates(updates.tokens, name) for name in names])
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
    right, wrong = (
        [plan.of_prompts(prompts, name), plan.of_updates(updates, name)]
        for name in (DRAWN, plan.contrasts)
    )
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


# The arrays of `pairs`, and which of their axes is the queries'. Those of kendall need
# `Plan.tokens`; query_output, specific and label need contrasts.
AXES = {name: axes.index("example") for name, axes in CROSSED_AXES.items()}
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
    steps = jnp.where(there, _step(zsl, updates), 0)
    return jnp.sum(steps, (1, 2)) / (jnp.sum(there) * steps.shape[-1])


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
