"""The whole comparison, same model, same tokens, same machine: icljax, and PyTorch twice.

The reference is the method of the paper's released code, written in PyTorch: the full prompt of
every example through the model, one at a time, hooks that take the intermediates, JSON-lines
record files, then NumPy and SciPy on what is read back from them. It is spared what that code
wastes without need: one pass serves all one-token answers, only the answer position's logits are
computed, the model is loaded once, zero-shot runs once for all seeds, training records are written
for the chosen rate only. It also gets its token ids ready, so that both see the same.

The peer (`--peer`) is PyTorch at its best on the same job: demonstrations are encoded once a seed
and stay in memory as keys and values, queries of one length are a batch, nothing is written, and
the metrics are computed in memory, SciPy's Kendall among them.

All run on the CPU, each in a process of its own: start-up, imports, compilation and memory count.
They also check each other: the last table says how far their results differ.

    python benchmarks/compare_reference.py --warm
"""

import argparse
import contextlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from icljax.errors import UserError

# Each process loads only what it measures; icljax and JAX are imported inside functions.
if TYPE_CHECKING or {"--role=reference", "--role=peer"} & set(sys.argv):
    import torch
    from scipy import stats
    from transformers import DynamicCache, LlamaForCausalLM
    from transformers.models.llama.modeling_llama import repeat_kv, rotate_half

Record = dict[str, np.ndarray]
FIELDS = ("attn_out", "scores_query", "scores_demo", "query")
PER_EXAMPLE = ("zsl", "icl", "ft", "write", "metrics", "records")  # what extrapolation scales
# A row of the table: what, and which measured figures of icljax and of the reference it sums.
ROWS = (
    ("start-up and imports", "start", "start"),
    ("model and weights", "model weights", "model"),
    ("data and prompts", "prompts", ""),
    ("finetune, select rates", "finetune", "finetune select"),
    ("  finetune", "", "finetune"),
    ("  score selection examples", "", "select"),
    ("settings, records, metrics", "encode compare", "zsl icl ft write train_w metrics train_r"),
    ("  ZSL passes", "", "zsl"),
    ("  ICL passes", "", "icl"),
    ("  FT passes", "", "ft"),
    ("  write records", "", "write train_w"),
    ("  read records, metrics", "", "metrics train_r"),
    ("statistics, report, figures", "report", ""),
    ("total", "wall", "wall"),
    ("CPU time, all cores", "cpu", "cpu"),
    ("peak memory, MiB", "memory", "memory"),
    ("records on disk, MiB", "records", "records train_records"),
)
TORCH = ("reference", "peer")
_seconds: dict[str, float] = defaultdict(float)


# ---- What both are given, and icljax -----------------------------------------------------------


def make_config(args: argparse.Namespace) -> Any:
    """configs/mr.py in paper mode, with the flags that were given."""
    from icljax.experiments import config as config_lib

    file = Path(__file__).resolve().parents[1] / "configs" / "mr.py"
    config = runpy.run_path(str(file))["get_config"]()
    config.mode, config.selection.split, config.select_seed = "paper", "train", False
    config.record_position, config.metrics.random_update = "answer", "gaussian"
    config.eval.num_examples = args.num_examples
    config.selection.num_examples = args.selection
    config.num_demonstrations = args.demonstrations
    config.seeds = tuple(args.seeds or config.seeds)
    config.finetune.learning_rates = tuple(args.learning_rates or config.finetune.learning_rates)
    config_lib.validate(config)
    return config


def unpack(queries: Any) -> list[list[int]]:
    """Token ids of each packed query, in the order of the examples."""
    found = {}
    for batch, row, slot in np.argwhere(queries.example >= 0):
        own = (queries.segment[batch, row] == slot) & (queries.branch[batch, row] == 0)
        found[int(queries.example[batch, row, slot])] = queries.tokens[batch, row][own].tolist()
    return [found[i] for i in range(len(found))]


def prepare(args: argparse.Namespace, folder: Path) -> None:
    """Writes the token ids of the job; fetches and converts the model where it is new."""
    from icljax import checkpoints
    from icljax.comparison import inputs
    from icljax.runtime import downloads

    config = make_config(args)
    checkpoint = checkpoints.open_checkpoint(config.model)
    checkpoints.fingerprint(checkpoint.folder)  # reads the weights: nobody finds them cold on disk
    prepared = inputs.prepare(config, checkpoint, print)
    d = prepared.demonstrations
    given = {
        "cache": str(downloads.cache_dir()),
        "model": str(checkpoint.folder),
        "learning_rates": list(config.finetune.learning_rates),
        "bos": list(prepared.encoder.bos),
        "answers": [list(a) for a in prepared.encoder.answers],
        "selection": unpack(prepared.selection),
        "selection_labels": prepared.selection_labels.tolist(),
        "evaluation": unpack(prepared.evaluation),
        "labels": prepared.labels.tolist(),
        "seeds": [
            {
                "train": [d.train[r, e, :n].tolist() for e, n in enumerate(d.train_length[r]) if n],
                "context": d.context[r][d.context_valid[r]].tolist(),
                "columns": d.columns[r][d.example[r] >= 0].tolist(),
            }
            for r in range(len(config.seeds))
        ],
    }
    (folder / "tokens.json").write_text(json.dumps(given))


def run_ours(args: argparse.Namespace, folder: Path) -> None:
    from rich.console import Console

    from icljax.experiments import compare
    from icljax.runtime import processes

    processes.set_up()
    compare.run(make_config(args), folder / args.role, Console(stderr=True))


# ---- The reference: passes and records ---------------------------------------------------------


@contextlib.contextmanager
def clock(stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    _seconds[stage] += time.perf_counter() - start


@contextlib.contextmanager
def watch(modules: list[Any], tokens: slice) -> Iterator[dict[Any, Any]]:
    """Keeps the modules' outputs [tokens, features], by forward hooks."""
    seen: dict[Any, Any] = {}

    def keep(module: Any, _: Any, out: Any) -> None:
        seen[module] = out[0, tokens].detach().clone()

    hooks = [module.register_forward_hook(keep) for module in modules]
    yield seen
    for hook in hooks:
        hook.remove()


def attentions(model: Any) -> list[Any]:
    return [layer.self_attn for layer in model.model.layers]


def next_logprob(model: Any, tokens: list[int], places: int = 1) -> "torch.Tensor":
    """Log-probabilities [places, V] of what follows each of the last tokens."""
    out = model(torch.tensor([tokens]), use_cache=False, logits_to_keep=places)
    return out.logits[0].log_softmax(-1)


def answer_logprob(
    model: Any, prompt: list[int], answers: list[list[int]], first: "torch.Tensor"
) -> list[float]:
    """Mean log-probability of each answer's tokens; `first` [1, V] is of the prompt's next."""
    out = []
    for answer in answers:  # another pass only where an answer has several tokens
        n = len(answer)
        places = first if n == 1 else next_logprob(model, prompt + answer[:-1], n)
        out.append(float(places[torch.arange(n), answer].mean()))
    return out


def study(
    model: Any, prompt: list[int], start: int, columns: list[int]
) -> tuple["torch.Tensor", Record]:
    """One pass: log-probabilities [1, V] of the next token; the last token's FIELDS [L, ...].

    The query's own tokens are those from `start` on; the demonstrations' are at `columns`.
    """
    layers, records = attentions(model), []
    ends = [m for a in layers for m in (a.q_proj, a.o_proj)]
    with watch(ends, slice(-1, None)) as end, watch([a.k_proj for a in layers], slice(None)) as key:
        logprob = next_logprob(model, prompt)
    cos, sin = model.model.rotary_emb(logprob, torch.arange(len(prompt))[None])
    for a in layers:
        query = end[a.q_proj][0] * a.scaling
        q = query.view(1, -1, 1, a.head_dim)
        k = key[a.k_proj].view(1, len(prompt), -1, a.head_dim).transpose(1, 2)
        q = q * cos[:, -1:] + rotate_half(q) * sin[:, -1:]
        k = repeat_kv(k * cos + rotate_half(k) * sin, a.num_key_value_groups)
        scores = (q @ k.mT)[0, :, 0]  # [H, S]
        to_demo = scores[:, columns].sum(0)
        records.append((end[a.o_proj][0], scores[:, start:], to_demo, query))
    stacked = (torch.stack(x).numpy() for x in zip(*records, strict=True))
    return logprob, dict(zip(FIELDS, stacked, strict=True))


def to_line(record: Record) -> str:
    return json.dumps({name: value.tolist() for name, value in record.items()}) + "\n"


def read_records(path: Path) -> Iterator[Record]:
    with path.open() as file:
        for line in file:
            yield {name: np.array(value) for name, value in json.loads(line).items()}


def pass_all(model: Any, setting: str, path: Path, given: Any, seed: Any) -> list[list[float]]:
    """A setting's pass over all examples: writes records, returns [N, Y] log-probabilities."""
    context, columns = (seed["context"], seed["columns"]) if seed else (given["bos"], [])
    needed = {"zsl": FIELDS[:2], "icl": FIELDS[:3], "ft": (*FIELDS[:2], "query")}[setting]
    out = []
    with path.open("w") as file, torch.inference_mode():
        for query in given["evaluation"]:
            prompt = context + query
            with clock(setting):
                first, record = study(model, prompt, len(context), columns)
                out.append(answer_logprob(model, prompt, given["answers"], first))
            with clock("write"):
                file.write(to_line({name: record[name] for name in needed}))
    return out


# ---- The reference: finetuning -----------------------------------------------------------------


def set_weights(trained: list[Any], values: list[Any]) -> None:
    with torch.no_grad():
        for parameter, value in zip(trained, values, strict=True):
            parameter.copy_(value)


def finetune(
    model: Any, trained: list[Any], examples: list[list[int]], rate: float, bos: int
) -> tuple[float, list[np.ndarray]]:
    """One epoch of SGD: (mean loss, each example's query vectors [L, tokens, H * dh])."""
    optimizer, layers = torch.optim.SGD(trained, rate), attentions(model)
    losses, queries = [], []
    with watch([a.q_proj for a in layers], slice(bos, None)) as seen:
        for example in examples:
            tokens = torch.tensor([example])
            loss = model(tokens, labels=tokens, use_cache=False).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            queries.append(torch.stack([seen[a.q_proj] * a.scaling for a in layers]).numpy())
    return float(np.mean(losses)), queries


def score_selection(model: Any, given: Any, batched: bool) -> tuple[float, float]:
    """(accuracy, minus nll of the right answer among the answers) on the selection examples."""
    rows = []
    with torch.inference_mode():
        for places in by_length(given["selection"], 1024 if batched else 1):
            prompts = [given["bos"] + given["selection"][i] for i in places]
            out = model(torch.tensor(prompts), use_cache=False, logits_to_keep=1)
            first = out.logits.log_softmax(-1)
            for place, prompt, logprob in zip(places, prompts, first, strict=True):
                rows.append((place, answer_logprob(model, prompt, given["answers"], logprob)))
    logprob, labels = (
        np.array([row for _, row in sorted(rows)]),
        np.array(given["selection_labels"]),
    )
    right = logprob[np.arange(len(labels)), labels] - np.logaddexp.reduce(logprob, -1)
    return float(np.mean(logprob.argmax(-1) == labels)), float(np.mean(right))


def choose_rate(
    model: Any, trained: list[Any], base: list[Any], given: Any, seed: Any, batched: bool = False
) -> tuple[float, list[Any], list[np.ndarray]]:
    """Finetunes at every rate: (the best rate, its weights, its training queries)."""
    best: Any = None
    for rate in given["learning_rates"]:
        set_weights(trained, base)
        with clock("finetune"):
            loss, queries = finetune(model, trained, seed["train"], rate, len(given["bos"]))
        with clock("select"):
            rank = score_selection(model, given, batched)
        if np.isfinite([loss, *rank]).all() and (best is None or rank > best[0]):
            best = rank, rate, [p.detach().clone() for p in trained], queries
    if best is None:
        raise UserError("the reference diverged at every rate; give smaller --learning_rates")
    return best[1:]


# ---- The reference: metrics, and all of it -----------------------------------------------------


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.sum(a * b, -1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))


def kendall(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.array([stats.kendalltau(x, y).statistic for x, y in zip(a, b, strict=True)])


def similarities(
    zsl: Record, icl: Record, ft: Record, training: np.ndarray, rng: np.random.Generator
) -> Record:
    """Of one example, [L] each; `training` [L, T, H * dh] are the training tokens' queries."""
    outputs = (r["attn_out"] for r in (zsl, icl, ft))
    z, i, f = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in outputs)
    demo, scores = icl["scores_demo"], icl["scores_query"]
    return {
        "sim_aou": cosine(i - z, f - z),
        "sim_aou_random": cosine(i - z, rng.standard_normal(z.shape)),
        "sim_am_before": cosine(scores, zsl["scores_query"]).mean(-1),
        "sim_am": cosine(scores, ft["scores_query"]).mean(-1),
        "kendall": kendall(demo, np.einsum("lte,le->lt", training, ft["query"])),
        "kendall_random": kendall(demo, rng.standard_normal(demo.shape)),
    }


def measure(records: Path, num_seeds: int) -> Record:
    """All similarities [R, N, L] from the record files."""
    rng, per_seed = np.random.default_rng(0), []
    for s in range(num_seeds):
        with clock("train_r"):
            queries = [r["query"] for r in read_records(records / f"train{s}.jsonl")]
            training = np.concatenate(queries, 1)
        with clock("metrics"):
            settings = (read_records(records / f"{n}.jsonl") for n in ("zsl", f"icl{s}", f"ft{s}"))
            triples = zip(*settings, strict=True)
            rows = [similarities(zsl, icl, ft, training, rng) for zsl, icl, ft in triples]
            per_seed.append({name: np.stack([row[name] for row in rows]) for name in rows[0]})
    return {name: np.stack([seed[name] for seed in per_seed]) for name in per_seed[0]}


def load_reference(given: Any) -> tuple[Any, list[Any], list[Any]]:
    """(the model, its key and value parameters, copies of them)."""
    model: Any = LlamaForCausalLM.from_pretrained(
        given["model"], attn_implementation="eager", dtype=torch.float32
    )
    model.requires_grad_(False)
    modules = [m for a in attentions(model) for m in (a.k_proj, a.v_proj)]
    trained = [p.requires_grad_(True) for m in modules for p in m.parameters()]
    return model, trained, [p.detach().clone() for p in trained]


def run_reference(args: argparse.Namespace, folder: Path) -> None:
    torch.set_num_threads(os.cpu_count() or 1)
    given = json.loads((folder / "tokens.json").read_text())
    given["evaluation"] = given["evaluation"][: args.reference_examples]
    (records := folder / "records").mkdir()
    with clock("model"):
        model, trained, base = load_reference(given)
    # Zero-shot results are the same for every seed, so once is enough.
    zsl = pass_all(model, "zsl", records / "zsl.jsonl", given, None)
    rates, icl, ft = [], [], []
    for s, seed in enumerate(given["seeds"]):
        rate, weights, queries = choose_rate(model, trained, base, given, seed)
        rates.append(rate)
        with clock("train_w"), (records / f"train{s}.jsonl").open("w") as file:
            file.writelines(to_line({"query": query}) for query in queries)
        set_weights(trained, weights)
        ft.append(pass_all(model, "ft", records / f"ft{s}.jsonl", given, None))
        set_weights(trained, base)
        icl.append(pass_all(model, "icl", records / f"icl{s}.jsonl", given, seed))
    arrays = measure(records, len(rates))
    for name, logprob in (("zsl", zsl), ("icl", icl), ("ft", ft)):
        arrays[f"logprob_{name}"] = np.array(logprob)
    np.savez(folder / "reference.npz", allow_pickle=False, **arrays)
    (folder / "reference.json").write_text(json.dumps({"seconds": _seconds, "rates": rates}))


# ---- The peer ----------------------------------------------------------------------------------

Cached = list[tuple[Any, Any]]  # keys and values [1, G, S, K] of each layer


def encode(model: Any, tokens: list[int]) -> Cached:
    """What a prompt leaves behind; of an empty one nothing."""
    if not tokens:
        return []
    past: Any = DynamicCache()
    with torch.inference_mode():
        model(torch.tensor([tokens]), past_key_values=past, logits_to_keep=1)
    return [(layer.keys, layer.values) for layer in past.layers]


def study_batch(
    model: Any, queries: "torch.Tensor", context: Cached, columns: list[int]
) -> tuple["torch.Tensor", dict[str, "torch.Tensor"]]:
    """As `study` of queries [B, T] after a context: log-probabilities [B, V], FIELDS [B, ...]."""
    layers, (batch, length), records = attentions(model), queries.shape, []
    past: Any = DynamicCache()
    start = context[0][0].shape[2] if context else 0
    for number, pair in enumerate(context):
        past.update(*(x.expand(batch, -1, -1, -1) for x in pair), number)
    ends = [m for a in layers for m in (a.q_proj, a.o_proj)]
    seen: dict[Any, Any] = {}
    hooks = [m.register_forward_hook(lambda m, _, out: seen.update({m: out[:, -1]})) for m in ends]
    out = model(queries, past_key_values=past, logits_to_keep=1).logits[:, -1]
    for hook in hooks:
        hook.remove()
    cos, sin = model.model.rotary_emb(out, torch.tensor([[start + length - 1]]))
    for a, cached in zip(layers, past.layers, strict=True):
        query = seen[a.q_proj] * a.scaling
        q = query.view(batch, -1, 1, a.head_dim)
        q = q * cos + rotate_half(q) * sin
        scores = (q @ repeat_kv(cached.keys, a.num_key_value_groups).mT)[:, :, 0]  # [B, H, S]
        to_demo = scores[..., columns].sum(1)
        records.append((seen[a.o_proj], scores[..., start:], to_demo, query))
    stacked = (torch.stack(x, 1) for x in zip(*records, strict=True))
    return out.log_softmax(-1), dict(zip(FIELDS, stacked, strict=True))


def by_length(queries: list[list[int]], most: int = 1024) -> Iterator[list[int]]:
    """Places of queries of one length, at most so many tokens together."""
    places = defaultdict(list)
    for place, query in enumerate(queries):
        places[len(query)].append(place)
    for length, all_of in places.items():
        size = max(1, most // length)
        yield from (all_of[i : i + size] for i in range(0, len(all_of), size))


def read_batches(
    model: Any, queries: list[list[int]], context: Cached, columns: list[int]
) -> tuple["torch.Tensor", list[Any]]:
    """(log-probabilities [N, V], each example's FIELDS [L, ...])."""
    logprob: list[Any] = [None] * len(queries)
    records: list[Any] = [None] * len(queries)
    with torch.inference_mode():
        for places in by_length(queries):
            tokens = torch.tensor([queries[i] for i in places])
            out, found = study_batch(model, tokens, context, columns)
            for number, place in enumerate(places):
                logprob[place] = out[number]
                records[place] = {name: x[number].numpy() for name, x in found.items()}
    return torch.stack(logprob), records


def run_peer(args: argparse.Namespace, folder: Path) -> None:
    torch.set_num_threads(os.cpu_count() or 1)
    given = json.loads((folder / "tokens.json").read_text())
    if any(len(answer) > 1 for answer in given["answers"]):
        raise UserError("the peer scores answers of one token; give a task that has such")
    answers = [answer for (answer,) in given["answers"]]
    with clock("model"):
        model, trained, base = load_reference(given)
    bos = encode(model, given["bos"])
    rng, rates, results = np.random.default_rng(0), [], defaultdict(list)
    with clock("zsl"):
        zsl, of_zsl = read_batches(model, given["evaluation"], bos, [])
    for seed in given["seeds"]:
        rate, weights, queries = choose_rate(model, trained, base, given, seed, batched=True)
        rates.append(rate)
        set_weights(trained, weights)
        with clock("ft"):
            ft, of_ft = read_batches(model, given["evaluation"], encode(model, given["bos"]), [])
        set_weights(trained, base)
        with clock("icl"):
            context = encode(model, seed["context"])
            icl, of_icl = read_batches(model, given["evaluation"], context, seed["columns"])
        with clock("metrics"):
            training = np.concatenate(queries, 1)
            triples = zip(of_zsl, of_icl, of_ft, strict=True)
            rows = [similarities(*triple, training, rng) for triple in triples]
        for name in rows[0]:
            results[name].append(np.stack([row[name] for row in rows]))
        results["logprob_icl"].append(icl[:, answers].numpy())
        results["logprob_ft"].append(ft[:, answers].numpy())
    arrays = {name: np.stack(values) for name, values in results.items()}
    arrays["logprob_zsl"] = zsl[:, answers].numpy()
    np.savez(folder / "peer.npz", allow_pickle=False, **arrays)
    (folder / "peer.json").write_text(json.dumps({"seconds": _seconds, "rates": rates}))


# ---- All of them, and the report ----------------------------------------------------------------


def mebibytes(files: Iterable[Path]) -> float:
    return sum(file.stat().st_size for file in files) / 2**20


def start(role: str, folder: Path, cache: str | None = None) -> dict[str, float]:
    """Runs one role of this file in a process of its own; seconds, and MiB of memory at most."""
    print(f"running: {role}", file=sys.stderr, flush=True)
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "2"}
    environment |= {"ICLJAX_CACHE": cache} if cache else {}
    command = [sys.executable, __file__, *sys.argv[1:], f"--role={role}", f"--folder={folder}"]
    begin = time.perf_counter()
    process = subprocess.Popen(command, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise UserError(f"the process {role!r} ended with code {process.returncode}; see above")
    cpu, memory = usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024
    return {"wall": wall, "cpu": cpu, "memory": memory}


def finish(figures: dict[str, float], result: Path, records: list[Path]) -> dict[str, float]:
    """Adds to a process's figures the seconds of its stages and what it recorded."""
    stages = json.loads(result.read_text())["seconds"]
    train = [file for file in records if file.name.startswith("train")]
    sizes = {"records": mebibytes(set(records) - set(train)), "train_records": mebibytes(train)}
    return {**figures, **stages, "start": figures["wall"] - sum(stages.values()), **sizes}


def extrapolate(figures: dict[str, float], factor: float) -> dict[str, float]:
    """What it would have been for all examples; CPU time is taken to grow as wall time does."""
    out = {k: v * (factor if k in PER_EXAMPLE else 1) for k, v in figures.items()}
    out["wall"] += sum(out[k] - figures[k] for k in PER_EXAMPLE if k != "records")
    out["cpu"] *= out["wall"] / figures["wall"]
    return out


def show_figures(figures: dict[str, dict[str, float]]) -> None:
    print(f"\n{'seconds':<30}" + "".join(f"{name:>13}" for name in figures))
    for label, *keys in ROWS:
        cells = []
        for name, measured in figures.items():
            own = [measured[k] for k in keys[name in TORCH].split() if k in measured]
            cells.append(f"{sum(own):13,.1f}" if own else f"{'':13}")
        print(f"{label:<30}{''.join(cells)}".rstrip())
    for other in (name for name in TORCH if name in figures):
        for name in (name for name in figures if name not in TORCH):
            wall, cpu = (figures[other][k] / figures[name][k] for k in ("wall", "cpu"))
            print(f"{name}: {wall:.1f} x faster than the {other} ({cpu:.1f} x less CPU time)")


def load_results(file: Path, labels: np.ndarray) -> Record:
    """The numbers of one side on the first examples: [N, ...] for ZSL, else [R, N, ...]."""
    with np.load(file) as arrays:
        out = {k: v[:, : len(labels)] for k, v in arrays.items() if k.startswith(("sim", "kend"))}
        # The first layer's queries know only their own token: repeated tokens tie, up to rounding.
        out["kendall after first"] = out["kendall"][..., 1:]
        for s in ("zsl", "icl", "ft"):
            out[f"logprob_{s}"] = arrays[f"logprob_{s}"][..., : len(labels), :]
            out[f"accuracy_{s}"] = (out[f"logprob_{s}"].argmax(-1) == labels).astype(float)
    ft_only = (out["accuracy_zsl"] == 0) & (out["accuracy_ft"] == 1)
    out["rec2ftp"] = 100 * out["accuracy_icl"][ft_only]
    return out


def show_agreement(folder: Path, labels: np.ndarray, other: str) -> None:
    """Prints the results of both, and the largest difference at any example (and layer)."""
    files = folder / "icljax" / "examples.npz", folder / f"{other}.npz"
    ours, theirs = (load_results(file, labels) for file in files)
    selection = json.loads((folder / "icljax" / "results.json").read_text())["selection"]
    rates = selection["learning_rate"], json.loads((folder / f"{other}.json").read_text())["rates"]
    same = np.equal(*rates)
    print(f"\nlearning rate of each seed: icljax {rates[0]}, {other} {rates[1]}")
    if not same.all():
        print("RATES DIFFER: differences below are over the seeds with the same rate only")
    print(f"{'mean over ' + str(len(labels)):<20}{'icljax':>12}{other:>12}  largest difference")
    for name, b in theirs.items():
        a, largest = ours[name], ""
        if not name.endswith("_random") and name != "rec2ftp" and same.any():
            seeds = slice(None) if name.endswith("_zsl") else same
            largest = f"{np.abs(a[seeds] - b[seeds]).max():.1e}"
        means = "".join(f"{x.mean():12.4f}" if x.size else f"{'undefined':>12}" for x in (a, b))
        print(f"{name:<20}{means}{largest:>20}".rstrip())


def run_both(args: argparse.Namespace, folder: Path) -> None:
    load, cores = os.getloadavg()[0], os.cpu_count()
    print(f"load before: {load:.1f} on {cores} cores (PyTorch suffers most of a busy machine)")
    start("prepare", folder)
    given = json.loads((folder / "tokens.json").read_text())
    (cache := folder / "cache").mkdir()
    for entry in Path(given["cache"]).iterdir():
        if entry.name != "xla":  # the same model and data, but nothing compiled
            (cache / entry.name).symlink_to(entry)
    figures = {}
    for role in ("icljax", "icljax-warm") if args.warm else ("icljax",):
        taken = start(role, folder, str(cache))
        done = folder / role
        figures[role] = finish(taken, done / "results.json", [done / "examples.npz"])
    if args.peer:
        figures["peer"] = finish(start("peer", folder), folder / "peer.json", [])
    taken = start("reference", folder)
    taken = finish(taken, folder / "reference.json", list((folder / "records").iterdir()))
    labels = np.array(given["labels"])[: args.reference_examples]
    factor = len(given["labels"]) / len(labels)
    if factor > 1:
        print(
            f"\nEXTRAPOLATED: the reference read {len(labels)} of {len(given['labels'])} examples; "
            f"its passes, records and metrics (but training records) are shown times {factor:.2f}"
        )
    figures["reference"] = extrapolate(taken, factor)
    show_figures(figures)
    for name in (name for name in TORCH if name in figures):
        show_agreement(folder, labels, name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--num_examples", type=int, default=200, help="evaluated")
    parser.add_argument("--selection", type=int, default=64, help="examples that select rates")
    parser.add_argument("--demonstrations", type=int, default=16)
    parser.add_argument("--seeds", type=int, nargs="+", help="default: as in configs/mr.py")
    parser.add_argument("--learning_rates", type=float, nargs="+", help="default: the same")
    parser.add_argument("--reference_examples", type=int, help="only N, scaled up; default: all")
    parser.add_argument("--warm", action="store_true", help="icljax again, with all compiled")
    parser.add_argument("--peer", action="store_true", help="PyTorch at its best, too")
    parser.add_argument("--role", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    try:
        if args.reference_examples is not None and args.reference_examples < 1:
            raise UserError(f"--reference_examples is {args.reference_examples}; give 1 or more")
        if args.role is None:
            with tempfile.TemporaryDirectory() as folder:
                run_both(args, Path(folder))
            return
        roles = {"prepare": prepare, "reference": run_reference, "peer": run_peer}
        roles.get(args.role, run_ours)(args, args.folder)
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
