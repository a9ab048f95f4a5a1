"""Every field of the comparison, with its default. Files in configs/ change only what they must."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from ml_collections import ConfigDict, config_dict

from icljax import forms
from icljax.catalog import LINKS, METHODS, OF_LABELS, VARIANTS, WEIGHTS
from icljax.data import tasks
from icljax.errors import UserError

# What a config runs: modules of this room with run, show and validate.
EXPERIMENTS = ("compare", "dual", "regression", "pretrain", "sweep")
WRONG = "flipped_labels"  # the variant of the demonstrations that label links and contrasts need


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

    # "crossed": prompts x updates, every claim against the links that could explain it
    # (docs/crossed.md). "paper": the paper's protocol, each seed's ICL beside its own FT alone.
    config.mode = "crossed"

    # What is studied. `template` and `answers` come from the table of tasks (data/task_table.py)
    # when empty; a task of your own names itself freely and fills both in. ("symbols",): words
    # without meaning in the place of the table's answers.
    config.task = "mr"
    config.template = ""
    config.answers = ()

    # A name that python -m icljax.models lists, a Hugging Face folder or hub name (ORG/NAME), a
    # .gguf file, a fairseq model.pt (docs/models.md).
    config.model = "smollm2-135m"

    # How its layers mix tokens: kinds of icljax/attention/recurrence.py, repeated over the layers,
    # e.g. "momentum,softmax"; empty: the model's own (docs/attention.md).
    config.attention = attention()

    # "auto": float32, whose products are exact on accelerators too; "bfloat16": faster there, but a
    # seed's similarity moves by more than the margin (docs/crossed.md).
    config.dtype = "auto"
    # "trained"; "untrained": random; "untrained_keep_embeddings": random but embeddings and norms.
    config.weights = "trained"

    # Where the query's attention is recorded: at the token that predicts the "answer" or, as in the
    # reference code, one step later, at the "first_label" itself; "auto": that in paper mode.
    config.record_position = "auto"

    config.num_demonstrations = 16
    config.seeds = (1, 2, 3, 4, 5, 6, 7, 8)  # one draw of demonstrations each
    # Paper mode: True: report the best seed only, as the paper does; empty: that.
    config.select_seed = config_dict.placeholder(bool)

    config.data = _data()
    config.prompt = _prompt()
    config.finetune = _finetune()
    config.study = _study()

    # Devices over which queries and finetuning runs are split (data), and heads, MLP and vocabulary
    # (model); -1: all that are left.
    config.mesh = ConfigDict({"data": -1, "model": 1})
    # Learning rates are selected on this split: "train": held out of it; "validation": as in the
    # paper, on what is then reported; "auto": that in paper mode.
    config.selection = ConfigDict({"split": "auto", "num_examples": 128, "seed": 0})
    # Of the validation split so many examples (0: all), shuffled with this seed; tokens_per_batch
    # 0: 512 on CPU, 4,096 on an accelerator (each).
    config.eval = ConfigDict({"num_examples": 128, "seed": 1, "tokens_per_batch": 0})
    # random_update: the random baseline of paper mode, "gaussian" or "uniform" (U[0, 1), as in the
    # reference code); "auto": that. bootstrap_samples: of its intervals.
    config.metrics = ConfigDict({"random_update": "auto", "bootstrap_samples": 2000, "seed": 0})
    return config


def reading() -> ConfigDict:
    """A job of which another experiment takes the prompts alone, without variants of them."""
    config = default()
    config.mode, config.record_position, config.selection.split = "paper", "answer", "train"
    fill_in(config)
    return config


def of_task(task: str) -> ConfigDict:
    """A job on a task of data/task_table.py, from the source that is named there."""
    config = default()
    config.task = task
    known = tasks.TASKS.get(task)  # an unknown one is the job's to refuse, in one line
    config.data.source = known.source if known else ""
    if known and not known.answers:  # multiple choice, which has no wrong labels to teach
        config.mode = "paper"
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
    finetune.learning_rates = (0.0001, 0.0003, 0.001, 0.003, 0.01)  # all are tried and reported
    finetune.runs_at_once = 0  # rates x seeds trained together; 0: what fits in memory
    finetune.remat = False  # recompute layers in the backward pass: less memory, slower
    return finetune


def _study() -> ConfigDict:
    """Crossed mode: what is read and compared beside each seed's own pair."""
    study = ConfigDict()
    # Demonstrations as catalog.VARIANTS says, for prompts and updates both.
    study.variants = (WRONG,)
    study.answers_of = ""  # the task whose answers "other_answers" puts in; empty: chosen
    # What the own pair is held against: some of catalog.LINKS.
    study.links = tuple(name for name in LINKS if name not in ("weight_noise", "nothing"))
    # Other methods of `finetune.method`, at its step: what else ICL may be like (described, not
    # judged).
    study.methods = ()
    study.kendall = True  # rankings of the demonstrations' tokens too: more memory and disk
    study.margin = 0.03  # differences of a similarity within it count as none
    # One rate serves all seeds: the one with the lowest calibrated loss on so many of them.
    study.selection_seeds = 3
    study.untrained_examples = 50  # of those that are evaluated (and selected on), at least
    return study


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
    """Checks what flags cannot: ranges, choices and the types inside tuples.

    Tidies `answers`, and puts what the mode says where a field is "auto".

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
    fill_in(config)
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
    if config.mode == "crossed":
        _validate_study(config)


# What "auto" stands for: (in crossed mode, in paper mode).
_AUTO = {
    "record_position": ("answer", "first_label"),
    "selection.split": ("train", "validation"),
    "metrics.random_update": ("gaussian", "uniform"),
}


def fill_in(config: ConfigDict) -> None:
    """Puts what the mode says where a field is "auto"."""
    paper = config.mode == "paper"
    given = {key: values[paper] for key, values in _AUTO.items() if _get(config, key) == "auto"}
    if config.select_seed is None:
        given["select_seed"] = paper
    config.update_from_flattened_dict(given)


def _get(config: ConfigDict, key: str) -> Any:
    """Field `key` ("a.b")."""
    return functools.reduce(lambda found, part: found[part], key.split("."), config)


def _validate_study(config: ConfigDict) -> None:
    """Checks crossed mode's fields."""
    require(config, "study.margin", lambda v: 0 < v < 1, "a number above 0 and below 1")
    enough = "three different whole numbers or more, e.g. 1,2,3: a pair is held against others"
    require(config, "seeds", lambda v: len(v) > 2, enough)
    require(config, "weights", lambda v: v == "trained", "trained, or --config.mode=paper")
    _require_some(config, "study.variants", list(VARIANTS))
    _require_some(config, "study.links", [name for name in LINKS if name != "nothing"])
    _require_some(
        config, "study.methods", [name for name in METHODS if name != config.finetune.method]
    )
    if set(config.study.links) & set(OF_LABELS):
        needed = f"a list with {WRONG}, which config.study.links needs"
        require(config, "study.variants", lambda v: WRONG in v, needed)
    task = tasks.get_task(config.task, config.template, config.answers, config.data.choices)
    if not task.answers:
        raise UserError(
            f"task {config.task!r} is multiple choice, which has no wrong labels to teach; give a "
            "classification task, or --config.mode=paper"
        )


def _require_some(config: ConfigDict, field: str, known: Sequence[str]) -> None:
    some = f"some of {', '.join(known)}, each once"
    require(config, field, lambda v: set(v) <= set(known) and len(set(v)) == len(v), some)


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
    "mode": ("crossed", "paper"),
    "weights": tuple(WEIGHTS),
    "data.label_is": ("auto", "index", "text", "letter"),
    "data.duplicates": ("drop", "keep"),
    "prompt.score": ("mean", "sum"),
    "finetune.method": tuple(METHODS),
    **{key: ("auto", *values) for key, values in _AUTO.items()},
}
_POSITIVE = (
    "num_demonstrations",
    "selection.num_examples",
    "study.selection_seeds",
    "study.untrained_examples",
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
        value = _get(config, key)
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
