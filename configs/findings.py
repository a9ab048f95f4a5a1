r"""The study of docs/findings.md: SmolLM2-135M on the paper's six tasks, with every control.

    python -m icljax.main --config=configs/findings.py --workdir=DIR

Needs a folder data/ with the six tasks as JSONL files (data/TASK/train.jsonl and validation.jsonl
or test.jsonl); elsewhere: `--config.base.data.source=jsonl:FOLDER/{task}`. Sized for 2 cores and
under 3 hours: SST-2, MR and CB whole, 400 examples of SST-5 and Subj, 200 of AG News (its whole
7,600 would take as long as all the rest), controls on fewer, the layer-causal form on the three
sentiment tasks: 50 examples, 3 of the 5 seeds, 4 of the 6 learning rates.
`--config.overrides='()' --config.skip='()'`: whole sets, every job.
Killed at any moment, the same command goes on.
"""

from ml_collections import ConfigDict

from icljax.experiments import config as config_lib


def get_config() -> ConfigDict:
    config = config_lib.sweep()
    config.base.data.source = "jsonl:data/{task}"
    config.base.seeds = (1, 2, 3, 4, 5)
    config.base.eval.num_examples = 0
    config.base.controls.names = ("all",)
    by_layer = {
        "finetune.method": "lcgd",
        "finetune.learning_rates": (0.0001, 0.001, 0.003, 0.03),
        "seeds": (1, 2, 3),
        "eval.num_examples": 50,
        "controls.names": (),
    }
    config.settings = (("gd", {}), ("lcgd", by_layer))
    config.skip = ("subj_*_lcgd", "agnews_*_lcgd", "cb_*_lcgd")
    config.overrides = (
        ("mr_*_gd", {"controls.num_examples": 30}),
        ("sst5_*_gd", {"eval.num_examples": 400, "controls.num_examples": 30}),
        ("subj_*_gd", {"eval.num_examples": 400, "controls.num_examples": 20}),
        ("cb_*_gd", {"controls.num_examples": 12}),
        ("agnews_*_gd", {"eval.num_examples": 200, "controls.num_examples": 12}),
    )
    return config
