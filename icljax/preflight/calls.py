"""The programs that a job runs: its own code, on devices that hold shapes and run nothing."""

import dataclasses
import functools
import math
import weakref
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict
from rich.console import Console

from icljax.attention.mixing import LEARNABLE
from icljax.catalog import METHODS, SYNTHETIC
from icljax.comparison import pairs
from icljax.comparison.finetune import Finetuned, Learned, kv_params_of
from icljax.comparison.inputs import Inputs
from icljax.comparison.pairs import Similarity
from icljax.comparison.programs import TRAINING_QUERIES, Devices, Programs
from icljax.data.prompts import Demonstrations, Queries
from icljax.errors import UserError
from icljax.experiments import paper, pretrain, train
from icljax.models.decoder import DecoderConfig, State, init_params
from icljax.preflight.costs import Costs, Estimate, device_bytes
from icljax.runtime import sharding
from icljax.runtime.chunks import Arrays, Chunks
from icljax.runtime.progress import Stages
from icljax.types import Array, Params

T = TypeVar("T")
AnyMesh = Mesh | AbstractMesh
# Of a job's programs, by what the names of its stages start with; the others are its main part's.
VARIANTS = {"select": "select", "untrained": "untrained"}
VARIANTS |= dict.fromkeys(SYNTHETIC, "random") | {name: name for name in METHODS}


@dataclasses.dataclass(frozen=True)
class Call:
    """One program of a job.

    Attributes:
        name: the program's, a field of `Programs` in comparison/programs.py, comparison/crossed.py
            or experiments/train.py.
        variant: of `VARIANTS`; in training, the kind of attention.
        arguments: shapes with their shardings.
        outputs: the same, where later programs need them.
        beside: bytes of a device that are held while it runs, beside its arguments.
        times: calls in the whole job.
        estimate: of one call.
    """

    name: str
    variant: str
    arguments: tuple[Any, ...]
    outputs: Any
    beside: int
    times: int
    estimate: Estimate


def compare_calls(
    config: ConfigDict, decoder: DecoderConfig, inputs: Inputs, mesh: AnyMesh, memory: int
) -> list[Call]:
    """Every program of a comparison, in the order in which the job runs them.

    Args:
        memory: bytes of a device.

    Raises:
        UserError: where the mesh does not divide heads or MLP.
    """
    shapes = parameters(decoder, mesh)
    costs = Costs(decoder, shapes, mesh, config.finetune.method, config.finetune.remat)
    recorder = Recorder(costs, memory)
    rest = (inputs, config, *nowhere(recorder))
    paper.measure(recorder.programs(), lambda: recorder.like(shapes), *rest)
    return list(recorder.calls.values())


def parameters(decoder: DecoderConfig, mesh: AnyMesh) -> Params:
    """The decoder's parameters as shapes in the types they are loaded in, with their shardings.

    Raises:
        UserError: where the mesh does not divide them.
    """
    shapes = jax.eval_shape(lambda: init_params(decoder, jax.random.key(0)))

    def one(path: tuple[Any, ...], x: Any, where: NamedSharding) -> jax.ShapeDtypeStruct:
        exact = any(part.key in ("key", "value", *LEARNABLE) for part in path)
        return jax.ShapeDtypeStruct(x.shape, "float32" if exact else decoder.dtype, sharding=where)

    return jax.tree_util.tree_map_with_path(
        one, shapes, sharding.shardings(shapes, cast(Mesh, mesh))
    )


class Held(jax.ShapeDtypeStruct):
    """An array that devices hold, as its shape and place; on the host it is all zeros."""

    def __init__(self, shape: tuple[int, ...], dtype: Any, where: NamedSharding):
        super().__init__(shape, jax.dtypes.canonicalize_dtype(dtype), sharding=where)
        self.bytes = device_bytes(self)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return zeros(*self.shape, dtype=self.dtype)


def zeros(*shape: int, dtype: Any = np.float32) -> Any:
    """Zeros that take no memory."""
    return np.broadcast_to(np.zeros((), dtype), shape)


class Recorder(Devices):
    """Devices that hold shapes, and programs that are listed in the place of being run.

    What the job holds is alive in Python too, so that the bytes beside a program's arguments are
    those of all other arrays that are. All numbers are zeros: the first of a seed's runs stays its
    best, and `pick` is listed as often as it runs at least.

    Attributes:
        stage: the job's.
        calls: each program with each shape of its arguments once, in the order of first calls.
    """

    def __init__(self, costs: Costs, memory: int):
        """Devices of `memory` bytes each."""
        super().__init__(cast(Mesh, costs.mesh))
        self.costs, self.memory, self.stage = costs, memory, ""
        self._held: weakref.WeakValueDictionary[int, Held] = weakref.WeakValueDictionary()
        self.calls: dict[Any, Call] = {}

    def free_memory(self) -> int:
        """As of the real devices: half of what is free."""
        return max(1, (self.memory - self._bytes_beside(())) // 2)

    def put(self, tree: T, spec: P = sharding.REPLICATED) -> T:
        """Shapes of NumPy arrays, all by one spec."""
        return self._each(tree, lambda x: (x.shape, spec))

    def like(self, tree: T) -> T:
        """New arrays of the same shapes and places."""
        return self._each(tree, lambda x: (x.shape, x.sharding.spec))

    def programs(self, method: str = "") -> Programs:
        """A job's programs; to the host they give zeros of one layer, which is never looked at.

        Args:
            method: of finetuning; "": as the costs say.
        """
        costs = dataclasses.replace(self.costs, method=method or self.costs.method)
        programs: dict[str, Callable[..., tuple[Any, Estimate]]] = {
            "encode": self.encode,
            "update": self._update,
            "finetune": functools.partial(self._finetune, costs),
            "pick": lambda finetuned, index: (self._first(finetuned.learned), Estimate()),
            "stack": lambda runs: (self.stacked(runs[0], len(runs)), Estimate()),
            "score": lambda params, seeds, which, numbers, learned, queries: (
                _read(queries, len(learned.queries)),
                costs.score(len(learned.queries), len(which), seeds, queries),
            ),
            "score_states": lambda params, states, queries: (
                _read(queries, len(states.valid))[0],
                costs.score_states(states, queries),
            ),
            "compare": lambda params, seeds, learned, queries, numbers: (
                _compare(queries, len(numbers)),
                costs.compare(seeds, queries),
            ),
        }
        return Programs(
            **{name: self.listed(name, program) for name, program in programs.items()},
            # Once a job, in milliseconds; it needs less memory than what comes after.
            initialize=lambda params, seed: self.like(params),
            devices=self,
        )

    def encode(self, params: Params, tokens: Array, valid: Array) -> tuple[State, Estimate]:
        """Of several prompts, or of one."""
        c, (*several, length) = self.costs.decoder, tokens.shape
        shape = (*several, c.num_layers, length, c.num_kv_heads, c.head_width)
        heads = P(*[None] * len(several), None, None, "model")
        keys, values = (self.hold(shape, c.dtype, heads) for _ in range(2))
        lengths = self.hold(tuple(several), int)
        state = State(keys, values, self.hold(tokens.shape, bool), lengths)
        return state, self.costs.encode(math.prod(several), length)

    def _update(self, states: State, columns: Array, compared: Array) -> tuple[Any, Estimate]:
        c, (count, tokens) = self.costs.decoder, columns.shape
        shape = (count, c.num_layers, c.num_kv_heads, c.head_width, c.head_width)
        update = self.hold(shape, float, P(None, None, "model"))
        return update, self.costs.update(count, tokens)

    def _finetune(
        self, costs: Costs, params: Params, rates: Array, runs: Demonstrations
    ) -> tuple[Finetuned, Estimate]:
        c, (count, steps, tokens) = self.costs.decoder, runs.train.shape
        shape = (c.num_layers, runs.columns.shape[1], c.num_heads * c.head_width)
        queries = self.hold(shape, float, TRAINING_QUERIES)
        own = self.stacked(Learned(kv_params_of(params), queries), count, "data")
        finetuned = Finetuned(own.kv_params, self.hold((count, steps), float), own.queries)
        return finetuned, costs.finetune(count, steps, tokens, own)

    def _first(self, tree: T) -> T:
        return self._each(tree, lambda x: (x.shape[1:], P(*x.sharding.spec[1:])))

    def stacked(self, tree: T, count: int, axis: str | None = None) -> T:
        """New arrays with a leading axis of so many, over this axis of the mesh."""
        return self._each(tree, lambda x: ((count, *x.shape), P(axis, *x.sharding.spec)))

    def hold(self, shape: tuple[int, ...], dtype: Any, spec: P = sharding.REPLICATED) -> Any:
        """A new array, which counts until nobody holds it."""
        held = Held(shape, dtype, NamedSharding(self.mesh, spec))
        self._held[id(held)] = held
        return held

    def _each(self, tree: T, place: Callable[[Any], tuple[tuple[int, ...], P]]) -> T:
        """New arrays of the same types, with the shape and spec that `place` gives of each."""

        def one(x: Any) -> Any:
            shape, spec = place(x)
            return self.hold(shape, x.dtype, spec)

        return cast(T, jax.tree.map(one, tree))

    def _bytes_beside(self, arguments: tuple[Any, ...]) -> int:
        """Of all that is held but these."""
        given = {id(x) for x in jax.tree.leaves(arguments)}
        return sum(x.bytes for key, x in self._held.items() if key not in given)

    def listed(self, name: str, program: Callable[..., tuple[T, Estimate]]) -> Callable[..., T]:
        """The program called `name`; `program` says what it gives and costs."""

        def call(*arguments: Any) -> T:
            shapes = jax.tree.map(self._shape, arguments)
            key = (self.stage, name, *((x.shape, x.dtype) for x in jax.tree.leaves(shapes)))
            beside = self._bytes_beside(arguments)
            out, estimate = program(*arguments)
            if key not in self.calls:
                variant = VARIANTS.get(self.stage.partition("-")[0], "")
                kept = out if isinstance(jax.tree.leaves(out)[0], Held) else None
                kept = jax.tree.map(self._shape, kept)
                self.calls[key] = Call(name, variant, shapes, kept, 0, 0, estimate)
            first = self.calls[key]
            most = max(beside, first.beside)
            self.calls[key] = dataclasses.replace(first, beside=most, times=first.times + 1)
            return out

        return call

    def _shape(self, x: Held | Array | float) -> jax.ShapeDtypeStruct:
        """What stays in the list when the job drops an array."""
        where = x.sharding if isinstance(x, Held) else NamedSharding(self.mesh, P())
        return jax.ShapeDtypeStruct(np.shape(x), jnp.result_type(x), sharding=where)


def _read(queries: Queries, count: int) -> tuple[Any, Similarity]:
    """Log-probabilities and similarities of a batch, for so many runs or seeds."""
    slots, candidates = queries.example.size, queries.target.shape[2]
    one = zeros(count, slots, 1)
    return zeros(count, slots, candidates), dict.fromkeys(pairs.NAMES, one)


def _compare(queries: Queries, count: int) -> tuple[Any, tuple[Any, Any, Similarity]]:
    logprob, similarity = _read(queries, count)
    return logprob[0], (logprob, logprob, similarity)


def nowhere(recorder: Recorder) -> tuple[Chunks, Stages]:
    """Where a job that is walked commits what it does, and where it shows how far it is."""
    return _Unkept(recorder), _Silent(recorder)


class _Unkept(Chunks):
    """Nothing is committed, and trees come from disk as they are asked for."""

    def __init__(self, recorder: Recorder):
        self.recorder = recorder

    def once(self, name: str, compute: Callable[[], Arrays]) -> Arrays:
        return compute()

    def keep(self, name: str, tree: Any) -> Any:
        return tree

    def kept(self, name: str, abstract: Any) -> Any:
        return self.recorder.like(abstract)

    def forget(self, name: str) -> None:
        pass


class _Silent(Stages):
    """Shows nothing, and tells the recorder in which stage the job is."""

    def __init__(self, recorder: Recorder):
        super().__init__(Console(quiet=True))
        self.recorder = recorder

    def stage(self, key: str, description: str, total: int) -> Any:
        self.recorder.stage = key
        return super().stage(key, description, total)


def train_calls(config: ConfigDict, mesh: AnyMesh) -> Iterator[Call]:
    """The programs that train each variant, and those that measure its losses.

    Raises:
        UserError: where the mesh does not divide heads, MLP or a batch.
    """
    t, length, data = config.train, config.model.length, mesh.shape["data"]
    if t.batch % data:
        raise UserError(
            f"train.batch={t.batch} sequences do not divide over mesh.data={data}; give a multiple "
            f"of {data}: --config.train.batch=..."
        )
    split = NamedSharding(mesh, P(None, "data"))
    parts = max(1, config.eval.tokens // (t.batch * length))  # of what losses are measured on
    given, held = (
        jax.ShapeDtypeStruct((count, t.batch, length + 1), np.int32, sharding=split)
        for count in (t.accumulate, parts)
    )
    steps = t.steps * len(config.seeds)
    times = len(config.seeds) * (6 + config.eval.curve_points // 8)  # of other lengths too
    for variant in pretrain.split(config.variants):
        decoder = pretrain.decoder_config(config, variant, config.text.vocab_size)
        state = train.make_programs(decoder, t, cast(Mesh, mesh), config.eval.curve_points).shape
        costs = Costs(decoder, state.params, mesh, "gd", config.model.remat)
        cost = costs.step(t.accumulate, t.batch, length)
        yield Call("step", variant, (state, given), None, 0, steps, cost)
        moments, cost = device_bytes(state.optimizer), costs.evaluate(parts, t.batch, length)
        yield Call("evaluate", variant, (state.params, held), None, moments, times, cost)
