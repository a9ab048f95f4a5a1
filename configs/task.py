"""Any task of the table in icljax/data/tasks.py, from the source that is named there.

    python -m icljax.main --config=configs/task.py:piqa --workdir=/tmp/piqa

Most sources are TFDS, those of sst5 and subj the Hugging Face hub (`pip install 'icljax[hub]'`);
without a network give a folder of files: `--config.data.source=jsonl:DIR` (or csv:DIR,
parquet:DIR). dbpedia, storycloze and race are not in TFDS or cannot be downloaded by it: the folder
is data/TASK, unless another source is given. Of a folder without train.jsonl
a part can be held out: `--config.data.train_split='validation[:20%]'` with
`--config.data.validation_split='validation[20%:]'`.
"""

from ml_collections import ConfigDict

from icljax.experiments import config as config_lib


def get_config(task: str = "mr") -> ConfigDict:
    return config_lib.of_task(task)
