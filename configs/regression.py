"""In-context regression: trained attention layers against steps of tuned optimizers.

    python -m icljax.main --config=configs/regression.py --workdir=/tmp/regression

About 320 CPU seconds, compiling included (6.6 minutes on 2 cores that others shared).

Measured (5 seeds, 2,048 tasks; predicting 0: 3.290): constructed weights are their optimizers up to
9.5e-07 in float32; a trained layer of linear attention has 1.0032 [0.9975, 1.0089] of one tuned GD
step's loss. Mean squared error with 1, 2, 3, 4 layers or steps: linear attention 1.679, .725, .528,
.381; softmax 2.418, 1.668, 1.317, 1.085; MoAttn 2.352, 1.678, 1.332, 1.091; tuned GD 1.673, 1.136,
.867, .701; tuned GD++ 1.673, .769, .457, .371. One step an example, trained layer over tuned
optimizer: linear, linear_momentum and retention 1.004, delta and delta_momentum 1.009.
"""

from ml_collections import ConfigDict

from icljax import regression


def get_config() -> ConfigDict:
    return regression.default()
