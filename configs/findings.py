r"""The study of docs/findings.md: SmolLM2-135M on the paper's six tasks, with every control.

    python -m icljax.main --config=configs/findings.py --workdir=DIR

Needs a folder data/ with the six tasks as JSONL files (data/TASK/train.jsonl and validation.jsonl
or test.jsonl); elsewhere: `--config.base.data.source=jsonl:FOLDER/{task}`. All examples are
evaluated, of AG News 1,000; `configs/findings.py:400` evaluates at most 400 of each task. Killed at
any moment, the same command goes on.
"""

from ml_collections import ConfigDict

from icljax import config as config_lib


def get_config(at_most: str = "") -> ConfigDict:
    cap = int(at_most or 0)
    config = config_lib.sweep()
    config.base.data.source = "jsonl:data/{task}"
    config.base.seeds = (1, 2, 3, 4, 5)
    config.base.eval.num_examples = cap
    config.base.controls.names = ("all",)
    config.settings = (
        ("gd", {}),
        (
            "lcgd",
            {
                "finetune.method": "lcgd",
                "finetune.learning_rates": (0.0003, 0.003, 0.03, 0.3),
                "seeds": (1, 2, 3),
                "eval.num_examples": min(cap or 200, 200),
                "controls.names": (),
            },
        ),
    )
    config.overrides = (("agnews_*_gd", {"eval.num_examples": min(cap or 1000, 1000)}),)
    return config
