"""Records of the three settings -> the numbers that are kept of each example and layer.

Shape glossary: N query slots, L layers, C demonstration tokens compared (padded, with a mask),
Q demonstrations, Y answers; letters of the records as in icljax/models/decoder.py.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from icljax import catalog, metrics
from icljax.catalog import Formula
from icljax.comparison.forward import Records
from icljax.models.decoder import Rope, State, rotate
from icljax.types import Array

_TINY = 1e-30
# By `NAMES`: float32 [N, L]; [N, L, G] of what there is for each head, [N, 1] without layers.
Similarity = Mapping[str, Array]
NAMES = (*catalog.formulas(), "update_share_icl", "update_share_ft")


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


def similarity(arrays: Mapping[str, Array]) -> Similarity:
    """All that the catalog has a formula for (method section "metrics"), for one seed.

    Args:
        arrays: of `recorded`.
    """

    def computed(formula: Formula) -> Array:
        arguments = {name: arrays[array] for name, array in formula.reads.items()}
        if not formula.function:
            (value,) = arguments.values()
            return value
        value = getattr(metrics, formula.function)(**arguments, **formula.options)
        return value[:, None] if value.ndim == 1 else value

    out = {name: computed(formula) for name, formula in catalog.formulas().items()}
    out |= {f"update_share_{s}": arrays[f"update.share_{s}"] for s in ("icl", "ft")}
    return out


def recorded(
    zsl: Records,
    icl: Records,
    ft: Records,
    training: TrainingTokens,
    query_mask: jax.Array,
    draws: Draws,
) -> dict[str, Array]:
    """What the catalog's formulas read, by name; "random": a random change in FT's place.

    Args:
        query_mask: bool [N, S], each query's own tokens.

    Shapes: attn_out [N, L, D], scores [N, L, H, S], token_weights [N, L, C], example_weights
    [N, L, Q], logprob [N, Y], update [N, L, G]; masks are True where there is something.
    """
    z, i, f = zsl.attention, icl.attention, ft.attention
    weights = icl_weights(icl.scores_state, training)
    random, random_scores, random_weights = _random_like(
        draws, (z.attn_out, z.scores_query, weights)
    )
    tokens = {
        "icl": weights,
        "ft": metrics.finetuning_attention(training.queries, f.query),
        "random": random_weights,
    }
    count = training.num_demonstrations
    return {
        "zsl.logprob": zsl.logprob,
        "ft.logprob": ft.logprob,
        "zsl.attn_out": z.attn_out,
        "icl.attn_out": i.attn_out,
        "ft.attn_out": f.attn_out,
        "random.attn_out": z.attn_out + random,
        "zsl.unit_out": _unit(z.attn_out),
        "icl.unit_out": _unit(i.attn_out),
        "random.unit_out": _unit(z.attn_out) + random,
        "zsl.scores": z.scores_query,
        "icl.scores": i.scores_query,
        "ft.scores": f.scores_query,
        "random.scores": z.scores_query + random_scores,
        "query_mask": query_mask[:, None, :],
        **{f"{name}.token_weights": w for name, w in tokens.items()},
        **{
            f"{name}.example_weights": metrics.example_attention(w, training.example, count)
            for name, w in tokens.items()
        },
        "token_mask": (training.example >= 0)[None, None, :],
        "example_mask": (jnp.arange(count) <= jnp.max(training.example))[None, None, :],
        **_update_similarity(zsl, ft, training.update, query_mask, draws.seed_key),
    }


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
            "update.cosine": cosine(icl),
            "update.cosine_random": cosine(random),
            "update.share_icl": size_icl / jnp.maximum(size_icl + size_zsl, _TINY),
            "update.share_ft": size_ft / jnp.maximum(size_ft + size_zsl, _TINY),
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


def _unit(x: jax.Array) -> jax.Array:
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
