"""Training a decoder from scratch: state, step, evaluation, checkpoints that survive a kill.

Shape glossary: B sequences of a microbatch, S tokens of a sequence that are predicted, P parts
that a batch is accumulated from, N batches; other letters as in icljax/models/decoder.py.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict
from orbax.checkpoint import v1 as ocp

from icljax.comparison import forward
from icljax.data import corpus
from icljax.models.decoder import Decoder, DecoderConfig, init_params
from icljax.runtime import processes, sharding
from icljax.types import Params


class TrainState(NamedTuple):
    """All that a run is, so that a checkpoint of it continues as if nothing had happened.

    Attributes:
        step: int32 [], steps done.
        params: float32.
        optimizer: optax's state.
        losses: float32 [steps], each step's loss before its update.
        curve: float32 [evaluations], validation loss at each.
    """

    step: jax.Array
    params: Params
    optimizer: Any
    losses: jax.Array
    curve: jax.Array


@dataclasses.dataclass(frozen=True)
class Programs:
    """The jitted programs of one decoder.

    Attributes:
        init: key -> TrainState.
        step: (TrainState, int32 [P, B, S + 1]) -> TrainState; the old state is donated.
        evaluate: (params, int32 [N, B, S + 1]) -> mean loss [].
        shape: abstract TrainState with its shardings.
    """

    init: Callable[..., TrainState]
    step: Callable[..., TrainState]
    evaluate: Callable[..., jax.Array]
    shape: TrainState


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """Adam with linear warm-up, then polynomial decay, as in the paper (method section 5)."""
    rest = max(1, config.steps - config.warmup_steps)
    schedule = optax.join_schedules(
        [
            optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps),
            optax.polynomial_schedule(config.learning_rate, 0.0, config.decay_power, rest),
        ],
        [config.warmup_steps],
    )
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.scale_by_adam(config.adam_b1, config.adam_b2, config.adam_eps),
        optax.add_decayed_weights(config.weight_decay),
        optax.scale_by_learning_rate(schedule),
    )


def mean_loss(model: Decoder, params: Params, blocks: jax.Array) -> jax.Array:
    """Mean negative log-probability, nats a token, of int32 [B, S + 1]: float32 []."""
    tokens, target = blocks[:, :-1], blocks[:, 1:]
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32)[None], tokens.shape)
    hidden = forward.hidden(model, params, tokens, positions).hidden
    logits = forward.unembed(model, params, hidden)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, target))


def make_programs(
    decoder: DecoderConfig, config: ConfigDict, mesh: Mesh, evaluations: int
) -> Programs:
    """Builds (does not yet compile) the programs; `config` is the `train` part of a job's."""
    model, optimizer = Decoder(decoder), make_optimizer(config)

    def init(key: jax.Array) -> TrainState:
        params = init_params(decoder, key)
        losses, curve = jnp.zeros(config.steps), jnp.zeros(evaluations)
        return TrainState(jnp.int32(0), params, optimizer.init(params), losses, curve)

    def local(params: Params, batch: jax.Array) -> tuple[jax.Array, Params]:
        """Of the sequences of one part of the data axis, with a leading axis of 1."""
        gradient_of = jax.value_and_grad(lambda p, blocks: mean_loss(model, p, blocks))
        if batch.shape[0] == 1:
            out = gradient_of(params, batch[0])
        else:
            out = _accumulate(gradient_of, params, batch)
        return jax.tree.map(lambda x: x[None], out)

    def step(state: TrainState, batch: jax.Array) -> TrainState:
        # One sum over the data axis a step, not one for every part that is accumulated.
        by_part = sharding.over_data(mesh, local, (P(), P(None, "data")), P("data"))
        by_part = by_part(state.params, batch)
        loss, gradient = jax.tree.map(lambda x: jnp.mean(x, 0), by_part)
        updates, opt = optimizer.update(gradient, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        losses = state.losses.at[state.step].set(loss)
        return TrainState(state.step + 1, params, opt, losses, state.curve)

    def evaluate(params: Params, batches: jax.Array) -> jax.Array:
        return jnp.mean(jax.lax.map(lambda blocks: mean_loss(model, params, blocks), batches))

    shape = jax.eval_shape(init, jax.random.key(0))
    where = sharding.shardings(shape, mesh)
    shape = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shape, where
    )
    split = functools.partial(sharding.batch_sharding, mesh, 3, 1)
    return Programs(
        jax.jit(init, out_shardings=where),
        jax.jit(step, in_shardings=(where, split()), out_shardings=where, donate_argnums=0),
        jax.jit(evaluate, in_shardings=(where.params, split())),
        shape,
    )


def _accumulate(
    gradient_of: Callable[..., Any], params: Params, batch: jax.Array
) -> tuple[jax.Array, Params]:
    """Mean loss and gradient over the P parts of a batch, one after the other."""

    def add(total: Any, blocks: jax.Array) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, gradient_of(params, blocks)), None

    zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
    total, _ = jax.lax.scan(add, zero, batch)
    return jax.tree.map(lambda x: x / batch.shape[0], total)


def train(
    programs: Programs,
    config: ConfigDict,
    folder: Path,
    seed: int,
    batch: Callable[[int], np.ndarray],
    evaluate: Callable[[Params], jax.Array],
    progress: Callable[[int], None],
) -> TrainState:
    """Trains to the end, from the last checkpoint in `folder` if there is one.

    Args:
        batch: step -> int32 [P, B, S + 1]; must depend on the step alone.
        evaluate: params -> validation loss; called at `evaluation_steps`.
        progress: called with the number of steps done since the last call.

    Raises:
        Stopped: after a checkpoint, where the process was asked to end.
    """
    at = evaluation_steps(config, programs.shape.curve.shape[0])
    with ocp.training.Checkpointer(
        folder,
        preservation_policy=ocp.training.preservation_policies.LatestN(1),
        cleanup_tmp_directories=True,
    ) as checkpointer:
        if checkpointer.latest is None:
            state = programs.init(jax.random.key(seed))
        else:
            state = checkpointer.load(checkpointer.latest.step, programs.shape)
        done = int(state.step)
        progress(done)
        for step in range(done, config.steps):
            state = programs.step(state, batch(step))
            progress(1)
            for which in np.flatnonzero(at == step + 1):
                state = state._replace(curve=state.curve.at[which].set(evaluate(state.params)))
            last = step + 1 == config.steps
            if last or (step + 1) % config.checkpoint_every == 0:
                checkpointer.save(step + 1, state)
                processes.stop_if_asked()
    return state


def evaluation_steps(config: ConfigDict, count: int) -> np.ndarray:
    """The steps after which validation loss is measured: evenly spaced, the last one included."""
    return np.round(np.linspace(0, config.steps, count + 1)[1:]).astype(int)


def evaluation_batches(stream: np.ndarray, length: int, batch: int, tokens: int) -> np.ndarray:
    """Evenly spaced blocks of a stream: int32 [N, batch, length + 1], about `tokens` of them."""
    parts = corpus.blocks(stream, length)
    count = min(max(1, tokens // (batch * length)), max(1, len(parts) // batch))
    rows = np.linspace(0, len(parts) - 1, count * batch).astype(int)
    return parts[rows].reshape(count, batch, length + 1)
