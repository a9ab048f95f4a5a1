"""The programs that a crossed comparison runs, walked as `preflight.calls` does a comparison's."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from icljax.comparison.crossed import Change, Plan, Programs, Prompt, array_names
from icljax.comparison.finetune import Learned, kv_params_of
from icljax.comparison.inputs import Inputs
from icljax.comparison.programs import DATA, Subject
from icljax.comparison.work import ROUNDS
from icljax.data.prompts import Queries
from icljax.experiments import crossed
from icljax.models.decoder import DecoderConfig
from icljax.preflight.calls import AnyMesh, Call, Recorder, nowhere, parameters, zeros
from icljax.preflight.costs import Costs, Estimate, device_bytes
from icljax.records import CROSSED_AXES
from icljax.types import Params

ASSUMED = f"Assumed too: a random update has finetuning's size after {ROUNDS} rounds (at most 8)."


def crossed_calls(
    config: ConfigDict, decoder: DecoderConfig, inputs: Inputs, mesh: AnyMesh, memory: int
) -> list[Call]:
    """Every program of a crossed comparison; as `calls.compare_calls`."""
    shapes = parameters(decoder, mesh)
    costs = Costs(decoder, shapes, mesh, config.finetune.method, config.finetune.remat)
    recorder = Recorder(costs, memory)
    shown = crossed.all_demonstrations(inputs, crossed.make_plan(config))
    others = {name: recorder.programs(name) for name in config.study.methods}
    study = crossed.Study(config, inputs, make_programs(recorder), others, *nowhere(recorder))
    study.measure(lambda: Subject(recorder.programs(), recorder.like(shapes), shown))
    return list(recorder.calls.values())


def make_programs(recorder: Recorder) -> Programs:
    """Programs that are listed; to the host they give zeros of one layer, but steps of a size."""
    costs = recorder.costs
    # Finetuning's step, then the random one's in each round.
    steps = itertools.cycle([1.0, *[2.0] * (ROUNDS - 1), 1.0])

    def change(queries: Queries, compared: int) -> Change:
        """Of zero-shot, a prompt or an update."""
        c, slots, length = costs.decoder, queries.example.size, queries.tokens.shape[1]
        shapes = ((slots, queries.target.shape[2]), (slots, c.num_layers, c.width))
        logprob, output = (recorder.hold(shape, float, DATA) for shape in shapes)
        shape, where = (slots, c.num_layers, c.num_heads, length), P("data", None, "model")
        scores = recorder.hold(shape, float, where)
        tokens = recorder.hold((slots, c.num_layers, compared), float, DATA)
        return Change(logprob, output, scores, tokens)

    def read_prompt(params: Params, prompt: Prompt, zsl: Change, queries: Queries) -> Any:
        return change(queries, *prompt.columns.shape), costs.read_prompt(prompt, queries)

    def read_update(params: Params, learned: Learned, zsl: Change, queries: Queries) -> Any:
        return change(queries, learned.queries.shape[1]), costs.read_update(learned, queries)

    programs: dict[str, Callable[..., tuple[Any, Estimate]]] = {
        "encode_prompt": recorder.encode,
        "zero_shot": lambda params, queries: (change(queries, 0), costs.zero_shot(queries)),
        "read_prompt": read_prompt,
        "read_update": read_update,
        "pairs": lambda plan, zsl, prompts, updates, queries: (
            _arrays(plan, queries),
            costs.pairs(plan, prompts, updates),
        ),
        "mean_step": lambda zsl, update, queries: (np.asarray(next(steps)), Estimate(passes=1)),
        "random_step": lambda params, train, length, number: (
            recorder.like(kv_params_of(params)),
            costs.random_step(*train.shape),
        ),
        "noise": lambda base, number: (
            recorder.like(base),
            Estimate(temporaries=2 * device_bytes(base)),
        ),
        "sized": lambda base, finetuned, direction, scale: (
            recorder.like(finetuned),
            Estimate(passes=1),
        ),
    }
    return Programs(**{name: recorder.listed(name, made) for name, made in programs.items()})


def _arrays(plan: Plan, queries: Queries) -> dict[str, np.ndarray]:
    """As `comparison.crossed.pairs` gives them, of one layer."""
    named = 2 if plan.contrasts else 1
    sizes = {
        "prompt": len(plan.prompts) * plan.seeds,
        "update": len(plan.updates) * plan.seeds,
        **dict.fromkeys(("seed", "ft_seed"), plan.seeds),
        **dict.fromkeys(("icl_labels", "ft_labels"), named),
        "example": queries.example.size,
        "answer": queries.target.shape[2],
        **dict.fromkeys(("layer", "head"), 1),
    }
    return {
        name: zeros(*(sizes[axis] for axis in CROSSED_AXES[name])) for name in array_names(plan)
    }
