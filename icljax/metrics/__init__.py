"""The comparison metrics: pure functions on arrays, nothing else.

Every function takes NumPy or JAX arrays, works under `jax.jit` and `jax.vmap`, and computes in
float32, or in float64 where an input is float64 and x64 is on. `...` stands for any leading axes;
in an annotation, for a shape whose misfit has a message of its own.

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

from icljax.metrics.accuracy import accuracy as accuracy
from icljax.metrics.accuracy import calibrate as calibrate
from icljax.metrics.accuracy import rec2ftp as rec2ftp
from icljax.metrics.accuracy import rec2ftp_counts as rec2ftp_counts
from icljax.metrics.intervals import bootstrap_interval as bootstrap_interval
from icljax.metrics.intervals import bootstrap_ratio_interval as bootstrap_ratio_interval
from icljax.metrics.intervals import bootstrap_weights as bootstrap_weights
from icljax.metrics.ranking import kendall_tau as kendall_tau
from icljax.metrics.ranking import topk_recall as topk_recall
from icljax.metrics.similarity import example_attention as example_attention
from icljax.metrics.similarity import finetuning_attention as finetuning_attention
from icljax.metrics.similarity import random_update as random_update
from icljax.metrics.similarity import sim_am as sim_am
from icljax.metrics.similarity import sim_am_delta as sim_am_delta
from icljax.metrics.similarity import sim_aou as sim_aou
from icljax.metrics.steps import kl_divergence as kl_divergence
from icljax.metrics.steps import relative_change as relative_change
