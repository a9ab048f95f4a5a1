"""Accuracy, Rec2FTP and calibration. Shapes and sources: icljax/metrics/__init__.py."""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Real, Shaped

from icljax.errors import UserError
from icljax.metrics.arrays import broadcast, floats, same_shape


def accuracy(
    pred: Shaped[ArrayLike, "*batch N"], label: Shaped[ArrayLike, "..."]
) -> Float[Array, "*batch"]:
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
    right = pred == broadcast("label", label, pred.shape)
    return jnp.mean(right.astype(jnp.float32), axis=-1)


def rec2ftp_counts(
    zsl_correct: Shaped[ArrayLike, "*batch N"],
    ft_correct: Shaped[ArrayLike, "..."],
    icl_correct: Shaped[ArrayLike, "..."],
    weights: Real[ArrayLike, "..."] | None = None,
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
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
    same_shape(zsl_correct=zsl, ft_correct=ft, icl_correct=icl)
    for name, correct in (("zsl_correct", zsl), ("ft_correct", ft), ("icl_correct", icl)):
        if correct.dtype != jnp.bool_:
            raise UserError(f"{name} is {correct.dtype}; expected bool: give pred == label")
    count = broadcast("weights", 1.0 if weights is None else weights, zsl.shape)
    count = count.astype(jnp.float32)
    ft_only = ~zsl & ft
    return jnp.sum(count * (ft_only & icl), axis=-1), jnp.sum(count * ft_only, axis=-1)


def rec2ftp(
    zsl_correct: Shaped[ArrayLike, "*batch N"],
    ft_correct: Shaped[ArrayLike, "..."],
    icl_correct: Shaped[ArrayLike, "..."],
    weights: Real[ArrayLike, "..."] | None = None,
) -> Float[Array, "*batch"]:
    """Recall to finetuning predictions, in percent (the paper's Rec2FTP).

    Of the examples that finetuning gets right and zero-shot learning gets wrong, the share that
    in-context learning gets right too. Arguments and errors: see `rec2ftp_counts`.

    Returns:
      [...] float32, 0..100; NaN (undefined) where finetuning repairs no example.
    """
    recovered, ft_only = rec2ftp_counts(zsl_correct, ft_correct, icl_correct, weights)
    return 100.0 * recovered / ft_only


def calibrate(logprob: Real[ArrayLike, "*batch N C"]) -> Float[Array, "*batch N C"]:
    """Subtracts each label's mean log-probability over the examples (batch calibration).

    After Zhou et al., "Batch Calibration", ICLR 2024, arXiv 2309.17249. It is transductive: the
    prediction for one example depends on all others in the batch (not on their labels), so report
    it beside the plain accuracy, never in its place.

    Args:
      logprob: [..., N, C] log-probability of each label.

    Returns:
      [..., N, C] float32 or float64; each label's mean over N is 0.
    """
    (logprob,) = floats(logprob)
    return logprob - jnp.mean(logprob, axis=-2, keepdims=True)
