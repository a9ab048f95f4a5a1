"""The comparison metrics: pure functions on arrays, nothing else.

Every function takes NumPy or JAX arrays, works under `jax.jit` and `jax.vmap`, and computes in
float32, or in float64 where an input is float64 and x64 is on. `...` stands for any leading axes.

Shapes:
  N: query examples.
  K: demonstrations.
  L: layers.
  H: query heads.
  D: model width.
  E: all query heads side by side (heads x head width).
  T: demonstration tokens that are compared (or, in the rank metrics, any items).
  S: query tokens, padded, with a mask (True: a real token).
  C: classes.
  B: bootstrap resamples.

Sources:
  The paper: Dai et al., "Why Can GPT Learn In-Context?", Findings of ACL 2023, arXiv 2212.10559.
  The reference code: its released PyTorch code (LMOps, folder `understand_icl`).
  The revisit: Deutch et al., "In-context Learning and Gradient Descent Revisited", NAACL 2024,
    arXiv 2311.07772.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from icljax.errors import UserError

_ROUNDING = 1e-5  # a change of attention logits below this share of their norm is none

# ----------------------------------------------------------------------------- shapes and types


def _floats(*arrays: ArrayLike) -> list[jax.Array]:
    """Converts to one common float dtype, at least float32."""
    converted = [jnp.asarray(a) for a in arrays]
    dtype = jnp.promote_types(jnp.result_type(*converted), jnp.float32)
    return [a.astype(dtype) for a in converted]


def _broadcast(name: str, array: ArrayLike, shape: tuple[int, ...]) -> jax.Array:
    """Broadcasts explicitly (implicit rank promotion may be forbidden), or says what is wrong."""
    array = jnp.asarray(array)
    try:
        return jnp.broadcast_to(array, shape)
    except ValueError:
        message = f"{name} has shape {array.shape}, which does not broadcast to {shape}: reshape it"
        raise UserError(message) from None


def _same_shape(**arrays: jax.Array) -> None:
    shapes = {name: a.shape for name, a in arrays.items()}
    if len(set(shapes.values())) > 1:
        given = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise UserError(f"shapes differ: {given}; expected one shape: align the arrays first")


# ------------------------------------------------------------------------------------- accuracy


def accuracy(pred: ArrayLike, label: ArrayLike) -> jax.Array:
    """Share of right predictions, in 0..1 (in the paper's tables, percent).

    Args:
      pred: [..., N] predicted classes.
      label: [N] or [..., N] true classes.

    Returns:
      [...] float32; NaN when N is 0.

    Raises:
      UserError: `label` does not broadcast to the shape of `pred`.
    """
    pred = jnp.asarray(pred)
    right = pred == _broadcast("label", label, pred.shape)
    return jnp.mean(right.astype(jnp.float32), axis=-1)


def rec2ftp_counts(
    zsl_correct: ArrayLike,
    ft_correct: ArrayLike,
    icl_correct: ArrayLike,
    weights: ArrayLike | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The two counts behind `rec2ftp` (the paper's Rec2FTP).

    Args:
      zsl_correct: [..., N] bool, whether zero-shot learning is right.
      ft_correct: [..., N] bool, the same for finetuning.
      icl_correct: [..., N] bool, the same for in-context learning.
      weights: how often each example counts: [N] or [..., N]; None: once.

    Returns:
      (recovered, ft_only), each [...] float32: examples that ZSL gets wrong and both FT and ICL get
      right; examples that ZSL gets wrong and FT gets right.

    Raises:
      UserError: an input is not bool, the shapes differ, or `weights` does not broadcast.
    """
    zsl, ft, icl = (jnp.asarray(a) for a in (zsl_correct, ft_correct, icl_correct))
    _same_shape(zsl_correct=zsl, ft_correct=ft, icl_correct=icl)
    for name, correct in (("zsl_correct", zsl), ("ft_correct", ft), ("icl_correct", icl)):
        if correct.dtype != jnp.bool_:
            raise UserError(f"{name} is {correct.dtype}; expected bool: give pred == label")
    count = _broadcast("weights", 1.0 if weights is None else weights, zsl.shape)
    count = count.astype(jnp.float32)
    ft_only = ~zsl & ft
    return jnp.sum(count * (ft_only & icl), axis=-1), jnp.sum(count * ft_only, axis=-1)


def rec2ftp(
    zsl_correct: ArrayLike,
    ft_correct: ArrayLike,
    icl_correct: ArrayLike,
    weights: ArrayLike | None = None,
) -> jax.Array:
    """Recall to finetuning predictions, in percent (the paper's Rec2FTP).

    Of the examples that finetuning gets right and zero-shot learning gets wrong, the share that
    in-context learning gets right too. Arguments and errors: see `rec2ftp_counts`.

    Returns:
      [...] float32, 0..100; NaN (undefined) where finetuning repairs no example.
    """
    recovered, ft_only = rec2ftp_counts(zsl_correct, ft_correct, icl_correct, weights)
    return 100.0 * recovered / ft_only


# --------------------------------------------------------------------------------- similarities


def _unit(x: jax.Array) -> jax.Array:
    """L2-normalises the last axis; a zero vector stays zero, with a finite gradient."""
    # The length does not depend on a common factor, so that it needs no gradient of its own;
    # taking it out keeps the squares from overflowing or vanishing.
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=-1, keepdims=True, initial=0.0))
    x = x / jnp.where(largest > 0, largest, 1)
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    return x / jnp.sqrt(jnp.where(square > 0, square, 1))


def _cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.sum(_unit(a) * _unit(b), axis=-1)


def sim_aou(zsl: ArrayLike, ft: ArrayLike, icl: ArrayLike, normalize: bool = True) -> jax.Array:
    """Similarity of attention output updates (the paper's SimAOU).

    The cosine between what ICL and what finetuning add to the zero-shot attention output.

    Args:
      zsl: [..., D] attention output, zero-shot.
      ft: [..., D] the same after finetuning.
      icl: [..., D] the same with demonstrations.
      normalize: L2-normalise each output before subtracting, as the paper does; False: the
        revisit's correction (normalising first inflates the score).

    Returns:
      [...] float32 or float64, in -1..1; 0 where an update is the zero vector.

    Raises:
      UserError: the shapes differ.
    """
    zsl, ft, icl = _floats(zsl, ft, icl)
    _same_shape(zsl=zsl, ft=ft, icl=icl)
    if normalize:
        zsl, ft, icl = _unit(zsl), _unit(ft), _unit(icl)
    return _cosine(icl - zsl, ft - zsl)


def _query_mask(mask: ArrayLike, scores: jax.Array) -> jax.Array:
    """[..., S] to [..., H, S]; the rank must match, or [N, S] could be read as [L, S]."""
    mask = jnp.asarray(mask, dtype=bool)
    if mask.ndim != scores.ndim - 1:
        raise UserError(
            f"mask has shape {mask.shape} and the scores [..., H, S] have {scores.shape}; expected "
            "a mask [..., S] with the scores' leading axes: insert axes of size 1 where it repeats"
        )
    return _broadcast("mask with a head axis", mask[..., None, :], scores.shape)


def sim_am(icl: ArrayLike, other: ArrayLike, mask: ArrayLike) -> jax.Array:
    """Similarity of attention maps (the paper's SimAM).

    The cosine between two settings' attention logits to the query tokens, per head, then the mean
    over heads. `other` is FT, or ZSL for the figure "before finetuning".

    Args:
      icl: [..., H, S] attention logits before softmax.
      other: [..., H, S] the same in the setting compared with.
      mask: [..., S] bool, True at real tokens; leading axes may be 1.

    Returns:
      [...] float32 or float64, in -1..1; a head whose logits are all zero or masked counts as 0.

    Raises:
      UserError: the shapes differ, or the mask does not fit.
    """
    icl, other = _floats(icl, other)
    _same_shape(icl=icl, other=other)
    keep = _query_mask(mask, icl)
    return jnp.mean(_cosine(jnp.where(keep, icl, 0), jnp.where(keep, other, 0)), axis=-1)


def sim_am_delta(zsl: ArrayLike, ft: ArrayLike, icl: ArrayLike, mask: ArrayLike) -> jax.Array:
    """SimAM of the changes, cos(ICL - ZSL, FT - ZSL) (the revisit's SimAM-delta).

    SimAM itself is dominated by the zero-shot map that both settings share.

    Args:
      zsl: [..., H, S] attention logits before softmax, zero-shot.
      ft: [..., H, S] the same after finetuning.
      icl: [..., H, S] the same with demonstrations.
      mask: [..., S] bool, True at real tokens; leading axes may be 1.

    Returns:
      [...] float32 or float64, in -1..1; a head that a setting leaves as it was, up to rounding
      (1e-5 of its logits' norm), counts as 0.

    Raises:
      UserError: the shapes differ, or the mask does not fit.
    """
    zsl, ft, icl = _floats(zsl, ft, icl)
    _same_shape(zsl=zsl, ft=ft, icl=icl)
    keep = _query_mask(mask, zsl)
    return sim_am(_beyond_rounding(icl, zsl, keep), _beyond_rounding(ft, zsl, keep), mask)


def _beyond_rounding(after: jax.Array, before: jax.Array, keep: jax.Array) -> jax.Array:
    """After - before [..., H, S], but 0 where a head's change is no more than rounding.

    In the first layer a context changes nothing, and the cosine of two rounding errors is noise.
    """
    change = after - before
    moved, size = (jnp.sum(jnp.where(keep, x, 0) ** 2, -1, keepdims=True) for x in (change, before))
    return jnp.where(moved > _ROUNDING**2 * size, change, 0)


# --------------------------------------------------------- attention to the demonstration tokens


def finetuning_attention(q_train: ArrayLike, q_test: ArrayLike) -> jax.Array:
    """What finetuning "attends to": query of the test token against those of training.

    The update that finetuning makes is a sum over training tokens, weighted by these products (one
    side of the paper's Kendall), here summed over heads.

    Args:
      q_train: [L, T, E] query vectors of the training tokens, while finetuning.
      q_test: [N, L, E] query vector of the studied token, after finetuning.

    Returns:
      [N, L, T] float32 or float64.

    Raises:
      UserError: layers or widths differ.
    """
    q_train, q_test = _floats(q_train, q_test)
    L, _, E = q_train.shape
    if q_test.shape[1:] != (L, E):
        raise UserError(
            f"q_train has shape {q_train.shape} and q_test {q_test.shape}; expected [L, T, E] and "
            "[N, L, E]: record both from one model"
        )
    return jnp.einsum("LTE,NLE->NLT", q_train, q_test, precision="highest")


def example_attention(scores: ArrayLike, example_ids: ArrayLike, num_examples: int) -> jax.Array:
    """Attention to whole demonstrations: softmax over tokens, then the sum inside each example.

    From the reference code (not in the paper).

    Args:
      scores: [..., T] attention logits to demonstration tokens.
      example_ids: [T] int, the demonstration of each token, 0..K-1; -1 leaves the token out of the
        softmax.
      num_examples: K.

    Returns:
      [..., K] float32 or float64; sums to 1 (all 0 where no token takes part).

    Raises:
      UserError: `example_ids` is not [T].
    """
    (scores,) = _floats(scores)
    ids = jnp.asarray(example_ids)
    if ids.shape != scores.shape[-1:]:
        raise UserError(
            f"example_ids has shape {ids.shape} and scores {scores.shape}; expected one id for "
            "each token, [T]: give the demonstration of each scored token"
        )
    keep = _broadcast("example_ids", ids >= 0, scores.shape)
    lowest = jnp.where(keep, scores, -jnp.inf)
    largest = jnp.max(lowest, axis=-1, keepdims=True, initial=-jnp.inf)
    largest = jax.lax.stop_gradient(jnp.where(jnp.isfinite(largest), largest, 0))
    # A left-out score is replaced before exp, so that it can bring no inf into the gradient.
    weight = jnp.exp(jnp.where(keep, scores, largest) - largest) * keep
    total = jnp.sum(weight, axis=-1, keepdims=True)
    member = jax.nn.one_hot(ids, num_examples, dtype=scores.dtype)
    return jnp.matmul(weight / jnp.where(total > 0, total, 1), member, precision="highest")


# ------------------------------------------------------------------------------------- rankings

# Kendall's tau compares each item with the items 1, 2, ... places further on, round the end: on an
# odd number T of items, (T - 1) / 2 such shifts meet each unordered pair once. Compared to sorting
# (Knight's method) this is T / 2 passes of plain arithmetic, with pairs of rankings side by side
# in the last axis: on CPU faster up to thousands of items, and it suits an accelerator as it is.
_SHIFTS_PER_STEP = 16  # compared in one fused pass over the items
# (sx + 1024 sy)^2 = sx^2 + 2048 sx sy + 2^20 sy^2 holds three counts in one int32, which stay
# apart over fewer than 256 shifts.
_STEPS_PER_ROUND = 15
_MAX_ITEMS = 65_536  # above it a count of pairs overflows int32


def _sign(a: jax.Array, b: jax.Array) -> jax.Array:
    """The order of a and b: 1, 0 or -1; 0 beside NaN."""
    return jnp.where(a > b, 1, -(a < b).astype(jnp.int32))


def _unpack(packed: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sums of sx sy, sx^2 and sy^2 out of the sum of (sx + 1024 sy)^2."""
    x_pairs = packed & 2047
    rest = packed >> 11
    y_pairs = (rest + 256) >> 9
    return rest - (y_pairs << 9), x_pairs, y_pairs


def _pair_counts(x: jax.Array, y: jax.Array, rounds: int, steps: int) -> tuple[jax.Array, ...]:
    """For x, y [T, B]: sums over pairs of sx sy, sx^2 and sy^2 (s: the sign of the difference)."""
    items = x.shape[0]
    x_round, y_round = (jnp.concatenate([a, a[: items // 2]]) for a in (x, y))

    def count_round(number: int, totals: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        def step(i: int, packed: jax.Array) -> jax.Array:
            first = 1 + (number * steps + i) * _SHIFTS_PER_STEP
            for shift in range(_SHIFTS_PER_STEP):
                other_x = jax.lax.dynamic_slice_in_dim(x_round, first + shift, items)
                other_y = jax.lax.dynamic_slice_in_dim(y_round, first + shift, items)
                both = _sign(x, other_x) + 1024 * _sign(y, other_y)
                packed += both * both
            return packed

        packed = jax.lax.fori_loop(0, steps, step, jnp.zeros(x.shape, jnp.int32))
        counts = (jnp.sum(c, axis=0, dtype=jnp.int32) for c in _unpack(packed))
        return tuple(total + count for total, count in zip(totals, counts, strict=True))

    zero = jnp.zeros(x.shape[1:], jnp.int32)
    return jax.lax.fori_loop(0, rounds, count_round, (zero, zero, zero))


def _rounds_and_steps(items: int) -> tuple[int, int]:
    """Splits the shifts that `items` need evenly into rounds of at most _STEPS_PER_ROUND steps."""
    steps = max(1, math.ceil(items // 2 / _SHIFTS_PER_STEP))
    rounds = math.ceil(steps / _STEPS_PER_ROUND)
    return rounds, math.ceil(steps / rounds)


@functools.partial(jax.jit, static_argnames="chunk")
def _kendall_rows(x: jax.Array, y: jax.Array, chunk: int) -> jax.Array:
    """Tau-b of the rows of x and y [B, T]; NaN marks what is left out."""
    batch, items = x.shape
    rounds, steps = _rounds_and_steps(items)
    length = 2 * rounds * steps * _SHIFTS_PER_STEP + 1
    chunk = max(1, min(chunk, batch))
    padding = ((0, -batch % chunk), (0, length - items))

    def chunks(a: jax.Array) -> jax.Array:
        return jnp.pad(a, padding, constant_values=jnp.nan).reshape(-1, chunk, length)

    def tau(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
        counts = _pair_counts(pair[0].T, pair[1].T, rounds, steps)
        score, x_pairs, y_pairs = (c.astype(x.dtype) for c in counts)
        return jnp.clip(score / (jnp.sqrt(x_pairs) * jnp.sqrt(y_pairs)), -1, 1)

    return jax.lax.map(tau, (chunks(x), chunks(y))).reshape(-1)[:batch]


def kendall_tau(
    x: ArrayLike, y: ArrayLike, mask: ArrayLike | None = None, chunk: int = 128
) -> jax.Array:
    """Kendall's rank correlation, tau-b (the paper's Kendall; Kendall, 1945, for the ties).

    Equal to the paper's formula where there are no ties, and to `scipy.stats.kendalltau`.
    Time grows with T squared, memory with T.

    Args:
      x: [..., T] scores; their order is exact in float32 (whole numbers: up to 2**24).
      y: [..., T] scores.
      mask: [T] or [..., T] bool, True at items that take part; None: all.
      chunk: rankings compared side by side; bounds the memory: about 30 * chunk * T bytes,
        beside a copy of x and of y.

    Returns:
      [...] float32 or float64, in -1..1; NaN where it is undefined: fewer than two items, a
      ranking with all items tied, or a NaN among the items.

    Raises:
      UserError: the shapes differ, `mask` does not broadcast, or T is above 65,536.
    """
    x, y = _floats(x, y)
    _same_shape(x=x, y=y)
    *lead, items = x.shape
    if items > _MAX_ITEMS:
        raise UserError(f"{items} items to rank; expected at most {_MAX_ITEMS}: compare fewer")
    keep = _broadcast("mask", True if mask is None else mask, x.shape).astype(bool)
    rows = math.prod(lead), items
    left_out = jnp.asarray(jnp.nan, x.dtype)
    marked = (jnp.where(keep, a, left_out).reshape(rows) for a in (x, y))
    undefined = jnp.any(keep & (jnp.isnan(x) | jnp.isnan(y)), axis=-1)
    return jnp.where(undefined, left_out, _kendall_rows(*marked, chunk).reshape(lead))


def topk_recall(x: ArrayLike, y: ArrayLike, k: int, mask: ArrayLike | None = None) -> jax.Array:
    """Share of x's k highest items that are among y's k highest (the reference code).

    Where fewer than k items take part, k is their number. Ties go to the earlier item.

    Args:
      x: [..., T] scores.
      y: [..., T] scores.
      k: how many items; the reference code uses 5 examples and 100 tokens.
      mask: [T] or [..., T] bool, True at items that take part; None: all.

    Returns:
      [...] float32, in 0..1; NaN where no item takes part, or a NaN does.

    Raises:
      UserError: the shapes differ, `mask` does not broadcast, or k is below 1.
    """
    x, y = _floats(x, y)
    _same_shape(x=x, y=y)
    if k < 1:
        raise UserError(f"k is {k}; expected at least 1: say how many of the highest to compare")
    keep = _broadcast("mask", True if mask is None else mask, x.shape).astype(bool)
    k = min(k, x.shape[-1])
    top_x, top_y = (jax.lax.top_k(jnp.where(keep, a, -jnp.inf), k)[1] for a in (x, y))
    shared = jnp.any(top_x[..., :, None] == top_y[..., None, :], axis=-1)
    shared &= jnp.take_along_axis(keep, top_x, axis=-1)
    possible = jnp.minimum(k, jnp.sum(keep, axis=-1))
    undefined = jnp.any(keep & (jnp.isnan(x) | jnp.isnan(y)), axis=-1)  # top_k puts NaN first
    share = jnp.sum(shared, axis=-1).astype(jnp.float32) / possible.astype(jnp.float32)
    return jnp.where(undefined, jnp.nan, share)


# ------------------------------------------------------------------- baselines and calibration


def random_update(key: jax.Array, shape: tuple[int, ...], kind: str = "gaussian") -> jax.Array:
    """Random values in place of a recorded update or score: the paper's baseline, seeded.

    Args:
      key: a PRNG key.
      shape: of the array replaced.
      kind: "gaussian": zero mean, unit variance; "uniform": U[0, 1), as in the reference code,
        whose mean is not zero, so that two such vectors correlate.

    Returns:
      `shape`, float32.

    Raises:
      UserError: `kind` is neither.
    """
    if kind == "gaussian":
        return jax.random.normal(key, shape, jnp.float32)
    if kind == "uniform":
        return jax.random.uniform(key, shape, jnp.float32)
    raise UserError(f"random baseline {kind!r}; expected 'gaussian' or 'uniform': choose one")


def calibrate(logprob: ArrayLike) -> jax.Array:
    """Subtracts each label's mean log-probability over the examples (batch calibration).

    After Zhou et al., "Batch Calibration", ICLR 2024, arXiv 2309.17249. It is transductive: the
    prediction for one example depends on all others in the batch (not on their labels), so report
    it beside the plain accuracy, never in its place.

    Args:
      logprob: [..., N, C] log-probability of each label.

    Returns:
      [..., N, C] float32 or float64; each label's mean over N is 0.
    """
    (logprob,) = _floats(logprob)
    return logprob - jnp.mean(logprob, axis=-2, keepdims=True)


# ------------------------------------------------------------------------------------ bootstrap

# Seeds and examples are crossed: every seed reads the same examples. A resample therefore draws
# seeds, and one set of examples, which every drawn seed reads (Owen, "The pigeonhole bootstrap",
# Annals of Applied Statistics 2007). To draw examples anew within each seed would treat an
# example's R appearances as R examples, and give intervals up to sqrt(R) too narrow.


@functools.partial(jax.jit, static_argnums=(1, 2))
def bootstrap_weights(key: jax.Array, num_examples: int, num_samples: int) -> jax.Array:
    """How often each example (or each seed) is drawn in each resample (Efron, 1979).

    Use the same weights for all figures that are compared, so that they share their resamples.

    Args:
      key: a PRNG key; one for examples, another for seeds.
      num_examples: N (or R).
      num_samples: B.

    Returns:
      [B, N] float32 whole numbers; each row sums to N.
    """
    shape = num_samples, num_examples
    drawn = jax.random.randint(key, shape, 0, num_examples)
    return jnp.zeros(shape, jnp.float32).at[jnp.arange(num_samples)[:, None], drawn].add(1)


def bootstrap_ratio_interval(
    weights: ArrayLike,
    numerator: ArrayLike,
    denominator: ArrayLike,
    level: float = 0.95,
    seed_weights: ArrayLike | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Percentile bootstrap interval of sum(numerator) / sum(denominator), as in Rec2FTP.

    With `seed_weights`, each resample draws seeds, and examples: the same examples in every seed,
    as all seeds read the same. The interval then speaks of other examples and of other seeds;
    without them, or with one seed, of other examples alone. R seeds are a sample of R: below about
    five, their part of the interval is a rough guess, and too narrow (the bootstrap's variance is
    (R - 1) / R of the seeds'; look at each seed's value as well).

    Args:
      weights: [B, N] from `bootstrap_weights`.
      numerator: [N, ...], with `seed_weights` [R, N, ...]: what each example adds above the line.
      denominator: what it adds below; the same shape.
      level: coverage, between 0 and 1.
      seed_weights: [B, R] from `bootstrap_weights` with another key; None: there are no seeds.

    Returns:
      (low, high), each [...] float32 or float64. Resamples whose denominator is 0 are left out;
      NaN where that is all of them.

    Raises:
      UserError: the shapes do not fit, or `level` is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise UserError(f"level is {level}; expected a share between 0 and 1: 0.95, say")
    weights, numerator, denominator = _floats(weights, numerator, denominator)
    _same_shape(numerator=numerator, denominator=denominator)
    drawn = [weights] if seed_weights is None else [jnp.asarray(seed_weights), weights]
    if tuple(w.shape[1] for w in drawn) != numerator.shape[: len(drawn)]:
        given = " and ".join(str(w.shape) for w in drawn)
        raise UserError(
            f"weights have shape {given} and the values {numerator.shape}; expected [B, N] and "
            "[N, ...], or with seeds [B, R], [B, N] and [R, N, ...]: draw the weights for as many "
            "seeds and examples as there are values"
        )
    of_seeds = drawn[0]
    if seed_weights is None:
        numerator, denominator = numerator[None], denominator[None]
        of_seeds = jnp.ones((weights.shape[0], 1), weights.dtype)
    above, below = (_resampled_sum(of_seeds, weights, a) for a in (numerator, denominator))
    tail = (1 - level) / 2
    low, high = jnp.nanquantile(above / below, jnp.array([tail, 1 - tail]), axis=0)
    return low, high


def _resampled_sum(seed_weights: jax.Array, weights: jax.Array, values: jax.Array) -> jax.Array:
    """Sums of [R, N, ...] in every resample: [B, ...]."""
    one = jnp.ravel(values)[0]

    def product() -> jax.Array:
        within = jnp.einsum("BN,RN...->BR...", weights, values, precision="highest")
        seeds = seed_weights.astype(within.dtype)
        return jnp.einsum("BR,BR...->B...", seeds, within, precision="highest")

    def of_equals() -> jax.Array:
        total = one * jnp.sum(weights, 1) * jnp.sum(seed_weights, 1)
        shape = weights.shape[:1] + (1,) * (values.ndim - 2)
        return jnp.broadcast_to(total.reshape(shape), weights.shape[:1] + values.shape[2:])

    # Where nothing is left out, the counts are all 1: half of a large product saved.
    return jax.lax.cond(jnp.all(values == one), of_equals, product)


def bootstrap_interval(
    weights: ArrayLike,
    values: ArrayLike,
    level: float = 0.95,
    seed_weights: ArrayLike | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Percentile bootstrap interval of the mean over examples and seeds (Efron, 1979).

    For two settings on the same examples and seeds, give the differences of their values: the
    interval is then that of the paired difference. What is resampled: `bootstrap_ratio_interval`.

    Args:
      weights: [B, N] from `bootstrap_weights`.
      values: [N, ...], with `seed_weights` [R, N, ...]: one figure for each example (and seed);
        entries that are not finite are left out, and the others' weights make up for them.
      level: coverage, between 0 and 1.
      seed_weights: [B, R] from `bootstrap_weights` with another key; None: there are no seeds.

    Returns:
      (low, high), each [...] float32 or float64; NaN where no entry is finite.

    Raises:
      UserError: the shapes do not fit, or `level` is not between 0 and 1.
    """
    (values,) = _floats(values)
    finite = jnp.isfinite(values)
    return bootstrap_ratio_interval(
        weights, jnp.where(finite, values, 0), finite, level, seed_weights
    )
