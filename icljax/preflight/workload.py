"""A job's arrays before any data is read, and what its programs cost in closed form.

Shape glossary: as in icljax/models/decoder.py and icljax/data/prompts.py; R seeds, N query slots of
a batch. Bytes and FLOPs are of one call; bytes of one device, FLOPs of all devices together.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from icljax.attention.mixing import LEARNABLE
from icljax.catalog import CONTROLS
from icljax.comparison import controls, grid, programs, settings
from icljax.comparison.job import context_limit, control_names
from icljax.data import prompts
from icljax.data.prompts import Demonstrations, Queries
from icljax.errors import UserError
from icljax.experiments import pretrain, train
from icljax.models.decoder import DecoderConfig, State, init_params
from icljax.runtime import sharding
from icljax.types import Params


class Lengths(NamedTuple):
    """Tokens of a task's prompts.

    Attributes:
        examples: of the split that is evaluated.
        answers: tokens of each answer.
        demonstrations: least, quartiles, 95th percentile and most tokens of train prompts.
        queries: the same of the evaluated split.
    """

    examples: int
    answers: tuple[int, ...]
    demonstrations: tuple[int, ...]
    queries: tuple[int, ...]


# Measured once over whole splits (AG News' train split: 4,000 of 120,000; IMDB: 1,000 of 25,000 of
# each) with the templates of icljax/data/tasks.py and SmolLM2's byte-level BPE of 49,152 tokens.
# Evaluated: the validation split, and the test split of Subj, AG News, TREC and IMDB.
QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.95, 1.0)
LENGTHS = {
    "sst2": Lengths(872, (1,) * 2, (6, 9, 13, 21, 36, 73), (7, 20, 28, 35, 47, 64)),
    "sst5": Lengths(1101, (1,) * 5, (7, 19, 27, 36, 49, 86), (7, 20, 28, 35, 48, 64)),
    "mr": Lengths(1066, (1,) * 2, (6, 22, 29, 38, 50, 83), (7, 21, 30, 38, 51, 80)),
    "subj": Lengths(2000, (1,) * 2, (14, 24, 30, 39, 55, 174), (14, 24, 30, 40, 57, 154)),
    "agnews": Lengths(7600, (1,) * 4, (41, 66, 75, 85, 109, 334), (39, 65, 74, 84, 104, 315)),
    "cb": Lengths(56, (1,) * 3, (36, 63, 80, 105, 182, 278), (36, 70, 88, 116, 191, 277)),
    "trec": Lengths(500, (1,) * 6, (7, 12, 15, 18, 25, 57), (8, 10, 12, 14, 18, 26)),
    "imdb": Lengths(1000, (1,) * 2, (38, 169, 237, 369, 763, 3300), (17, 169, 227, 381, 762, 1377)),
}


class Work(NamedTuple):
    """The arrays of a job, as `icljax.comparison.job.Job` has them, of made-up tokens.

    Attributes:
        demonstrations: of the R seeds.
        selection, evaluation: batches of packed queries.
        bos: the tokens that start every prompt.
    """

    demonstrations: Demonstrations
    selection: Queries
    evaluation: Queries
    bos: tuple[int, ...]


class Estimate(NamedTuple):
    """A program in closed form.

    Attributes:
        flops: matrix FLOPs of one call, all devices together.
        temporaries: bytes of one device beside arguments and outputs.
        passes: times that the parameters are read.
        sent: bytes that a device sends, and in how many collectives.
    """

    flops: float
    temporaries: float
    passes: float
    sent: float
    collectives: int


class Call(NamedTuple):
    """One program of a job.

    Attributes:
        name: the program's, a field of `programs.Programs` or `train.Programs`; "stack": that of
            `grid.Kept.stacked`.
        variant: "control" on a model that was never trained; in training, the kind of attention.
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


def lengths(config: ConfigDict, demonstration: int, query: int, examples: int) -> Lengths:
    """The task's lengths; numbers above 0 replace what the table has.

    Raises:
        UserError: for a task that is not in the table, unless all three are given.
    """
    known = LENGTHS.get(config.task)
    if known is None and not (demonstration and query and examples):
        raise UserError(
            f"task {config.task!r} has no measured lengths (known: {', '.join(LENGTHS)}); give all "
            "of --demonstration_tokens, --query_tokens and --examples"
        )
    known = known or Lengths(0, (1,) * max(2, len(config.answers)), (), ())
    return Lengths(
        examples or known.examples,
        known.answers,
        (demonstration,) * len(QUANTILES) if demonstration else known.demonstrations,
        (query,) * len(QUANTILES) if query else known.queries,
    )


def spread(quantiles: Sequence[int], count: int) -> list[int]:
    """`count` lengths that are distributed as the quantiles say."""
    places = (np.arange(count) + 0.5) / count
    return [int(x) for x in np.round(np.interp(places, QUANTILES, quantiles))]


def make_work(config: ConfigDict, decoder: DecoderConfig, tokens: Lengths) -> Work:
    """Lays out made-up prompts of these lengths, by the job's own code.

    Raises:
        UserError: when not one demonstration fits in the context.
    """
    separator = (0,) if config.prompt.separator else ()
    answers = tuple((0,) * count for count in tokens.answers)
    encoder = prompts.Encoder(None, None, (0,), separator, answers)  # type: ignore[arg-type]
    rounds, count = len(config.seeds), config.num_demonstrations
    longest_answer = max(tokens.answers)
    drawn = [n + longest_answer for n in spread(tokens.demonstrations, rounds * count)]
    chosen = min(config.eval.num_examples or tokens.examples, tokens.examples)
    queries = [prompts.Query([0] * n, answers) for n in spread(tokens.queries, chosen)]
    selection = queries
    if config.selection.split == "train":
        wanted = spread(tokens.demonstrations, config.selection.num_examples)
        selection = [prompts.Query([0] * n, answers) for n in wanted]
    limit = context_limit(config, decoder)
    reserved = prompts.longest_query(queries + selection, config.record_position)
    seeds = [[[0] * n for n in drawn[seed::rounds]] for seed in range(rounds)]
    fitting = [prompts.fit(seed, encoder, reserved, limit) for seed in seeds]
    pack = functools.partial(
        prompts.pack,
        tokens_per_batch=config.eval.tokens_per_batch,
        score=config.prompt.score,
        position=config.record_position,
    )
    return Work(
        prompts.build_demonstrations(fitting, encoder),
        pack(selection),
        pack(queries),
        encoder.bos,
    )


def parameters(decoder: DecoderConfig, mesh: Mesh | AbstractMesh) -> Params:
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


def device_bytes(tree: Any) -> int:
    """Bytes of one device's part of shapes that have shardings."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def _shape(mesh: Any, shape: Sequence[int], dtype: Any, *spec: Any) -> Any:
    where = NamedSharding(mesh, P(*spec))
    return jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(dtype), sharding=where)


def _like(mesh: Any, tree: Any, *spec: Any) -> Any:
    """NumPy arrays as shapes, all by one spec."""
    return jax.tree.map(lambda x: _shape(mesh, x.shape, x.dtype, *spec), tree)


def compare_calls(
    config: ConfigDict,
    decoder: DecoderConfig,
    work: Work,
    mesh: Mesh | AbstractMesh,
    memory: int,
) -> list[Call]:
    """Every program of a comparison, in the order in which the job runs them.

    Args:
        memory: bytes of a device.

    Raises:
        UserError: where the mesh does not divide heads or MLP.
    """
    params = parameters(decoder, mesh)
    trained = list(_stage(config, decoder, work, mesh, memory, params, control=False))
    names = control_names(config)
    if not names:
        return trained
    # Those of a change of the finetuned weights finetune nothing themselves.
    finetuned = [name for name in names if CONTROLS[name].kind != "update"]
    held = _bytes_of_kept(params)  # the trained model's, until the job's end
    for call in _stage(config, decoder, work, mesh, memory, params, control=True, beside=held):
        which = finetuned if call.name in ("finetune", "pick") else names
        if which:
            trained.append(call._replace(times=call.times * len(which)))
    return trained


def _bytes_of_kept(params: Params) -> int:
    """Of the trained parameters that a control may keep."""
    kept = controls.only_kept(params)
    return sum(
        device_bytes(x)
        for path, x in jax.tree_util.tree_leaves_with_path(kept)
        if controls.is_kept(path)
    )


class _Arrays(NamedTuple):
    """What the programs of a comparison hand each other."""

    states: State
    kept: tuple[Params, Any]  # one run
    chosen: tuple[Params, Any]  # of a group of seeds
    update: Any


def _arrays(decoder: DecoderConfig, work: Work, mesh: Any, params: Params, seeds: int) -> _Arrays:
    """Of a group of so many seeds."""
    c, demonstrations = decoder, work.demonstrations
    context = demonstrations.context.shape[1]
    state = (seeds, c.num_layers, context, c.num_kv_heads, c.head_width)
    keys = _shape(mesh, state, c.dtype, None, None, None, "model", None)
    states = State(
        keys, keys, _shape(mesh, (seeds, context), bool), _shape(mesh, (seeds,), "int32"), None
    )
    compared = demonstrations.columns.shape[1]
    queries = (c.num_layers, compared, c.num_heads * c.head_width)
    kept = (
        settings.key_value(params),
        _shape(mesh, queries, "float32", *programs.TRAINING_QUERIES),
    )
    update = (seeds, c.num_layers, c.num_kv_heads, c.head_width, c.head_width)
    return _Arrays(
        states,
        kept,
        jax.tree.map(lambda x: _stacked(x, seeds), kept),
        _shape(mesh, update, "float32", None, None, "model", None, None),
    )


def _stacked(x: jax.ShapeDtypeStruct, count: int, axis: str | None = None) -> Any:
    spec = P(axis, *x.sharding.spec)
    return _shape(x.sharding.mesh, (count, *x.shape), x.dtype, *spec)


def _stage(
    config: ConfigDict,
    decoder: DecoderConfig,
    work: Work,
    mesh: Any,
    memory: int,
    params: Params,
    control: bool,
    beside: int = 0,
) -> Iterator[Call]:
    """The programs of one model's comparison; `beside`: bytes that others hold."""
    closed, demonstrations = Closed(decoder, params, mesh), work.demonstrations
    data, split = mesh.shape["data"], mesh.shape["model"]
    rounds, context = demonstrations.context.shape
    model = device_bytes(params)
    free = max(1, (memory - beside - model) // 2)
    at_once = min(rounds, grid.seeds_at_once(params, demonstrations, split, free))
    groups = programs.seed_groups(rounds, at_once)
    together = len(groups[0])
    arrays = _arrays(decoder, work, mesh, params, together)

    def call(
        name: str, arguments: Any, outputs: Any, held: int, times: int, cost: Estimate
    ) -> Call:
        variant = "control" if control else ""
        return Call(name, variant, arguments, outputs, held + beside, times, cost)

    num_runs = rounds if control else rounds * len(config.finetune.learning_rates)
    at_once = grid.runs_at_once(config, params, demonstrations, num_runs, data, split, free)
    pieces = math.ceil(num_runs / at_once)
    runs = _like(
        mesh, jax.tree.map(lambda x: np.resize(x, (at_once, *x.shape[1:])), demonstrations), "data"
    )
    tuned = jax.tree.map(lambda x: _stacked(x, at_once, "data"), arrays.kept)
    steps, tokens = demonstrations.train.shape[1:]
    loss = _shape(mesh, (at_once, steps), "float32")
    finetuned = settings.Finetuned(tuned[0], loss, tuned[1])
    rates = _shape(mesh, (at_once,), "float32", "data")
    cost = closed.finetune(at_once, steps, tokens, config.finetune, device_bytes(tuned))
    yield call("finetune", (params, rates, runs), finetuned, 0, pieces, cost)
    some = jax.tree.map(lambda x: x[groups[0]], demonstrations)
    if not control:
        rates = len(config.finetune.learning_rates)
        seeds = math.ceil(at_once / rates)
        few = jax.tree.map(lambda x: np.resize(x, (seeds, *x.shape[1:])), some)
        held = device_bytes(tuned)
        there = yield from _encoded(closed, call, decoder, work, mesh, params, few, pieces, held)
        shares = grid.seed_shares(at_once, data, rates)
        which = _shape(mesh, (shares,), "int32", "data")
        batch = jax.tree.map(lambda x: x[0], work.selection)
        count = pieces * len(work.selection.example)
        arguments: Any = (params, there, which, which, tuned, _like(mesh, batch))
        cost = closed.score(at_once, shares, batch, context, few.columns.shape[1])
        yield call("score", arguments, None, 0, count, cost)
    index = _shape(mesh, (), "int32")
    picks = min(num_runs, rounds + pieces - 1)  # at most one of each seed in a piece
    yield call("pick", (finetuned, index), arrays.kept, model, picks, closed.nothing)

    times = len(groups)
    if not control and config.select_seed and config.selection.split == "train":
        times *= 2
        few = programs.batches(work.selection, data)
        queries = _like(mesh, few[0], "data")
        score = closed.compare(few[0], together, context, 0)
        arguments = (params, arrays.states, queries)
        yield call("score_states", arguments, None, 0, len(few) * len(groups), score)
    there = yield from _encoded(closed, call, decoder, work, mesh, params, some, times, 0)
    trees = (arrays.kept,) * together
    held = model + device_bytes(there)
    yield call("stack", trees, arrays.chosen, held, len(groups), closed.nothing)

    evaluated = work.evaluation
    if control:
        evaluated = controls.first_batches(evaluated, config.controls.num_examples)
    batches = programs.batches(evaluated, data)
    queries = _like(mesh, batches[0], "data")
    seeds = _shape(mesh, (together,), "int32")
    arguments = (params, there, arrays.chosen, queries, seeds)
    cost = closed.compare(batches[0], together, context, some.columns.shape[1])
    yield call("compare", arguments, None, 0, len(batches) * len(groups), cost)


def _encoded(
    closed: "Closed",
    call: Callable[..., Call],
    decoder: DecoderConfig,
    work: Work,
    mesh: Any,
    params: Params,
    some: Demonstrations,
    times: int,
    held: int,
) -> Generator[Call, None, programs.SeedTokens]:
    """The programs of `programs.encode_demonstrations`; `held`: bytes that are there beside."""
    count, context = some.context.shape
    arrays = _arrays(decoder, work, mesh, params, count)
    prompt = _like(mesh, (some.context, some.context_valid))
    cost = closed.encode(count, context)
    yield call("encode", (params, *prompt), arrays.states, held, times, cost)
    columns = _like(mesh, (some.columns, some.example >= 0))
    cost = closed.update(count, some.columns.shape[1])
    held += device_bytes(params)
    yield call("update", (arrays.states, *columns), arrays.update, held, times, cost)
    example = _like(mesh, some.example)
    return programs.SeedTokens(arrays.states, columns[0], example, arrays.update)


def train_calls(config: ConfigDict, mesh: Mesh | AbstractMesh) -> list[Call]:
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
    out = []
    for variant in pretrain.split(config.variants):
        decoder = pretrain.decoder_config(config, variant, config.text.vocab_size)
        state = train.make_programs(decoder, t, cast(Mesh, mesh), config.eval.curve_points).shape
        params = state.params
        closed = Closed(decoder, params, mesh)
        batch = _shape(mesh, (t.accumulate, t.batch, length + 1), "int32", None, "data")
        cost = closed.train(t.accumulate, t.batch, length, config.model.remat)
        steps = t.steps * len(config.seeds)
        out.append(Call("step", variant, (state, batch), None, 0, steps, cost))
        count = max(1, config.eval.tokens // (t.batch * length))
        blocks = _shape(mesh, (count, t.batch, length + 1), "int32", None, "data")
        cost = closed.evaluate(count, t.batch, length)
        moments = device_bytes(state.optimizer)
        times = len(config.seeds) * (6 + config.eval.curve_points // 8)  # of other lengths too
        out.append(Call("evaluate", variant, (params, blocks), None, moments, times, cost))
    return out


@dataclasses.dataclass(frozen=True)
class Closed:
    """Costs of one decoder's programs, from shapes alone."""

    decoder: DecoderConfig
    params: Params
    mesh: Any
    nothing = Estimate(0, 0, 0, 0, 0)

    def layers(self, tokens: float, keys: float) -> float:
        """FLOPs of `tokens` through all layers, each attending to `keys` tokens."""
        c, kernels = self.decoder, jax.tree_util.tree_leaves_with_path(self.params["layers"])
        matrices = sum(math.prod(x.shape) for path, x in kernels if path[-1].key == "kernel")
        return 2 * tokens * matrices + 4 * tokens * keys * self._inner * c.num_layers

    def logits(self, places: float) -> float:
        """FLOPs of the output projection."""
        return 2.0 * places * self.decoder.vocab_size * self.decoder.width

    @property
    def _inner(self) -> int:
        return self.decoder.num_heads * self.decoder.head_width

    def _working_set(self, tokens: float, keys: float, places: float) -> float:
        """Bytes of a layer's activations on a device; attention scores in float32 and cast."""
        c, split, item = (
            self.decoder,
            self.mesh.shape["model"],
            jnp.dtype(self.decoder.dtype).itemsize,
        )
        scores = tokens * keys * c.num_heads * (4 + item) / split
        inside = tokens * (3 * self._inner + 2 * c.mlp_width) * item / split
        return scores + inside + 6 * tokens * c.width * item + 8 * places * c.vocab_size / split

    def _sent(self, tokens: float, passes: float) -> tuple[float, int]:
        """Two all-reduces a layer of tensor parallelism, by a ring."""
        c, split = self.decoder, self.mesh.shape["model"]
        if split == 1:
            return 0.0, 0
        size = tokens * c.width * jnp.dtype(c.dtype).itemsize
        count = int(passes * 2 * c.num_layers)
        return count * size * 2 * (split - 1) / split, count

    def encode(self, prompts: int, context: int) -> Estimate:
        """Every device of the data axis encodes all prompts, one after the other."""
        flops = prompts * self.layers(context, context) * self.mesh.shape["data"]
        return Estimate(
            flops,
            self._working_set(context, context, 0),
            prompts,
            *self._sent(context, prompts),
        )

    def finetune(
        self, runs: int, steps: int, tokens: int, config: ConfigDict, outputs: int
    ) -> Estimate:
        """Forward, the gradient of activations, and that of key and value projections alone.

        Layer by layer, every layer is read out, and nothing of the others is kept.
        """
        remat, by_layer = config.remat, config.method != "gd"
        c, local = self.decoder, runs / self.mesh.shape["data"]
        forward = self.layers(tokens, tokens)
        trained = sum(x.size for x in jax.tree.leaves(settings.key_value(self.params)))
        attention = 4 * tokens * tokens * self._inner * c.num_layers
        logits = self.logits(tokens) * (c.num_layers if by_layer else 1)
        backward = forward + attention + 2 * tokens * trained + logits
        step = forward * (2 if remat else 1) + backward + logits
        deep = 1 if by_layer else c.num_layers
        kept = tokens * deep * (c.width if remat else 8 * c.width + 4 * c.mlp_width)
        working = local * (4 * kept + 12 * tokens * c.vocab_size) + 2 * outputs
        sent, count = self._sent(local * tokens, 2 * steps)
        # A step reads the leaves forward and backward, and writes and reads gradient and leaves.
        leaves = 6 * steps * outputs / device_bytes(self.params)
        return Estimate(runs * steps * step, working, 2 * steps + leaves, sent, count)

    def train(self, parts: int, batch: int, length: int, remat: bool) -> Estimate:
        """Forward and backward of all parameters, and their gradient."""
        c, local = self.decoder, batch // self.mesh.shape["data"]
        item = jnp.dtype(c.dtype).itemsize
        layers, logits = batch * self.layers(length, length), batch * self.logits(length)
        kept = local * length * c.num_layers * (c.width if remat else 8 * c.width + 4 * c.mlp_width)
        working = item * kept + self._working_set(local * length, length, local * length)
        sent, count = self._sent(local * length, 2 * parts)
        gradient = device_bytes(self.params)
        if self.mesh.shape["data"] > 1:  # one all-reduce of the gradient
            sent, count = sent + 2 * gradient, count + 1
        flops = parts * (layers * (4 if remat else 3) + 3 * logits)
        return Estimate(flops, working + 2 * gradient, 3 * parts, sent, count)

    def evaluate(self, batches: int, batch: int, length: int) -> Estimate:
        """Losses alone."""
        local = batch // self.mesh.shape["data"]
        forward = batch * (self.layers(length, length) + self.logits(length))
        working = self._working_set(local * length, length, local * length)
        return Estimate(batches * forward, working, batches, *self._sent(local * length, batches))

    def read(self, queries: Queries, state: int) -> tuple[float, float]:
        """(FLOPs, bytes of a layer's activations) of a batch read after `state` tokens."""
        rows, length = queries.tokens.shape
        places = queries.places.size
        flops = self.layers(rows * length, length + state) + self.logits(places)
        at_once = min(places, max(settings.LOGITS_AT_ONCE, queries.places.shape[-1]))
        return flops, self._working_set(rows * length, length + state, at_once)

    def score(
        self, runs: int, shares: int, queries: Queries, context: int, compared: int
    ) -> Estimate:
        """Finetuned runs on one batch of queries, one after the other, and their seeds' ICL."""
        flops, working = self.read(queries, 1)
        icl, _ = self.read(queries, context)
        metrics, records = self._metrics(queries, context, compared)
        data = self.mesh.shape["data"]
        total = (runs + data) * flops + shares * icl + runs * metrics
        passes = 1 + (runs + shares) / data
        sent = self._sent(queries.tokens.size, passes)
        return Estimate(total, working + records, passes, *sent)

    def update(self, prompts: int, compared: int) -> Estimate:
        """The sum of v k^T, on every device of the data axis."""
        c = self.decoder
        flops = 2.0 * prompts * compared * c.num_layers * c.num_kv_heads * c.head_width**2
        keys = 8.0 * compared * c.num_layers * c.num_kv_heads * c.head_width
        return Estimate(
            flops * self.mesh.shape["data"], 2 * keys / self.mesh.shape["model"], 0, 0, 0
        )

    def compare(self, queries: Queries, prompts: int, context: int, compared: int) -> Estimate:
        """Zero-shot once, in-context and finetuned for every seed, and the metrics between them.

        With compared = 0, in-context alone (`score_states`).
        """
        data = self.mesh.shape["data"]
        local = jax.tree.map(lambda x: x[: x.shape[0] // data], queries)
        icl, working = self.read(local, context)
        passes = float(prompts)
        flops = prompts * icl
        if compared:
            zsl, _ = self.read(local, 1)
            metrics, records = self._metrics(local, context, compared)
            flops += (1 + prompts) * zsl + prompts * metrics
            working += records
            passes += 1 + prompts
        return Estimate(flops * data, working, passes, *self._sent(local.tokens.size, passes))

    def _metrics(self, queries: Queries, context: int, compared: int) -> tuple[float, float]:
        """(FLOPs of one seed, bytes of the three settings' records) of a device's batch."""
        c, split = self.decoder, self.mesh.shape["model"]
        (rows, length), slots = queries.tokens.shape, queries.example.size
        width = c.num_kv_heads * c.head_width
        records = slots * c.num_layers * self._inner * (3 * length + context)  # pre-softmax scores
        updates = 3 * slots * length * width * c.head_width * c.num_layers
        training = slots * compared * self._inner * c.num_layers
        scores = slots * c.num_layers * (c.num_heads * length / split + c.width + context) * 4
        queries_ = slots * c.num_layers * self._inner * 4 / split
        keys = 2 * rows * length * c.num_layers * width * jnp.dtype(c.dtype).itemsize / split
        return 2.0 * (records + updates + training), 2 * 3 * (scores + queries_) + 3 * keys
