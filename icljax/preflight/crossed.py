"""The programs that a crossed comparison runs, walked as `preflight.calls` does a comparison's."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from icljax.comparison.crossed import Change, Plan, Programs, Prompts, array_names
from icljax.comparison.finetune import Learned, kv_params_of
from icljax.comparison.inputs import Inputs
from icljax.comparison.programs import Subject
from icljax.data.prompts import Demonstrations, Queries
from icljax.experiments import crossed
from icljax.models.decoder import DecoderConfig
from icljax.preflight.calls import AnyMesh, Call, Recorder, nowhere, parameters, zeros
from icljax.preflight.costs import Costs, Estimate, device_bytes
from icljax.records import CROSSED_AXES
from icljax.types import Array, Params

ROUNDS = 3  # SmolLM2-135M on MR took 2 to 4, both kinds, at learning rates of .0001 and .001
ASSUMED = f"Assumed too: a random update has finetuning's size after {ROUNDS} rounds (at most 8)."


def crossed_calls(
    config: ConfigDict, decoder: DecoderConfig, inputs: Inputs, mesh: AnyMesh, memory: int
) -> list[Call]:
    """Every program of a crossed comparison; as `calls.compare_calls`."""
    shapes = parameters(decoder, mesh)
    costs = Costs(decoder, shapes, mesh, config.finetune.method, config.finetune.remat)
    recorder = Recorder(costs, memory)
    shown = crossed.all_demonstrations(inputs, crossed.make_plan(config))
    study = crossed.Study(config, inputs, make_programs(recorder), *nowhere(recorder))
    study.measure(lambda: Subject(recorder.programs(), recorder.like(shapes), shown))
    return list(recorder.calls.values())


def make_programs(recorder: Recorder) -> Programs:
    """Programs that are listed; to the host they give zeros of one layer, but steps of a size."""
    costs = recorder.costs
    # Finetuning's step, then the random one's in each round.
    steps = itertools.cycle([1.0, *[2.0] * (ROUNDS - 1), 1.0])

    def change(queries: Queries, count: int | None, compared: int) -> Change:
        """Of zero-shot, or of several prompts or updates."""
        c, slots, length = costs.decoder, queries.example.size, queries.tokens.shape[1]
        lead, axes = ((), ("data",)) if count is None else ((count,), (None, "data"))
        shapes = ((queries.target.shape[2],), (c.num_layers, c.width))
        logprob, output = (recorder.hold((*lead, slots, *x), float, P(*axes)) for x in shapes)
        shape = (*lead, slots, c.num_layers, c.num_heads, length)
        scores = recorder.hold(shape, float, P(*axes, None, "model"))
        tokens = recorder.hold((*lead, slots, c.num_layers, compared), float, P(*axes))
        return Change(logprob, output, scores, tokens)

    def prompts(params: Params, prompts: Prompts, zsl: Change, queries: Queries) -> Any:
        return change(queries, *prompts.columns.shape), costs.prompts(prompts, queries)

    def updates(params: Params, learned: Learned, zsl: Change, queries: Queries) -> Any:
        count, _, compared, _ = learned.queries.shape
        return change(queries, count, compared), costs.updates(learned, queries)

    def random_steps(params: Params, runs: Demonstrations, numbers: Array) -> Any:
        made = recorder.stacked(kv_params_of(params), len(numbers))
        return made, costs.random_steps(*runs.train.shape)

    programs: dict[str, Callable[..., tuple[Any, Estimate]]] = {
        "zero_shot": lambda params, queries: (change(queries, None, 0), costs.zero_shot(queries)),
        "prompts": prompts,
        "updates": updates,
        "pairs": lambda plan, zsl, prompts, updates, queries: (
            _arrays(plan, queries),
            costs.pairs(plan, prompts, updates),
        ),
        "mean_step": lambda zsl, updates, queries: (np.full(1, next(steps)), Estimate(passes=1)),
        "random_steps": random_steps,
        "noise": lambda base, numbers: (
            recorder.stacked(base, len(numbers)),
            Estimate(temporaries=2 * len(numbers) * device_bytes(base)),
        ),
        "sized": lambda base, finetuned, directions, scale: (
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
        "layer": 1,
    }
    return {
        name: zeros(*(sizes[axis] for axis in CROSSED_AXES[name])) for name in array_names(plan)
    }
