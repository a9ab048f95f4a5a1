"""What programs cost in closed form, from shapes alone.

Shape glossary: as in icljax/models/decoder.py. FLOPs are of one call and all devices together;
bytes are of one device.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from icljax.comparison.crossed import Change, Plan, Prompt
from icljax.comparison.finetune import Learned, kv_params_of
from icljax.comparison.forward import LOGITS_AT_ONCE
from icljax.comparison.programs import SeedTokens
from icljax.data.prompts import Queries
from icljax.models.decoder import DecoderConfig, State
from icljax.types import Array, Params


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A program in closed form.

    Attributes:
        flops: matrix FLOPs of one call, all devices together.
        temporaries: bytes of one device beside arguments and outputs.
        passes: times that the parameters are read.
        sent: bytes that a device sends, and in how many collectives.
    """

    flops: float = 0.0
    temporaries: float = 0.0
    passes: float = 0.0
    sent: float = 0.0
    collectives: int = 0


def device_bytes(tree: Any) -> int:
    """Bytes of one device's part of shapes that have shardings."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


@dataclasses.dataclass(frozen=True)
class Costs:
    """Costs of one decoder's programs, a method for each that multiplies matrices.

    Attributes:
        params: shapes with their shardings.
        method, remat: of finetuning; remat of training too.
    """

    decoder: DecoderConfig
    params: Params
    mesh: Mesh | AbstractMesh
    method: str
    remat: bool

    def encode(self, prompts: int, context: int) -> Estimate:
        """Every device of the data axis encodes all prompts, one after the other."""
        flops = prompts * self._layers(context, context) * self._data
        working = self._working_set(context, context, 0)
        return Estimate(flops, working, prompts, *self._sent(context, prompts))

    def update(self, prompts: int, compared: int) -> Estimate:
        """The sum of v k^T, on every device of the data axis."""
        c = self.decoder
        flops = 2.0 * prompts * compared * c.num_layers * c.num_kv_heads * c.head_width**2
        keys = 8.0 * compared * c.num_layers * c.num_kv_heads * c.head_width
        return Estimate(flops * self._data, 2 * keys / self._model)

    def finetune(self, runs: int, steps: int, tokens: int, learned: Learned) -> Estimate:
        """Forward, the gradient of activations, and that of key and value projections alone.

        Layer by layer, every layer is read out, and nothing of the others is kept.
        """
        c, local, by_layer = self.decoder, runs / self._data, self.method != "gd"
        forward = self._layers(tokens, tokens)
        trained = sum(x.size for x in jax.tree.leaves(kv_params_of(self.params)))
        attention = 4 * tokens * tokens * self._inner * c.num_layers
        logits = self._logits(tokens) * (c.num_layers if by_layer else 1)
        backward = forward + attention + 2 * tokens * trained + logits
        step = forward * (2 if self.remat else 1) + backward + logits
        kept = tokens * (1 if by_layer else c.num_layers) * self._kept_of_layer
        outputs = device_bytes(learned)
        working = local * (4 * kept + 12 * tokens * c.vocab_size) + 2 * outputs
        # A step reads the leaves forward and backward, and writes and reads gradient and leaves.
        passes = 2 * steps + 6 * steps * outputs / device_bytes(self.params)
        return Estimate(
            runs * steps * step, working, passes, *self._sent(local * tokens, 2 * steps)
        )

    def score(self, runs: int, shares: int, seeds: SeedTokens, queries: Queries) -> Estimate:
        """Finetuned runs on one batch of queries, one after the other, and their seeds' ICL."""
        context, compared = seeds.state.valid.shape[1], seeds.columns.shape[1]
        flops, working = self._read(queries, 1)
        icl, _ = self._read(queries, context)
        metrics, records = self._metrics(queries, context, compared)
        total = (runs + self._data) * flops + shares * icl + runs * metrics
        passes = 1 + (runs + shares) / self._data
        sent = self._sent(queries.tokens.size, passes)
        return Estimate(total, working + records, passes, *sent)

    def score_states(self, states: State, queries: Queries) -> Estimate:
        """In-context alone."""
        (prompts, context), local = states.valid.shape, self._local(queries)
        flops, working = self._read(local, context)
        sent = self._sent(local.tokens.size, prompts)
        return Estimate(prompts * flops * self._data, working, prompts, *sent)

    def compare(self, seeds: SeedTokens, queries: Queries) -> Estimate:
        """Zero-shot once, in-context and finetuned for every seed, and the metrics between them."""
        (prompts, context), local = seeds.state.valid.shape, self._local(queries)
        icl, working = self._read(local, context)
        zsl, _ = self._read(local, 1)
        metrics, records = self._metrics(local, context, seeds.columns.shape[1])
        flops = prompts * icl + (1 + prompts) * zsl + prompts * metrics
        passes = 1.0 + 2 * prompts
        sent = self._sent(local.tokens.size, passes)
        return Estimate(flops * self._data, working + records, passes, *sent)

    def zero_shot(self, queries: Queries) -> Estimate:
        """A batch of queries after BOS alone."""
        return self._change(queries, 1)

    def read_prompt(self, prompt: Prompt, queries: Queries) -> Estimate:
        """A batch after a prompt."""
        return self._change(queries, len(prompt.state.valid))

    def read_update(self, learned: Learned, queries: Queries) -> Estimate:
        """A batch after BOS with an update, and its weights of training tokens."""
        layers, compared, inner = learned.queries.shape
        read = self._change(queries, 1)
        weights = 2.0 * queries.example.size * layers * compared * inner
        return dataclasses.replace(read, flops=read.flops + weights)

    def pairs(self, plan: Plan, prompts: Sequence[Change], updates: Sequence[Change]) -> Estimate:
        """Every prompt's change times every update's, and the seeds' contrasts.

        Attention outputs are whole on every device of the model axis. Kendall's tau compares, and
        multiplies nothing; its rankings are copied as they are made equal in number and padded. A
        cosine of each head is no matrix product.
        """
        one = prompts[0]
        slots, layers, width = one.output.shape
        of_output = 2.0 * slots * layers * width * self._model
        of_map = 2.0 * slots * layers * math.prod(one.scores.shape[2:])
        block = plan.seeds**2  # pairs of one variant's prompts and one's updates
        count = block * (len(plan.prompts) * len(plan.updates) + (2 if plan.contrasts else 0))
        flops = count * (of_output + of_map) + (block * of_output if plan.contrasts else 0)
        named = 2 if plan.contrasts else 1
        of_variant = plan.seeds * device_bytes(one.tokens)
        ranked = named**2 * of_variant if plan.tokens else 0.0
        results = 4.0 * (2 * count + 4 * plan.tokens * plan.seeds) * slots * layers
        copies = 2 * device_bytes((prompts, updates))
        return Estimate(flops, copies + 4 * ranked + results)

    def random_step(self, steps: int, tokens: int) -> Estimate:
        """Forward, and random gradients times what enters key and value projections.

        Every device of the data axis does all of it.
        """
        trained = kv_params_of(self.params)
        numbers = sum(x.size for x in jax.tree.leaves(trained))
        step = self._layers(tokens, tokens) + 2.0 * tokens * numbers
        working = self._working_set(tokens, tokens, 0) + 3 * device_bytes(trained)
        return Estimate(steps * step * self._data, working, steps, *self._sent(tokens, steps))

    def step(self, parts: int, batch: int, length: int) -> Estimate:
        """Forward and backward of all parameters, and their gradient."""
        c, local = self.decoder, batch // self._data
        layers, logits = batch * self._layers(length, length), batch * self._logits(length)
        kept = local * length * c.num_layers * self._kept_of_layer
        working = self._item * kept + self._working_set(local * length, length, local * length)
        sent, count = self._sent(local * length, 2 * parts)
        gradient = device_bytes(self.params)
        if self._data > 1:  # one all-reduce of the gradient
            sent, count = sent + 2 * gradient, count + 1
        flops = parts * (layers * (4 if self.remat else 3) + 3 * logits)
        return Estimate(flops, working + 2 * gradient, 3 * parts, sent, count)

    def evaluate(self, batches: int, batch: int, length: int) -> Estimate:
        """Losses alone."""
        local = batch // self._data
        forward = batch * (self._layers(length, length) + self._logits(length))
        working = self._working_set(local * length, length, local * length)
        return Estimate(batches * forward, working, batches, *self._sent(local * length, batches))

    @property
    def _data(self) -> int:
        return self.mesh.shape["data"]

    @property
    def _model(self) -> int:
        return self.mesh.shape["model"]

    @property
    def _item(self) -> int:
        """Bytes of a number."""
        return jnp.dtype(self.decoder.dtype).itemsize

    @property
    def _inner(self) -> int:
        return self.decoder.num_heads * self.decoder.head_width

    @property
    def _kept_of_layer(self) -> int:
        """Numbers of a token that a layer's backward pass needs."""
        c = self.decoder
        return c.width if self.remat else 8 * c.width + 4 * c.mlp_width

    def _layers(self, tokens: float, keys: float) -> float:
        """FLOPs of `tokens` through all layers, each attending to `keys` tokens."""
        c, kernels = self.decoder, jax.tree_util.tree_leaves_with_path(self.params["layers"])
        matrices = sum(math.prod(x.shape) for path, x in kernels if path[-1].key == "kernel")
        return 2 * tokens * matrices + 4 * tokens * keys * self._inner * c.num_layers

    def _logits(self, places: float) -> float:
        """FLOPs of the output projection."""
        return 2.0 * places * self.decoder.vocab_size * self.decoder.width

    def _working_set(self, tokens: float, keys: float, places: float) -> float:
        """Bytes of a layer's activations on a device; attention scores in float32 and cast."""
        c, split, item = self.decoder, self._model, self._item
        scores = tokens * keys * c.num_heads * (4 + item) / split
        inside = tokens * (3 * self._inner + 2 * c.mlp_width) * item / split
        return scores + inside + 6 * tokens * c.width * item + 8 * places * c.vocab_size / split

    def _sent(self, tokens: float, passes: float) -> tuple[float, int]:
        """Two all-reduces a layer of tensor parallelism, by a ring."""
        c, split = self.decoder, self._model
        if split == 1:
            return 0.0, 0
        size = tokens * c.width * self._item
        count = int(passes * 2 * c.num_layers)
        return count * size * 2 * (split - 1) / split, count

    def _local(self, queries: Queries) -> Queries:
        """A device's rows of a batch."""

        def rows(x: Array) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((x.shape[0] // self._data, *x.shape[1:]), x.dtype)

        return jax.tree.map(rows, queries)

    def _read(self, queries: Queries, state: int) -> tuple[float, float]:
        """(FLOPs, bytes of a layer's activations) of a batch read after `state` tokens."""
        rows, length = queries.tokens.shape
        places = queries.places.size
        flops = self._layers(rows * length, length + state) + self._logits(places)
        of_row = queries.places.shape[-1]
        at_once = min(places, max(LOGITS_AT_ONCE // self.decoder.vocab_size, of_row))
        return flops, self._working_set(rows * length, length + state, at_once)

    def _change(self, queries: Queries, state: int) -> Estimate:
        """A batch read after `state` tokens, for a `Change`."""
        c, local = self.decoder, self._local(queries)
        (rows, length), slots = local.tokens.shape, local.example.size
        flops, working = self._read(local, state)
        # Attention logits are made once more for the studied tokens: to the row's, to the state's.
        own = length * self._inner + state * c.num_kv_heads * c.head_width
        records = 2.0 * slots * c.num_layers * own
        made = slots * c.num_layers * (c.num_heads * length + 2 * self._inner) / self._model
        made += slots * c.num_layers * (c.width + state)
        total = (flops + records) * self._data
        return Estimate(total, working + 2 * 4 * made, 1, *self._sent(rows * length, 1))

    def _metrics(self, queries: Queries, context: int, compared: int) -> tuple[float, float]:
        """(FLOPs of one seed, bytes of the three settings' records) of a device's batch."""
        c, split = self.decoder, self._model
        (rows, length), slots = queries.tokens.shape, queries.example.size
        width = c.num_kv_heads * c.head_width
        records = slots * c.num_layers * self._inner * (3 * length + context)  # pre-softmax scores
        updates = 3 * slots * length * width * c.head_width * c.num_layers
        training = slots * compared * self._inner * c.num_layers
        scores = slots * c.num_layers * (c.num_heads * length / split + c.width + context) * 4
        queries_ = slots * c.num_layers * self._inner * 4 / split
        keys = 2 * rows * length * c.num_layers * width * self._item / split
        return 2.0 * (records + updates + training), 2 * 3 * (scores + queries_) + 3 * keys
