r"""The paper's tables: its six tasks with fairseq 1.3B and 2.7B, beside its own numbers.

    python -m icljax.main --config=configs/paper.py --workdir=DIR

Demonstrations, seeds and learning rates are the paper's, as they were selected there;
`configs/paper.py:search` repeats its search instead (seeds 1 to 7, 36 learning rates, chosen on the
validation accuracy that is then reported). Whole validation sets.

The models are copies on the Hugging Face hub; local ones: `--config.models=DIR/fairseq-1.3b`.
SST-5 and Subj come from there too (`pip install 'icljax[hub]'`). As in the released
code, attention is recorded one step after the answer; at it:
`--config.base.record_position=answer`.
Never run at these sizes here; `python -m icljax.preflight` says what a single job needs.
"""

from ml_collections import ConfigDict

from icljax.data import tasks
from icljax.errors import UserError
from icljax.experiments import config as config_lib
from icljax.reports import paper

# What a model's name says of its size, as a pattern.
_SIZES = {"1.3b": "*1.3[bB]*", "2.7b": "*2.7[bB]*"}


def get_config(how: str = "published") -> ConfigDict:
    if how not in ("published", "search"):
        raise UserError(f"configs/paper.py:{how}: expected published or search after the colon")
    config = config_lib.sweep()
    config.tasks = tuple(paper.TASKS)
    config.models = ("KoboldAI/fairseq-dense-1.3B", "KoboldAI/fairseq-dense-2.7B")
    config.base.prompt.separator = "<eos>"
    config.base.eval.num_examples = 0
    config.base.mode = "paper"
    config.overrides = tuple(
        (
            f"{name}_*",
            {
                "num_demonstrations": task.demonstrations,
                "data.source": tasks.TASKS[name].source,
            },
        )
        for name, task in paper.TASKS.items()
    )
    if how == "search":
        config.base.seeds = paper.SEARCHED_SEEDS
        config.base.finetune.learning_rates = paper.SEARCHED_RATES
        return config
    config.base.select_seed = False
    config.overrides += tuple(
        (
            f"{name}_{_SIZES[size]}",
            {"seeds": (cell.seed,), "finetune.learning_rates": (cell.learning_rate,)},
        )
        for (name, size), cell in paper.CELLS.items()
    )
    return config
