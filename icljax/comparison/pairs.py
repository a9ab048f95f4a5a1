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
from icljax.comparison.forward import Records, inside_windows
from icljax.models.decoder import DecoderConfig, State
from icljax.models.rotary import rotate
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
        seen: bool [N, L, C], which of them the studied token sees; [N, 1, C] or [1, 1, C] where
            more is not needed. What a window hides is compared in neither setting.
        queries: float [L, C, H * K], their query vectors during finetuning.
        update: float32 [L, G, V, K], dW_ICL of `demonstration_update`.
        num_demonstrations: of a seed, at most.
    """

    columns: Array
    example: Array
    seen: jax.Array
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
        query_mask: bool [N, L, S] or [N, 1, S], each query's own tokens that a layer sees.

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
    count, example = training.num_demonstrations, jnp.asarray(training.example)
    token_mask = training.seen & (example >= 0)[None, None]
    of_example = (example[:, None] == jnp.arange(count)[None])[None, None]

    def by_example(weights: jax.Array) -> jax.Array:
        return metrics.example_attention(weights, example, count, token_mask)

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
        "query_mask": query_mask,
        **{f"{name}.token_weights": w for name, w in tokens.items()},
        **{f"{name}.example_weights": by_example(w) for name, w in tokens.items()},
        "token_mask": token_mask,
        "example_mask": jnp.any(token_mask[..., None] & of_example, -2),
        **_update_similarity(zsl, ft, training.update, query_mask, draws.seed_key),
    }


def demonstration_update(
    state: State, columns: Array, compared: jax.Array, shift: jax.Array, config: DecoderConfig
) -> jax.Array:
    """dW_ICL = sum_i v_i k_i^T over the demonstrations (method section 1): [L, G, V, K].

    This is attention in the relaxed linear form: for linear attention it is the state itself.
    In a layer with a window the sum is over what the first token after the prompt sees, the same
    for all queries; a query's own later tokens see as many fewer as they stand behind it.

    Args:
        columns: int32 [C], the demonstrations' tokens; compared: bool [C], False on padding.
        shift: int32 [], how many tokens later the query stands than in the zero-shot prompt.
        config: its rotary positions turn the keys as if the query stood where it does in the
            zero-shot prompt, so that updates of both prompts meet in one frame.
    """
    keys = state.keys[:, columns].astype(jnp.float32)
    back = state.length - (jnp.cumsum(state.valid) - 1)[columns]
    seen = compared[None, None] & inside_windows(config, back[None])
    values = jnp.where(seen[0, ..., None, None], state.values[:, columns], 0)
    if config.ropes:
        turned = jnp.full(keys.shape[:2], -shift)
        keys = rotate(keys, turned, config.ropes, jnp.arange(len(keys)))
    return jnp.einsum("LCGV,LCGK->LGVK", values.astype(jnp.float32), keys)


def _update_similarity(
    zsl: Records, ft: Records, update: jax.Array, query_mask: jax.Array, key: jax.Array
) -> dict[str, jax.Array]:
    """dW_ICL against dW_FT and their sizes beside W_ZSL; each [N, L, G].

    W_ZSL = sum_j v_j k_j^T over the query's own tokens, and dW_FT is what finetuning adds to it:
    sum_j (v'_j - v_j) k'_j^T + v_j (k'_j - k_j)^T, which loses nothing where v' - v is small.
    One layer at a time, since [N, V, K] matrices of all layers would fill the memory.

    Args:
        query_mask: as in `recorded`.
    """
    layers, batch = zsl.keys.shape[:2]
    masks = jnp.broadcast_to(query_mask, (len(query_mask), layers, query_mask.shape[-1]))
    masks = jnp.moveaxis(masks, 1, 0).reshape(layers, batch, -1, query_mask.shape[-1])

    def summed(mask: jax.Array, values: jax.Array, keys: jax.Array) -> jax.Array:
        own = jnp.einsum("BAS,BSGV->BAGVS", mask, values)
        return jnp.einsum("BAGVS,BSGK->BAGVK", own, keys)

    def layer(inputs: tuple[jax.Array, ...]) -> dict[str, jax.Array]:
        mask, k, v, k_ft, v_ft, icl, random = (x.astype(jnp.float32) for x in inputs)
        change = summed(mask, v_ft - v, k_ft) + summed(mask, v, k_ft - k)
        sized = (change, summed(mask, v, k), icl[None, None])
        size_ft, size_zsl, size_icl = map(_size, sized)

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
    inputs = (masks, zsl.keys, zsl.values, ft.keys, ft.values, update, random)
    out = jax.lax.map(layer, inputs)
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
