"""The comparison metrics: pure functions on arrays, nothing else.

Every function takes NumPy or JAX arrays, works under `jax.jit` and `jax.vmap`, and computes in
float32, or in float64 where an input is float64 and x64 is on; but those of `seeds.py` (estimates,
tests and verdicts) are NumPy. `...` stands for any leading axes;
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
from icljax.metrics.behavior import error_consistency as error_consistency
from icljax.metrics.behavior import js_divergence as js_divergence
from icljax.metrics.behavior import movement_correlation as movement_correlation
from icljax.metrics.contrasts import demonstration_specific as demonstration_specific
from icljax.metrics.contrasts import pairwise_cosine as pairwise_cosine
from icljax.metrics.contrasts import pairwise_map_cosine as pairwise_map_cosine
from icljax.metrics.intervals import bootstrap_interval as bootstrap_interval
from icljax.metrics.intervals import bootstrap_ratio_interval as bootstrap_ratio_interval
from icljax.metrics.intervals import bootstrap_weights as bootstrap_weights
from icljax.metrics.ranking import kendall_tau as kendall_tau
from icljax.metrics.ranking import topk_recall as topk_recall
from icljax.metrics.seeds import FEWEST_SEEDS as FEWEST_SEEDS
from icljax.metrics.seeds import SeedEstimate as SeedEstimate
from icljax.metrics.seeds import holm as holm
from icljax.metrics.seeds import own_estimate as own_estimate
from icljax.metrics.seeds import own_minus_other as own_minus_other
from icljax.metrics.seeds import permutation_p as permutation_p
from icljax.metrics.seeds import ratio_estimate as ratio_estimate
from icljax.metrics.seeds import seed_estimate as seed_estimate
from icljax.metrics.seeds import seeds_needed as seeds_needed
from icljax.metrics.seeds import verdict as verdict
from icljax.metrics.similarity import example_attention as example_attention
from icljax.metrics.similarity import finetuning_attention as finetuning_attention
from icljax.metrics.similarity import map_change as map_change
from icljax.metrics.similarity import random_update as random_update
from icljax.metrics.similarity import sim_am as sim_am
from icljax.metrics.similarity import sim_am_delta as sim_am_delta
from icljax.metrics.similarity import sim_aou as sim_aou
from icljax.metrics.steps import kl_divergence as kl_divergence
from icljax.metrics.steps import relative_change as relative_change
