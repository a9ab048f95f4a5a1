"""Every field of the comparison, with its default. Files in configs/ change only what they must."""

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict, config_dict

from icljax import forms
from icljax.catalog import CONTROLS, METHODS
from icljax.data import tasks
from icljax.errors import UserError

# What a config runs: modules of this room with run, show and validate.
EXPERIMENTS = ("compare", "crossed", "dual", "regression", "pretrain", "sweep")


def experiment_module(config: ConfigDict) -> str:
    """The module that runs the config's experiment.

    Raises:
        UserError: for an unknown experiment.
    """
    require(config, "experiment", EXPERIMENTS.__contains__, f"one of {', '.join(EXPERIMENTS)}")
    return f"icljax.experiments.{config.experiment}"


def default() -> ConfigDict:
    """A job with every field at its default."""
    config = ConfigDict()
    config.experiment = "compare"  # which of EXPERIMENTS

    # What is studied. `template` and `answers` come from the table of tasks (data/task_table.py)
    # when empty; a task of your own names itself freely and fills both in.
    config.task = "mr"
    config.template = ""
    config.answers = ()

    # A name that python -m icljax.models lists, a Hugging Face folder or hub name (ORG/NAME), a
    # .gguf file, a fairseq model.pt (docs/models.md).
    config.model = "smollm2-135m"

    # How its layers mix tokens: kinds of icljax/attention/recurrence.py, repeated over the layers,
    # e.g. "momentum,softmax"; empty: the model's own (docs/attention.md).
    config.attention = attention()

    # "auto": float32 on CPU, bfloat16 on an accelerator (softmax, norms, metrics: float32 always).
    config.dtype = "auto"
    # "trained"; "untrained": random; "untrained_keep_embeddings": random but embeddings and norms.
    config.weights = "trained"

    # Where the query's attention is recorded: at the token that predicts the "answer" or, as in the
    # reference code, one step later, at the "first_label" itself.
    config.record_position = "answer"

    config.num_demonstrations = 16
    config.seeds = (1, 2, 3)  # one draw of demonstrations each
    config.select_seed = False  # True: report the best seed only, as the paper does

    config.data = _data()
    config.prompt = _prompt()
    config.finetune = _finetune()

    # Devices over which queries and finetuning runs are split (data), and heads, MLP and vocabulary
    # (model); -1: all that are left.
    config.mesh = ConfigDict({"data": -1, "model": 1})
    # Each seed's learning rate is the best one on this split: "train": held out of it;
    # "validation": as in the paper.
    config.selection = ConfigDict({"split": "train", "num_examples": 64, "seed": 0})
    # Of the validation split so many examples (0: all), shuffled with this seed; tokens_per_batch
    # 0: 512 on CPU, 4,096 on an accelerator (each).
    config.eval = ConfigDict({"num_examples": 200, "seed": 1, "tokens_per_batch": 0})
    config.controls = _controls()
    # random_update: the random baseline; "uniform": U[0, 1).
    config.metrics = ConfigDict({"random_update": "gaussian", "bootstrap_samples": 2000, "seed": 0})
    return config


def of_task(task: str) -> ConfigDict:
    """A job on a task of data/task_table.py, from the source that is named there."""
    config = default()
    config.task = task
    known = tasks.TASKS.get(task)  # an unknown one is the job's to refuse, in one line
    config.data.source = known.source if known else ""
    return config


def _data() -> ConfigDict:
    """Where examples come from."""
    data = ConfigDict()
    # package:WHEEL/PART, tfds:NAME, hf:ORG/NAME[/CONFIG][@REVISION], or a folder or file of one
    # kind: jsonl:PATH, csv:PATH, parquet:PATH (docs/data.md).
    data.source = ""
    data.fallback = ""  # used, with a loud warning, where source cannot be had
    data.fields = ""  # "text={title} {description}": template field = source fields
    # Multiple choice: the source's field that holds an example's choices, or one field for each,
    # "sol1, sol2"; empty: as known for the source, or "choices" in a task without answers.
    data.choices = ""
    data.label = ""  # the source's label field; empty: as known for the source, or "label"
    data.label_order = ()  # source label -> position in answers; empty: the same
    # "index" (a number from 0), "text" (an answer or its name) or "letter" (A or 1 is the first);
    # "auto": whichever can read all labels, where they agree.
    data.label_is = "auto"
    data.train_split = ""  # empty: as known for the source, or "train"
    data.validation_split = ""  # empty: as known, or "validation", or "test"
    data.balanced = False  # draw equally many examples of each class
    # Demonstrations with the normalised text of another demonstration, or of a selection or
    # evaluation example: "drop" or "keep".
    data.duplicates = "drop"
    return data


def _prompt() -> ConfigDict:
    """How a prompt is written and scored."""
    prompt = ConfigDict()
    prompt.bos = "<bos>"  # text, or <bos>, <eos>: the tokenizer's own
    prompt.separator = "\n"  # after each demonstration; the paper's models: "<eos>"
    prompt.max_length = 0  # tokens; 0: the model's context length
    prompt.beyond_context = False  # True: max_length may be more than that
    prompt.score = "mean"  # of a candidate's tokens' log-probabilities, or their "sum"
    return prompt


def _finetune() -> ConfigDict:
    """How the demonstrations are trained on."""
    finetune = ConfigDict()
    # "gd"; layer-causal gradient descent (Deutch et al. 2024), read out after each layer's block
    # ("lcgd") or after its attention ("lcgd_attention").
    finetune.method = "gd"
    # All are tried and reported; far too large ones belong to the picture.
    finetune.learning_rates = (0.0001, 0.0003, 0.001, 0.003, 0.03, 0.3)
    finetune.runs_at_once = 0  # rates x seeds trained together; 0: what fits in memory
    finetune.remat = False  # recompute layers in the backward pass: less memory, slower
    return finetune


def _controls() -> ConfigDict:
    """The same comparison under control conditions."""
    controls = ConfigDict()
    controls.names = (  # some of CONTROLS, or "all"
        "untrained",
        "untrained_keep_embeddings",
        "permuted_labels",
        "perturbation",
    )
    controls.num_examples = 50  # of those that are evaluated
    controls.answers_of = ""  # the task whose answers "other_answers" puts in; empty: chosen
    return controls


def sweep() -> ConfigDict:
    """Many comparisons: every task with every model in every setting."""
    config = ConfigDict()
    config.experiment = "sweep"
    config.tasks = ("sst2", "sst5", "mr", "subj", "agnews", "cb")
    config.models = ("smollm2-135m",)
    # What every job has; a {task} in its data.source becomes the task's name.
    config.base = default()
    # (name, {field of base: value}) each; a name that changes nothing leaves no mark in a folder.
    config.settings = (("gd", {}),)
    # (pattern, {field of base: value}) each, for the jobs whose "task_model_setting" fits, as file
    # names fit "cb_*"; a later one wins, and over settings too.
    config.overrides = ()
    config.skip = ()  # such patterns of jobs to leave out
    return config


def attention(kind: str = "") -> ConfigDict:
    """Which kinds of attention, and the numbers that are not as in `attention.KINDS`."""
    config = ConfigDict()
    config.kind = kind
    for name in ("eta", "alpha", "beta", "ema"):
        config[name] = config_dict.placeholder(float)
    config.feature_map = ""  # "identity" or "elu+1"
    for name in ("normalize", "unit_keys", "ema_normalized"):
        config[name] = config_dict.placeholder(bool)
    config.implementation = "auto"  # one of IMPLEMENTATIONS in icljax/attention/mixing.py
    return config


def validate(config: ConfigDict) -> None:
    """Checks what flags cannot: ranges, choices and the types inside tuples; tidies `answers`.

    Raises:
        UserError: naming the field, what it is and what it may be.
    """
    check_types(config, default())
    if len(config.answers) == 1:
        config.answers = tuple(a.strip() for a in str(config.answers[0]).split(","))
    tasks.get_task(config.task, config.template, config.answers, config.data.choices)
    from icljax.attention import mixing  # with JAX, which a mistake in the flags should not cost

    mixing.parse_kinds(config.attention)
    known = mixing.IMPLEMENTATIONS
    require(config, "attention.implementation", known.__contains__, f"one of {', '.join(known)}")
    for key, choices in _CHOICES.items():
        require(config, key, choices.__contains__, f"one of {', '.join(choices)}")
    for key in _POSITIVE:
        require(config, key, is_count, "a whole number above 0")
    for key in _NOT_NEGATIVE:
        require(config, key, lambda v: v == 0 or is_count(v), "0 or more")
    for key in _SEEDS:
        require(config, key, is_seed, "a whole number, 0 or more, below 2^32")
    most = 100_000  # the resamples of 1,000 examples take 400 MB
    require(config, "metrics.bootstrap_samples", lambda v: v <= most, f"at most {most:,}")
    require(config, "seeds", distinct_integers, "different whole numbers, e.g. 1,2,3")
    require(config, "finetune.learning_rates", _different_rates, "different numbers above 0")
    require(config, "data.label_order", lambda v: all(type(x) is int for x in v), "whole numbers")
    allowed = (*CONTROLS, "all")
    require(
        config, "controls.names", lambda v: set(v) <= set(allowed), f"some of {', '.join(allowed)}"
    )
    if "other_seed" in config.controls.names:
        require(config, "seeds", lambda v: len(v) > 1, "at least two for the control other_seed")


_TYPES = {str: "a text", bool: "True or False", int: "a whole number", float: "a number"}


def check_types(config: ConfigDict, like: ConfigDict, prefix: str = "") -> None:
    """Raises a UserError for a field that is missing or of another type than in `like`.

    A config's file may hold anything; flags are of the right types already.
    """
    for key in like:
        name, default, value = prefix + key, like[key], config.get(key)
        if isinstance(default, ConfigDict):
            if not isinstance(value, ConfigDict):
                raise UserError(
                    f"config.{name} is {value!r}; expected a ConfigDict with its fields"
                )
            check_types(value, default, f"{name}.")
        elif default is not None:  # a placeholder may stay empty
            kind = type(default)
            fine = type(value) is kind or (kind is float and type(value) is int)
            expected = _TYPES.get(kind, f"a {kind.__name__}")
            if not fine:
                raise UserError(f"config.{name} is {value!r}; expected {expected}")
            for text in (v for v in (value if kind is tuple else [value]) if isinstance(v, str)):
                if not forms.encodable(text):  # bytes of another encoding, in a flag
                    raise UserError(
                        f"config.{name} is {text!a}, which is not UTF-8; expected a text in "
                        "the encoding of your locale: give it as UTF-8"
                    )


_CHOICES = {
    "dtype": ("auto", "float32", "bfloat16"),
    "weights": ("trained", *(name for name, kind in CONTROLS.items() if kind == "model")),
    "record_position": ("answer", "first_label"),
    "data.label_is": ("auto", "index", "text", "letter"),
    "data.duplicates": ("drop", "keep"),
    "prompt.score": ("mean", "sum"),
    "finetune.method": tuple(METHODS),
    "selection.split": ("train", "validation"),
    "metrics.random_update": ("gaussian", "uniform"),
}
_POSITIVE = (
    "num_demonstrations",
    "selection.num_examples",
    "controls.num_examples",
    "metrics.bootstrap_samples",
)
_SEEDS = ("eval.seed", "selection.seed", "metrics.seed")
_NOT_NEGATIVE = (
    "eval.num_examples",
    "eval.tokens_per_batch",
    "prompt.max_length",
    "finetune.runs_at_once",
)


def require(config: ConfigDict, key: str, holds: Callable[[Any], bool], expected: str) -> None:
    """Raises a UserError that names field `key` ("a.b") unless its value `holds`."""
    value: Any = config
    try:
        for part in key.split("."):
            value = value[part]
        fine = holds(value)
    except (KeyError, TypeError):  # not there, or a list where a text or number belongs
        fine = False
    if not fine:
        raise UserError(f"config.{key} is {value!r}; expected {expected}: --config.{key}=...")


def is_count(value: Any) -> bool:
    """Whether it is a whole number above 0 that an int32 holds."""
    return type(value) is int and 0 < value < 2**31


def is_seed(value: Any) -> bool:
    """Whether NumPy's and JAX's generators take it: a whole number from 0 to 2^32 - 1."""
    return type(value) is int and 0 <= value < 2**32


def is_rate(value: Any) -> bool:
    """Whether it is a number above 0 that a float32 holds."""
    return type(value) in (int, float) and 1e-38 < value < 1e38


def distinct_integers(values: tuple[Any, ...]) -> bool:
    """Whether all are whole numbers from 0 to 2^32 - 1, and no two the same; at least one."""
    return bool(values) and all(map(is_seed, values)) and len(set(values)) == len(values)


def _different_rates(values: tuple[Any, ...]) -> bool:
    return bool(values) and all(map(is_rate, values)) and len(set(values)) == len(values)
