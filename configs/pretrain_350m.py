r"""The paper's 350M set-up, as far as it is stated, on all devices that there are.

    python -m icljax.main --config=configs/pretrain_350m.py --workdir=DIR \
        --config.text.source=text:CORPUS

The corpus and eta are not stated in the paper: give one, and the etas to compare in
`--config.variants`. The tokens of the corpus must fit in the host's memory once, while it is
tokenised.

Stated: width 1024, FFN 4096, 16 heads, 24 layers, length 1024, batches of 512K tokens, Adam
(.9, .98) with eps 1e-6, peak learning rate 3e-4, 20,000 steps of warm-up, polynomial decay over
500,000 steps, clipping at 2.0. GPT-2's architecture, with learned positions, stands in for
fairseq's, with sinusoidal ones (the decoder has them, `config.model.family` does not offer them).
Compiled ahead of time for 16 TPU v5e chips, a step takes
4.3 GB of arguments and 6.4 GB of temporary memory a chip; never run there.
"""

from ml_collections import ConfigDict

from icljax.experiments import pretrain


def get_config() -> ConfigDict:
    config = pretrain.default()
    config.variants = "softmax; momentum ema=0.9"
    config.seeds = (1,)
    config.text.source = "text:corpus"
    config.text.vocab_size = 50_304  # divides by any mesh
    config.model.family = "gpt2"
    config.model.layers = 24
    config.model.width = 1024
    config.model.mlp_width = 4096
    config.model.heads = 16
    config.model.length = 1024
    config.model.remat = True
    config.train.steps = 500_000
    config.train.batch = 64
    config.train.accumulate = 8
    config.train.learning_rate = 3e-4
    config.train.warmup_steps = 20_000
    config.train.checkpoint_every = 1000
    config.eval.tokens = 4_194_304
    config.icl.num_demonstrations = 32
    config.mesh.data = -1
    return config
