"""Cost of the linear family against length: the chunked form, the quadratic form and their peers.

Forward and backward time (best of a few rounds) and temporary memory (XLA's own count) of

- `chunked`: `icljax.attention.kernels.chunked` (`--implementation`, by default what the platform
gets); - `quadratic`: `icljax.attention.parallel`;
- `softmax`: `jax.nn.dot_product_attention`, causal (the same for every kind: timed once);
- `jla`: jax-linear-attention, where it is installed and computes the same operation: its XLA form
  on CPU, its Mosaic kernels on Hopper GPUs.

`ms/chunked` and `MiB/chunked` are a form's number over the chunked form's of the same run;
`differ` is how far its output and gradients are from the chunked form's, over their largest value.
The last lines are cost at the greatest length over cost at the least, which may be at most 9 from
4,096 to 32,768 tokens. On CPU they also give the processor's time, which other work on the
machine does not stretch.

    python benchmarks/attention.py
    python benchmarks/attention.py --dtype bfloat16 --batch 8 --groups 16 --lengths 2048 8192 \
        65536 --peak_tflops 989 --peak_gbs 3350    # a GPU
"""

import argparse
import dataclasses
import importlib.util
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from icljax import attention
from icljax.attention import KINDS, Kind, Memory, Rates, kernels
from icljax.errors import UserError


@dataclasses.dataclass
class Run:
    """A compiled form with its inputs, MiB of temporaries, and what its executions left.

    Attributes:
        ms, processor_ms: of each execution: on the wall, and of all threads on the CPU.
        result: (out, gradients).
    """

    compiled: Any
    inputs: tuple[jax.Array, ...]
    mib: float
    ms: list[float] = dataclasses.field(default_factory=list)
    processor_ms: list[float] = dataclasses.field(default_factory=list)
    result: Any = None

    def execute(self) -> None:
        """Once more, timed."""
        wall, processor = time.perf_counter(), time.process_time()
        self.result = jax.block_until_ready(self.compiled(*self.inputs))
        self.processor_ms.append(1000 * (time.process_time() - processor))
        self.ms.append(1000 * (time.perf_counter() - wall))


def make_inputs(args: argparse.Namespace, kind: Kind, length: int) -> tuple[jax.Array, ...]:
    """(q [B, S, G, J, K], k, v [B, S, G, K], beta [B, S, G], the cotangent of out)."""
    keys = jax.random.split(jax.random.key(0), 4)
    shape = (args.batch, length, args.groups)
    q, w = (jax.random.normal(key, (*shape, args.queries, args.width)) for key in keys[:2])
    k, v = (jax.random.normal(key, (*shape, args.width)) for key in keys[2:])
    k = k / jnp.linalg.norm(k, axis=-1, keepdims=True)
    q, k, v = (x.astype(args.dtype) for x in (q, k, v))
    return q, k, v, jnp.full(shape, kind.beta), w


def make_form(args: argparse.Namespace, kind: Kind, form: str) -> Callable[..., jax.Array]:
    """The function of (q, k, v, beta) whose cost is measured: out [B, S, G, J, V]."""
    zeros = jnp.zeros((args.groups, args.width, args.width))
    memory = Memory(zeros, zeros, zeros[..., 0])
    eta, alpha = jnp.full((args.groups,), kind.eta), jnp.full((args.groups,), kind.alpha)

    def softmax(q: jax.Array, k: jax.Array, v: jax.Array, beta: jax.Array) -> jax.Array:
        flash = jax.default_backend() == "gpu" and q.dtype == jnp.bfloat16
        heads = q.reshape(*q.shape[:2], -1, q.shape[-1])
        out = jax.nn.dot_product_attention(
            heads, k, v, is_causal=True, implementation="cudnn" if flash else "xla"
        )
        return out.reshape(q.shape)

    def linear(q: jax.Array, k: jax.Array, v: jax.Array, beta: jax.Array) -> jax.Array:
        rates = Rates(eta, alpha, beta, jnp.zeros_like(eta))
        if form == "quadratic":
            batch, length = k.shape[:2]
            steps = jnp.broadcast_to(jnp.arange(1, length + 1), (batch, length))
            seen = jnp.tril(jnp.ones((length, length), bool))
            seen = jnp.broadcast_to(seen, (batch, length, length))
            return attention.parallel(kind, q, k, v, rates, steps, seen, memory)
        chosen = "jla" if form == "jla" else args.implementation
        tokens = attention.Tokens(q, k, v)
        return kernels.chunked(kind, tokens, rates, None, memory, args.chunk, chosen)[0]

    return softmax if form == "softmax" else linear


def prepare(args: argparse.Namespace, kind: Kind, form: str, length: int) -> Run:
    """The forward and backward pass of `form`, compiled and not yet run."""
    run = make_form(args, kind, form)

    def forward_backward(*inputs: jax.Array) -> Any:
        *tokens, cotangent = inputs
        out, pull = jax.vjp(run, *tokens)
        return out, pull(cotangent.astype(out.dtype))

    inputs = make_inputs(args, kind, length)
    compiled = jax.jit(forward_backward).lower(*inputs).compile()
    memory: Any = compiled.memory_analysis()
    return Run(compiled, inputs, memory.temp_size_in_bytes / 2**20)


def time_in_rounds(args: argparse.Namespace, runs: list[Run]) -> None:
    """All of `runs` in turn, so that other work on the machine meets each of them alike."""
    for _ in range(args.rounds):
        for run in runs:
            if sum(run.ms) < 1000 * args.seconds:
                run.execute()


def difference(a: Any, b: Any) -> float:
    """The largest difference of two results, each array relative to its greatest value."""

    def apart(x: jax.Array, y: jax.Array) -> float:
        one, other = np.asarray(x, np.float32), np.asarray(y, np.float32)
        return float(np.abs(one - other).max() / max(np.abs(other).max(), 1e-30))

    return max(jax.tree.leaves(jax.tree.map(apart, a, b)))


def work(args: argparse.Namespace, kind: Kind, length: int) -> tuple[float, float]:
    """(floating point operations, bytes) that forward and backward need at least.

    Operations: three times the forward's matrix products in chunks of C, recomputing nothing.
    Bytes: every input, output and gradient once, the inputs again for the backward pass.
    """
    width, chunk, states = args.width, args.chunk, 1 + attention.has_momentum(kind)
    square = kind.loss == "square"
    query = states * width**2 + 2 * chunk * width
    key = states * width**2
    if square:  # the error, k k^T, the inverse and what it is applied to
        inverse = 2 * (math.log2(chunk) - 1) * chunk**2
        key += states * width**2 + 2 * chunk * width + inverse
    heads = args.batch * length * args.groups
    item = jnp.dtype(args.dtype).itemsize
    read = (args.queries + 2) * width * item
    out = args.queries * width * 4
    return 3 * 2 * heads * (args.queries * query + key), heads * (3 * read + 2 * out)


def share(args: argparse.Namespace, kind: Kind, length: int, ms: float) -> str:
    """The achieved share of the device's rates, where they were given."""
    operations, size = work(args, kind, length)
    parts = []
    if args.peak_tflops:
        parts.append(f"{operations / ms / 1e9 / args.peak_tflops:7.1%} of matrix rate")
    if args.peak_gbs:
        parts.append(f"{size / ms / 1e6 / args.peak_gbs:7.1%} of bandwidth")
    return "  ".join(parts)


def run_kind(args: argparse.Namespace, kind: Kind, forms: list[str]) -> dict[tuple, Run]:
    """A run for each (length, form); a form ends at the first that needs too much memory."""
    runs = {}
    limit = 1024 * args.limit_gib
    for form in forms:
        for length in args.lengths:
            try:
                run = runs[length, form] = prepare(args, kind, form, length)
            except UserError:  # jla has no such operation
                break
            if run.mib > limit:
                break
    time_in_rounds(args, [run for run in runs.values() if run.mib <= limit])
    return runs


def print_rows(args: argparse.Namespace, name: str, runs: dict[tuple, Run]) -> None:
    for (length, form), run in sorted(runs.items()):
        row = f"{name:15} {form:10} {length:7}"
        if not run.ms:
            print(f"{row}  needs {run.mib / 1024:.1f} GiB; not run, nor longer ones")
            continue
        ours, best = runs[length, "chunked"], min(run.ms)
        row += f" {best:10.1f} {run.mib:9.1f}"
        if run is not ours:
            row += f" {best / min(ours.ms):9.2f} {run.mib / ours.mib:9.2f}"
            if form != "softmax":
                row += f" {difference(run.result, ours.result):9.1e}"
        else:
            row += "  " + share(args, KINDS[name], length, best)
        print(row.rstrip())


def growth(args: argparse.Namespace, name: str, runs: dict[tuple, Run]) -> list[str]:
    """Cost at the greatest length over cost at the least, of each form that reached it."""
    least, most = min(args.lengths), max(args.lengths)
    lines = []
    for (length, form), run in runs.items():
        if length == most and run.ms:
            base = runs[least, form]
            ratio = min(run.ms) / min(base.ms)
            cost = f"time x {ratio:.2f}, memory x {run.mib / base.mib:.2f}"
            if jax.default_backend() == "cpu":
                ratio = min(run.processor_ms) / min(base.processor_ms)
                cost += f", processor time x {ratio:.2f}"
            lines.append(f"{name} {form}: {cost} from {least} to {most} tokens")
    return lines


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kinds", nargs="+", default=["linear", "linear_momentum", "delta"])
    parser.add_argument(
        "--lengths", type=int, nargs="+", default=[4096, 8192, 16384, 32768], help="ascending"
    )
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--groups", type=int, default=2, help="key/value heads")
    parser.add_argument("--queries", type=int, default=1, help="query heads of a group")
    parser.add_argument("--width", type=int, default=64, help="of keys and values")
    parser.add_argument("--chunk", type=int, default=attention.CHUNK)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--implementation", default="auto", choices=kernels.IMPLEMENTATIONS)
    parser.add_argument("--rounds", type=int, default=10, help="runs of each form, best counts")
    parser.add_argument("--seconds", type=float, default=2, help="after which a form stops early")
    parser.add_argument("--limit_gib", type=float, default=6, help="forms that need more are left")
    parser.add_argument("--peak_tflops", type=float, help="the device's matrix rate in this dtype")
    parser.add_argument("--peak_gbs", type=float, help="the device's memory bandwidth, GB/s")
    return parser.parse_args()


def main() -> None:
    args = parse()
    installed = importlib.util.find_spec("jla") is not None
    forms = ["chunked", "quadratic", "softmax"] + ["jla"] * installed
    if not installed:
        print("jax-linear-attention is not installed: no rows of it (it needs Python 3.12)")
    sizes = f"B={args.batch} G={args.groups} J={args.queries} K=V={args.width} C={args.chunk}"
    print(f"{jax.devices()[0].device_kind}, {args.dtype}, {sizes}, forward + backward")
    heads = ("ms", "MiB", "ms/chunked", "MiB/chunked", "differ")
    print(f"{'kind':15} {'form':10} {'length':>7} " + "{:>10} {:>9} {} {} {}".format(*heads))
    lines = []
    softmax: dict[tuple, Run] = {}  # the same for every kind: it runs beside the first one
    for name in args.kinds:
        others = [form for form in forms if not (softmax and form == "softmax")]
        runs = softmax | run_kind(args, KINDS[name], others)
        softmax = {key: run for key, run in runs.items() if key[1] == "softmax"}
        print_rows(args, name, runs)
        lines += growth(args, name, runs)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
