"""Records of the three settings -> the numbers that are kept of each example and layer.

Shape glossary: N query slots, L layers, C demonstration tokens compared (padded, with a mask),
Q demonstrations, Y answers; letters of the records as in icljax/models/decoder.py.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from icljax import metrics
from icljax.comparison.forward import Records
from icljax.models.decoder import Rope, State, rotate
from icljax.types import Array

_TINY = 1e-30
TOP_TOKENS = 100
TOP_EXAMPLES = 5


class Similarity(NamedTuple):
    """Every similarity of ICL and FT and its baseline, float32 [N, L] each.

    `_random` fields put a seeded random vector in the place of what finetuning gave
    (`sim_update_random`: of what ICL gave). Fields of `update` are [N, L, G].
    """

    sim_aou: Array
    sim_aou_random: Array
    sim_aou_unnormalized: Array
    sim_aou_unnormalized_random: Array
    sim_am_before: Array
    sim_am_after: Array
    sim_am_delta: Array
    sim_am_delta_random: Array
    kendall: Array
    kendall_random: Array
    kendall_example: Array
    kendall_example_random: Array
    recall_tokens: Array
    recall_tokens_random: Array
    recall_examples: Array
    recall_examples_random: Array
    sim_update: Array
    sim_update_random: Array
    update_share_icl: Array
    update_share_ft: Array


@dataclasses.dataclass(frozen=True)
class TrainingTokens:
    """The demonstration tokens of one seed, as both settings see them.

    Attributes:
        columns: int32 [C], their columns in the ICL state.
        example: int32 [C], the demonstration of each, -1 on padding.
        queries: float [L, C, H * K], their query vectors during finetuning.
        update: float32 [L, G, V, K], dW_ICL of `demonstration_update`.
        num_demonstrations: of a seed, at most.
    """

    columns: Array
    example: Array
    queries: jax.Array
    update: jax.Array
    num_demonstrations: int


@dataclasses.dataclass(frozen=True)
class Draws:
    """Where the random vectors of the baselines come from.

    Attributes:
        keys: PRNG keys [N], one an example, so that baselines do not depend on batching.
        seed_key: PRNG key of this seed.
        kind: "gaussian" or "uniform", the random update's distribution.
    """

    keys: jax.Array
    seed_key: jax.Array
    kind: str


def similarity(
    zsl: Records,
    icl: Records,
    ft: Records,
    training: TrainingTokens,
    query_mask: jax.Array,
    draws: Draws,
) -> Similarity:
    """All similarities of method section "metrics" for one seed.

    Args:
        query_mask: bool [N, S], each query's own tokens.
    """
    z, i, f = zsl.attention, icl.attention, ft.attention
    update, update_scores, weights = _random_like(
        draws, (z.attn_out, z.scores_query, icl_weights(icl.scores_state, training))
    )
    random_ft, random_scores = z.attn_out + update, z.scores_query + update_scores
    mask = query_mask[:, None, :]
    return Similarity(
        sim_aou=metrics.sim_aou(z.attn_out, f.attn_out, i.attn_out),
        sim_aou_random=_sim_aou_of_update(z.attn_out, update, i.attn_out),
        sim_aou_unnormalized=metrics.sim_aou(z.attn_out, f.attn_out, i.attn_out, normalize=False),
        sim_aou_unnormalized_random=metrics.sim_aou(
            z.attn_out, random_ft, i.attn_out, normalize=False
        ),
        sim_am_before=metrics.sim_am(i.scores_query, z.scores_query, mask),
        sim_am_after=metrics.sim_am(i.scores_query, f.scores_query, mask),
        sim_am_delta=metrics.sim_am_delta(z.scores_query, f.scores_query, i.scores_query, mask),
        sim_am_delta_random=metrics.sim_am_delta(
            z.scores_query, random_scores, i.scores_query, mask
        ),
        **_training_similarity(icl.scores_state, f.query, weights, training),
        **_update_similarity(zsl, ft, training.update, query_mask, draws.seed_key),
    )


def demonstration_update(
    state: State, columns: Array, compared: jax.Array, shift: jax.Array, rope: Rope | None
) -> jax.Array:
    """dW_ICL = sum_i v_i k_i^T over the demonstrations (method section 1): [L, G, V, K].

    This is attention in the relaxed linear form: for linear attention it is the state itself.

    Args:
        columns: int32 [C], the demonstrations' tokens; compared: bool [C], False on padding.
        shift: int32 [], how many tokens later the query stands than in the zero-shot prompt.
        rope: rotary positions, by which keys are turned as if the query stood where it does in
            the zero-shot prompt, so that updates of both prompts meet in one frame; None for
            models without.
    """
    keys = state.keys[:, columns].astype(jnp.float32)
    values = jnp.where(compared[None, :, None, None], state.values[:, columns], 0)
    if rope is not None:
        turned = jnp.full(keys.shape[:2], -shift)
        keys = rotate(keys, turned, rope)
    return jnp.einsum("LCGV,LCGK->LGVK", values.astype(jnp.float32), keys)


def _update_similarity(
    zsl: Records, ft: Records, update: jax.Array, query_mask: jax.Array, key: jax.Array
) -> dict[str, jax.Array]:
    """dW_ICL against dW_FT and their sizes beside W_ZSL; each [N, L, G].

    W_ZSL = sum_j v_j k_j^T over the query's own tokens, and dW_FT is what finetuning adds to it:
    sum_j (v'_j - v_j) k'_j^T + v_j (k'_j - k_j)^T, which loses nothing where v' - v is small.
    One layer at a time, since [N, V, K] matrices of all layers would fill the memory.
    """
    mask = query_mask.reshape(zsl.keys.shape[1], -1, query_mask.shape[-1]).astype(jnp.float32)

    def summed(values: jax.Array, keys: jax.Array) -> jax.Array:
        own = jnp.einsum("BAS,BSGV->BAGVS", mask, values)
        return jnp.einsum("BAGVS,BSGK->BAGVK", own, keys)

    def layer(inputs: tuple[jax.Array, ...]) -> dict[str, jax.Array]:
        k, v, k_ft, v_ft, icl, random = (x.astype(jnp.float32) for x in inputs)
        change = summed(v_ft - v, k_ft) + summed(v, k_ft - k)
        size_ft, size_zsl, size_icl = (_size(x) for x in (change, summed(v, k), icl[None, None]))

        def cosine(other: jax.Array) -> jax.Array:
            inner = jnp.einsum("BAGVK,GVK->BAG", change, other)
            return inner / jnp.maximum(size_ft * _size(other)[None, None], _TINY)

        return {
            "sim_update": cosine(icl),
            "sim_update_random": cosine(random),
            "update_share_icl": size_icl / jnp.maximum(size_icl + size_zsl, _TINY),
            "update_share_ft": size_ft / jnp.maximum(size_ft + size_zsl, _TINY),
        }

    random = jax.random.normal(key, update.shape)
    out = jax.lax.map(layer, (zsl.keys, zsl.values, ft.keys, ft.values, update, random))
    return {n: jnp.moveaxis(x, 0, 2).reshape(-1, x.shape[0], x.shape[3]) for n, x in out.items()}


def _size(matrix: jax.Array) -> jax.Array:
    """Frobenius norm over the last two axes."""
    return jnp.sqrt(jnp.sum(matrix**2, (-1, -2)))


def icl_weights(scores_state: jax.Array, training: TrainingTokens) -> jax.Array:
    """[N, L, T] over the whole state -> [N, L, C] over the compared tokens."""
    return scores_state[..., training.columns]


def _random_like(draws: Draws, shapes: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """One random array like each given [N, ...], drawn per example from its own key."""

    def draw(key: jax.Array) -> tuple[jax.Array, ...]:
        return tuple(
            metrics.random_update(k, x.shape[1:], draws.kind)
            for k, x in zip(jax.random.split(key, len(shapes)), shapes, strict=True)
        )

    return jax.vmap(draw)(draws.keys)


def _sim_aou_of_update(zsl: jax.Array, update: jax.Array, icl: jax.Array) -> jax.Array:
    """SimAOU with a given update of the normalised zero-shot output in finetuning's place."""

    def unit(x: jax.Array) -> jax.Array:
        return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)

    return metrics.sim_aou(unit(zsl), unit(zsl) + update, unit(icl), normalize=False)


def _training_similarity(
    scores_state: jax.Array,
    ft_query: jax.Array,
    random: jax.Array,
    training: TrainingTokens,
) -> dict[str, jax.Array]:
    """Kendall and recall, over tokens and over demonstrations."""
    mask, num_demonstrations = training.example >= 0, training.num_demonstrations
    used = jnp.arange(num_demonstrations) <= jnp.max(training.example)
    weights = {
        "icl": icl_weights(scores_state, training),
        "": metrics.finetuning_attention(training.queries, ft_query),
        "_random": random,
    }
    examples = {
        name: metrics.example_attention(w, training.example, num_demonstrations)
        for name, w in weights.items()
    }
    out = {}
    for suffix in ("", "_random"):
        out["kendall" + suffix] = metrics.kendall_tau(
            weights["icl"], weights[suffix], mask[None, None, :]
        )
        out["kendall_example" + suffix] = metrics.kendall_tau(
            examples["icl"], examples[suffix], used[None, None, :]
        )
        out["recall_tokens" + suffix] = metrics.topk_recall(
            weights["icl"], weights[suffix], TOP_TOKENS, mask[None, None, :]
        )
        out["recall_examples" + suffix] = metrics.topk_recall(
            examples["icl"], examples[suffix], TOP_EXAMPLES, used[None, None, :]
        )
    return out
