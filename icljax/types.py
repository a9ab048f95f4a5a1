"""Names of the array types that rooms share."""

from typing import Any

import jax
import numpy as np

Array = np.ndarray | jax.Array
Params = dict[str, Any]  # a tree of arrays, as Flax has it
