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
from icljax.comparison.programs import DATA, Static, encode
from icljax.comparison.programs import zero_shot as read_zero_shot
from icljax.data.prompts import Queries
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
        updates: the same variants, finetuned on; then names of `catalog.SYNTHETIC`, and of
            `catalog.METHODS`, on the demonstrations as they are.
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


class Prompt(NamedTuple):
    """What a prompt leaves behind.

    Attributes:
        state: of all its tokens.
        columns, example: int32 [C], as in `prompts.Demonstrations`, aligned over variants.
    """

    state: State
    columns: Array
    example: Array


def zero_shot(static: Static, params: Params, queries: Queries) -> Change:
    """A batch of queries, zero-shot."""
    attention = (records := read_zero_shot(static, params, queries)).attention
    none = jnp.zeros((*attention.attn_out.shape[:2], 0))
    return Change(records.logprob, attention.attn_out, attention.scores_query, none)


def encode_prompt(static: Static, params: Params, tokens: Array, valid: Array) -> State:
    """What one prompt leaves behind; tokens and valid [T]."""
    states = encode(static, params, jnp.asarray(tokens)[None], jnp.asarray(valid)[None])
    state: State = jax.tree.map(lambda x: x[0], states)
    return state


def read_prompt(
    static: Static, params: Params, prompt: Prompt, zsl: Change, queries: Queries
) -> Change:
    """What a prompt changes, and its attention's weights of its own tokens."""
    records = forward.read(Decoder(static.decoder), params, prompt.state, queries)
    seen = forward.seen_of_state(queries, prompt.state, static.decoder)[..., prompt.columns]
    seen = seen & (jnp.asarray(prompt.example) >= 0)[None, None]
    weights = jnp.where(seen, records.scores_state[..., prompt.columns], jnp.nan)
    return _change(static, records, zsl, queries, weights)


def read_update(
    static: Static, params: Params, learned: Learned, zsl: Change, queries: Queries
) -> Change:
    """What an update changes, and its weights of the tokens that it was finetuned on."""
    records = read_zero_shot(static, with_kv_params(params, learned.kv_params), queries)
    weights = metrics.finetuning_attention(learned.queries, records.attention.query)
    return _change(static, records, zsl, queries, weights)


def _change(
    static: Static, after: Records, zsl: Change, queries: Queries, weights: jax.Array
) -> Change:
    new, mask = after.attention, forward.own_tokens(queries, static.decoder)
    scores = metrics.map_change(new.scores_query, zsl.scores, mask)
    return Change(after.logprob, new.attn_out - zsl.output, scores, weights)


def pairs(
    static: Static,
    plan: Plan,
    zsl: Change,
    prompts: tuple[Change, ...],
    updates: tuple[Change, ...],
    queries: Queries,
) -> dict[str, jax.Array]:
    """All pairs of P prompts and U updates on a batch of queries; arrays of `AXES`."""
    icl, ft = (jax.tree.map(lambda *x: jnp.stack(x), *side) for side in (prompts, updates))
    mask = forward.own_tokens(queries, static.decoder)
    out = {
        "logprob_zsl": zsl.logprob,
        "logprob_icl": icl.logprob,
        "logprob_ft": ft.logprob,
        "step_icl": jax.vmap(functools.partial(_step, zsl))(icl),
        "step_ft": jax.vmap(functools.partial(_step, zsl))(ft),
        **_alike("pair", icl, ft, mask),
    }
    there = jnp.asarray(queries.example).reshape(-1) >= 0
    if plan.tokens:
        out |= rankings(plan, icl, ft, there)
    if plan.contrasts:
        out |= contrasts(plan, icl, ft, mask, there)
    return out


def _step(zsl: Change, change: Change) -> jax.Array:
    """||change|| / ||zero-shot|| of attention outputs: [N, L]."""
    return jnp.linalg.norm(change.output, axis=-1) / jnp.linalg.norm(zsl.output, axis=-1)


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
        "label_map_head": _by_head(of_labels[0].scores, of_labels[1].scores, mask),
    }


def _by_head(prompts: jax.Array, updates: jax.Array, mask: jax.Array) -> jax.Array:
    """Cosines of own pairs' changes of attention maps: [R, N, L, H] of [R, N, L, H, S]."""

    def one(icl: jax.Array, ft: jax.Array) -> jax.Array:
        # Each head as a layer with one head.
        left, right = (x[None, ..., None, :] for x in (icl, ft))
        return metrics.pairwise_map_cosine(left, right, mask[..., None, :])[0, 0]

    return jax.vmap(one)(prompts, updates)


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


def mean_step(zsl: Change, update: Change, queries: Queries) -> jax.Array:
    """||change|| / ||zero-shot|| of attention outputs, mean over layers and queries: []."""
    there = jnp.asarray(queries.example).reshape(-1, 1) >= 0
    steps = jnp.where(there, _step(zsl, update), 0)
    return jnp.sum(steps) / (jnp.sum(there) * steps.shape[-1])


@dataclasses.dataclass(frozen=True)
class Programs:
    """The jitted programs of crossed comparisons; each as the function of its name says."""

    encode_prompt: Callable[[Params, Array, Array], State]
    zero_shot: Callable[[Params, Queries], Change]
    read_prompt: Callable[[Params, Prompt, Change, Queries], Change]
    read_update: Callable[[Params, Learned, Change, Queries], Change]
    pairs: Callable[
        [Plan, Change, tuple[Change, ...], tuple[Change, ...], Queries], dict[str, jax.Array]
    ]
    mean_step: Callable[[Change, Change, Queries], jax.Array]
    random_step: Callable[[Params, Array, Array, Array], Params]
    noise: Callable[[Params, Array], Params]
    sized: Callable[[Params, Params, Params, Array | float], Params]


def make_programs(static: Static) -> Programs:
    """The programs: rows of queries over the data axis; what the host reads is replicated."""
    mesh, whole = static.mesh, NamedSharding(static.mesh, P())

    def of(function: Callable[..., T]) -> Callable[..., T]:
        return functools.partial(function, static)

    def rows(function: Callable[..., Change], *specs: P) -> Callable[..., Change]:
        split: Callable[..., Change] = sharding.over_data(mesh, of(function), specs, DATA)
        return jax.jit(split)

    @functools.partial(jax.jit, out_shardings=whole)
    def all_pairs(plan: Plan, *arguments: Any) -> dict[str, jax.Array]:
        out = {name: P(*[None] * AXES[name], "data") for name in array_names(plan)}
        function = functools.partial(pairs, static, plan)
        found: dict[str, jax.Array] = sharding.over_data(mesh, function, (DATA,) * 4, out)(
            *arguments
        )
        return found

    def split_heads(function: Callable[..., Params]) -> Callable[..., Params]:
        """Its key and value leaves, split as a model's; else they are gathered."""

        def call(*arguments: Any) -> Params:
            made = function(*arguments)
            where = sharding.shardings(made, mesh)
            out: Params = jax.lax.with_sharding_constraint(made, where)
            return out

        return jax.jit(call)

    model, seed = Decoder(static.decoder), static.random_seed
    return Programs(
        encode_prompt=jax.jit(of(encode_prompt)),
        zero_shot=rows(zero_shot, P(), DATA),
        read_prompt=rows(read_prompt, P(), P(), DATA, DATA),
        read_update=rows(read_update, P(), P(), DATA, DATA),
        pairs=all_pairs,
        mean_step=jax.jit(mean_step, out_shardings=whole),
        random_step=split_heads(functools.partial(synthetic.random_step, model, seed)),
        noise=split_heads(functools.partial(synthetic.noise, seed)),
        sized=jax.jit(synthetic.sized),
    )
