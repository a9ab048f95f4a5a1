"""The dual form, exact: attention of the linear family against the optax optimizer that it is.

Dai et al. 2023 (section 3) read attention to demonstrations as a linear layer that gradient
descent trains on them, and call it approximate. For the linear family it is an equality, which
this experiment measures: a layer S, zero at first, is trained by optax on the keys and values of
the demonstrations, one token a step, and read with a query after each step. The result must be
the attention's output, and the last S what the attention leaves behind (dW_ICL).

The second part measures that the forms of attention agree, forward and backward.

Shape glossary: L layers, T tokens of the demonstrations, G key/value heads, K key width, V value
width. For `icljax.attention` layers are rows (its B), each head has one query (its J is 1).
"""

import dataclasses
import functools
from pathlib import Path

import jax
import msgspec
import numpy as np
import optax
from ml_collections import ConfigDict, config_dict
from rich.console import Console

from icljax import attention, checkpoints
from icljax.attention import Kind, mixing
from icljax.comparison import forward
from icljax.comparison.inputs import prepare
from icljax.errors import UserError
from icljax.experiments import config as config_lib
from icljax.experiments.config import check_types, is_count, is_seed, require
from icljax.experiments.dual_measure import (
    BARS,
    FORMS,
    VARIANTS,
    Examples,
    Results,
    measure_dual,
    measure_ema,
    measure_forms,
    summarize_forms,
)
from icljax.models.decoder import Decoder
from icljax.records import Dual
from icljax.reports import dual as dual_report
from icljax.reports import report
from icljax.reports.dual import LITERATURE
from icljax.reports.dual import show as show
from icljax.results import Model
from icljax.runtime import workdir
from icljax.runtime.progress import Stages

_SHARED = ("task", "template", "answers", "model", "num_demonstrations", "data", "prompt")


def default() -> ConfigDict:
    """Every field of the experiment, with its default."""
    config = ConfigDict()
    config.experiment = "dual"
    # "demonstrations": keys and values of the pretrained model's demonstrations; "random".
    config.source = "demonstrations"
    job = config_lib.default()
    for field in _SHARED:
        config[field] = job[field]
    config.seed = 1  # draws the demonstrations, and whatever else is random
    config.random = ConfigDict({"layers": 2, "tokens": 75, "heads": 2, "width": 16})

    # Kinds of the linear family, and numbers that replace those of every kind.
    config.attention = ConfigDict({"kind": ",".join(LITERATURE)})
    for field in ("eta", "alpha", "beta"):
        config.attention[field] = config_dict.placeholder(float)
    config.variants = VARIANTS
    config.chunk = attention.CHUNK
    config.parallel_tokens = 128  # the quadratic form gets the first so many tokens

    # Where the forms are compared with each other: the first tokens and the first layers.
    config.forms = ConfigDict({"tokens": 45, "layers": 4, "chunk": 8})
    # Kinds whose Pallas kernel is emulated too, which takes long to compile.
    config.forms.kernels = ("linear", "delta_momentum")
    return config


def validate(config: ConfigDict) -> None:
    """Checks what flags cannot.

    Raises:
        UserError: naming the field, what it is and what it may be.
    """
    check_types(config, default())
    require(config, "source", ("demonstrations", "random").__contains__, "demonstrations or random")
    require(config, "seed", is_seed, "a whole number, 0 or more, below 2^32")
    for key in ("layers", "tokens", "heads", "width"):
        require(config, f"random.{key}", is_count, "a whole number above 0")
    for key in ("parallel_tokens", "forms.tokens", "forms.layers"):
        require(config, key, is_count, "a whole number above 0")
    for key in ("chunk", "forms.chunk"):
        require(config, key, lambda v: v > 0 and v & (v - 1) == 0, "a power of 2")
    allowed = f"some of {', '.join(VARIANTS)}"
    require(config, "variants", lambda v: v and set(v) <= set(VARIANTS), allowed)
    allowed = f"some of {', '.join(LITERATURE)}"
    require(config, "forms.kernels", lambda v: set(v) <= LITERATURE.keys(), allowed)
    kinds(config)
    config_lib.validate(_job_config(config))


def kinds(config: ConfigDict) -> dict[str, Kind]:
    """The kinds that are asked for, by name.

    Raises:
        UserError: for an unknown one, one outside the linear family, a number out of range.
    """
    names = [name.strip() for name in config.attention.kind.split(",")]
    found = dict(zip(names, mixing.parse_kinds(config.attention) or (), strict=False))
    outside = [n for n, kind in found.items() if kind.base != "linear" or kind.ema]
    if outside or not found:
        raise UserError(
            f"config.attention.kind is {config.attention.kind!r}; the dual form is exact for some "
            f"of {', '.join(LITERATURE)} alone: --config.attention.kind=..."
        )
    return found


def _job_config(config: ConfigDict) -> ConfigDict:
    """The comparison whose demonstrations are used."""
    job = config_lib.reading()
    for field in _SHARED:
        job[field] = config[field]
    job.seeds = (config.seed,)
    return job


# ---------------------------------------------------------------------------------------- examples


def random_examples(config: ConfigDict) -> Examples:
    """Independent normal vectors in the shapes of `config.random`."""
    rng = np.random.default_rng(config.seed)
    r = config.random
    q, k, v = rng.standard_normal((3, r.layers, r.tokens, r.heads, r.width))
    return Examples(q, k, v, rng.uniform(0.5, 1, k.shape[:3]))


def demonstration_examples(config: ConfigDict, stages: Stages) -> tuple[Examples, Model]:
    """Keys and values of the demonstrations' tokens (no BOS, no separators) in every layer.

    A token's query is the next token's key, a real vector whose answer no step has just set.
    """
    with stages.stage("model", "model (fetched and converted once)", 1) as bar:
        checkpoint = checkpoints.open_checkpoint(config.model, bar.at, stages.note)
    with stages.stage("prompts", "demonstrations", 1):
        demonstrations = prepare(_job_config(config), checkpoint, stages.note).demonstrations
    with stages.stage("encode", "weights, keys and values", 1):
        decoder = dataclasses.replace(checkpoint.config, dtype="float32")
        params = checkpoints.load_params(checkpoint.folder, decoder)
        encode = jax.jit(functools.partial(forward.encode, Decoder(decoder)))
        state = encode(params, demonstrations.context[0], demonstrations.context_valid[0])
        columns = demonstrations.columns[0][np.asarray(demonstrations.example[0]) >= 0]
        k, v = (np.asarray(x, np.float64)[:, columns] for x in (state.keys, state.values))
    vary = np.random.default_rng(config.seed).uniform(0.5, 1, k.shape[:3])
    model = Model(name=config.model, dtype=decoder.dtype, **vars(checkpoint.origin))
    return Examples(np.roll(k, -1, 1), k, v, vary), model


# --------------------------------------------------------------------------------------- experiment


@workdir.one_job
def run(config: ConfigDict, path: Path, console: Console) -> Results:
    """Measures every equality, or returns what the folder already holds.

    Raises:
        UserError: for whatever is wrong with what the user gave.
    """
    found = kinds(config)
    rows = [(name, variant) for name in found for variant in config.variants]
    # Elsewhere than on a CPU, float32 products are rounded to less unless it is asked for.
    with Stages(console) as stages, jax.default_matmul_precision("highest"):
        model = None
        if config.source == "random":
            examples = random_examples(config)
        else:
            examples, model = demonstration_examples(config, stages)
        dual = []
        with stages.stage("dual", "attention against optax", len(rows)) as advance:
            for name, variant in rows:
                measured = measure_dual(found[name], variant, examples, config)
                dual.append({"kind": name, "variant": variant, **measured})
                advance(1)
        forms = []
        with stages.stage("forms", "forms of attention", len(found) + 1) as advance:
            for name in found:
                compared = FORMS[1:] if name in config.forms.kernels else FORMS[1:-1]
                measured = measure_forms(found[name], compared, examples, config)
                forms += summarize_forms(name, measured)
                advance(1)
            forms += summarize_forms("EMA(V)", measure_ema(examples, config))
    results = {
        "experiment": "dual",
        "config": workdir.as_plain(config),
        "versions": {"jax": jax.__version__, "optax": optax.__version__},
        "examples": dict(zip("LTGK", np.shape(examples.k), strict=True)),
        "model": dataclasses.asdict(model) if model else None,
        "bars": BARS,
        "kinds": {name: describe(kind) for name, kind in found.items()},
        "dual": dual,
        "forms": forms,
        "holds": all(r[d]["holds"] for r in dual for d in BARS) and all(r["holds"] for r in forms),
        "seconds": stages.seconds,
    }
    report.write(path, dual_report.report(msgspec.convert(results, Dual)))
    workdir.save_results(path, results)
    return results


# -------------------------------------------------------------------------------------------- words


def describe(kind: Kind) -> dict[str, str]:
    """The optimizer that a kind is: loss, update, optax code, and in words."""
    written = "v k'" if kind.loss == "dot" else "(v - S k) k'"
    m = f"{kind.eta:g} M + " if kind.eta else ""
    beta = "" if kind.beta == 1 else f"{kind.beta:g} "
    s = "S" if kind.alpha == 1 else f"{kind.alpha:g} S"
    update = f"M = {m}{beta}{written}, S = {s} + M" if kind.eta else f"S = {s} + {beta}{written}"
    words = "gradient descent" if kind.loss == "dot" else "online least squares"
    extra = [f"momentum {kind.eta:g}"] * bool(kind.eta)
    extra += [f"weight decay {1 - kind.alpha:.3g}"] * (kind.alpha < 1)
    return {
        "loss": "-<S k, v>" if kind.loss == "dot" else "|S k - v|^2 / 2",
        "update": update,
        "optax": _optax_code(kind),
        "words": words + (f", {' and '.join(extra)}" if extra else ""),
    }


def _optax_code(kind: Kind) -> str:
    """What a user would write for a constant beta."""
    momentum = f", momentum={kind.eta:g}" if kind.eta else ""
    if kind.alpha == 1:
        return f"sgd({kind.beta:g}{momentum})"
    trace = f", trace({kind.eta:g})" if kind.eta else ""
    return f"chain(scale(-{kind.beta:g}){trace}, add_decayed_weights(-{1 - kind.alpha:.3g}))"
