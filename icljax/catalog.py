"""Every setting, similarity, baseline, control and finetuning method, once.

Results, reports, figures, preflight and validation read it; an entry here is a column, a row, a
panel and a line there. What a metric computes is its entry's formula; what a control does is where
its name is a key, in `comparison.controls`.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Formula:
    """How a metric is computed from what is recorded of an example.

    Attributes:
        function: the name of a function of `icljax.metrics`; "": the array itself.
        reads: its arguments by name -> names of arrays in `comparison.pairs.recorded`.
        options: its other arguments.
    """

    function: str
    reads: dict[str, str]
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Metric:
    """What is measured of each example in each layer.

    Attributes:
        title: what it is called, in tables and above its panel.
        compared: what is compared, under the title of its panel.
        unit: of the vertical axis.
        guide: how to read it.
        formula: how it is computed.
        baselines: what stands beside it, of `BASELINES` -> how that is computed.
    """

    title: str
    compared: str
    unit: str
    guide: str
    formula: Formula
    baselines: dict[str, Formula] = field(default_factory=dict)


def _ranks(function: str, of: str, other: str, **options: Any) -> Formula:
    """A metric of two rankings of demonstration tokens, or of whole demonstrations."""
    reads = {"x": f"icl.{of}_weights", "y": f"{other}.{of}_weights", "mask": f"{of}_mask"}
    return Formula(function, reads, options)


_OUT = {"zsl": "zsl.attn_out", "ft": "ft.attn_out", "icl": "icl.attn_out"}
_MAPS = {"zsl": "zsl.scores", "ft": "ft.scores", "icl": "icl.scores", "mask": "query_mask"}
TOP_TOKENS, TOP_EXAMPLES = 100, 5


SIMILARITIES = {
    "sim_aou": Metric(
        "SimAOU",
        "attention output updates, ICL - ZSL and FT - ZSL",
        "Cosine",
        "the cosine between what ICL and what FT add to a layer's zero-shot attention output, each "
        "output scaled to length 1 first. 1: the same direction; 0: unrelated; -1: opposite. Look "
        "at the untrained models: scaling first raises the score even there.",
        Formula("sim_aou", _OUT),
        {
            # The update is added to the outputs as they are scaled.
            "random_update": Formula(
                "sim_aou",
                {"zsl": "zsl.unit_out", "ft": "random.unit_out", "icl": "icl.unit_out"},
                {"normalize": False},
            )
        },
    ),
    "sim_aou_unnormalized": Metric(
        "SimAOU, not normalised",
        "attention output updates, outputs not scaled",
        "Cosine",
        "the same without the scaling, which is the fairer of the two. Read it like SimAOU.",
        Formula("sim_aou", _OUT, {"normalize": False}),
        {
            "random_update": Formula(
                "sim_aou", _OUT | {"ft": "random.attn_out"}, {"normalize": False}
            )
        },
    ),
    "sim_am": Metric(
        "SimAM",
        "attention maps, ICL and FT",
        "Cosine",
        "the cosine between the attention scores of ICL and FT over the query's own tokens, for "
        "each head. 1: the same map; 0: unrelated. Both share the zero-shot map, so it is high "
        "anyway: only the gain over before finetuning (ZSL in FT's place) says something.",
        Formula("sim_am", {"icl": "icl.scores", "other": "ft.scores", "mask": "query_mask"}),
        {
            "before_finetuning": Formula(
                "sim_am", {"icl": "icl.scores", "other": "zsl.scores", "mask": "query_mask"}
            )
        },
    ),
    "sim_am_delta": Metric(
        "SimAM-delta",
        "attention map changes, ICL - ZSL and FT - ZSL",
        "Cosine",
        "the cosine between how ICL and how FT change the zero-shot attention scores. 1: the same "
        "change; 0: unrelated. Look at the random update and at the untrained models.",
        Formula("sim_am_delta", _MAPS),
        {"random_update": Formula("sim_am_delta", _MAPS | {"ft": "random.scores"})},
    ),
    "kendall": Metric(
        "Kendall, tokens",
        "ranking of demonstration tokens, ICL and FT",
        "Kendall's tau",
        "whether ICL's attention and FT's update rank the demonstration tokens alike. 1: the same "
        "order; 0: unrelated orders; -1: reversed. Look at the random weights and at the untrained "
        "models.",
        _ranks("kendall_tau", "token", "ft"),
        {"random_weights": _ranks("kendall_tau", "token", "random")},
    ),
    "kendall_example": Metric(
        "Kendall, demonstrations",
        "ranking of whole demonstrations, ICL and FT",
        "Kendall's tau",
        "the same with the weight of each whole demonstration. Longer demonstrations tend to "
        "get more weight in any setting, which can lift even random weights above 0: compare with "
        "those and with the untrained models.",
        _ranks("kendall_tau", "example", "ft"),
        {"random_weights": _ranks("kendall_tau", "example", "random")},
    ),
    "recall_tokens": Metric(
        "Recall, tokens",
        "ICL's top 100 tokens in FT's top 100",
        "Share, 0 to 1",
        "the share of the 100 tokens with the most weight in ICL that are among FT's 100. 1: all; "
        "0: none. Chance is far above 0 (100 of all tokens): compare with the random weights.",
        _ranks("topk_recall", "token", "ft", k=TOP_TOKENS),
        {"random_weights": _ranks("topk_recall", "token", "random", k=TOP_TOKENS)},
    ),
    "recall_examples": Metric(
        "Recall, demonstrations",
        "ICL's top 5 demonstrations in FT's top 5",
        "Share, 0 to 1",
        "the same for the 5 demonstrations with the most weight; here chance is higher still.",
        _ranks("topk_recall", "example", "ft", k=TOP_EXAMPLES),
        {"random_weights": _ranks("topk_recall", "example", "random", k=TOP_EXAMPLES)},
    ),
    "sim_update": Metric(
        "SimUpdate",
        "updates of the linear map, dW_ICL and dW_FT",
        "Cosine",
        "the cosine between the two updates of attention's linear map, softmax left out: dW_ICL = "
        "sum of v k^T over the demonstrations' tokens, dW_FT = what finetuning adds to the sum "
        "over the query's own tokens. 1: the same update; 0: unrelated. Look at the untrained "
        "models. update_share in results.json is each update's share of the norm, beside the "
        "zero-shot map's.",
        Formula("", {"": "update.cosine"}),
        {"random_icl": Formula("", {"": "update.cosine_random"})},
    ),
}

# How far finetuning goes from the zero-shot model: beside every similarity, which grows with it.
STEPS = {
    "step_output": Metric(
        "Step of attention outputs",
        "||FT - ZSL|| / ||ZSL|| of attention outputs",
        "Ratio",
        "how far finetuning moves a layer's attention output, beside its zero-shot norm. 0: not at "
        "all; 1: by as much as the output itself.",
        Formula("relative_change", {"start": "zsl.attn_out", "end": "ft.attn_out"}),
    ),
    "step_answers": Metric(
        "Step of answers",
        "KL(FT || ZSL) of the answer distribution",
        "Nats",
        "how far finetuning moves the distribution over the answers from the zero-shot one. 0: not "
        "at all.",
        Formula("kl_divergence", {"logp": "ft.logprob", "logq": "zsl.logprob"}),
    ),
}


@dataclass(frozen=True)
class Baseline:
    """What stands beside a similarity in every job.

    Attributes:
        title: what it is called.
        style: how figures draw it (`reports.plots`).
        suffix: of its array in examples.npz, after the metric's name.
    """

    title: str
    style: str
    suffix: str


BASELINES = {
    "random_update": Baseline("random update", "base dot", "random"),
    "random_weights": Baseline("random weights", "base dot", "random"),
    "random_icl": Baseline("random in ICL's place", "base dot", "random"),
    "before_finetuning": Baseline("before finetuning", "base", "before"),
}


def array_of(metric: str, baseline: str = "") -> str:
    """The name of a metric's array in examples.npz, or of a baseline's beside it."""
    return f"{metric}_{BASELINES[baseline].suffix}" if baseline else metric


def formulas() -> dict[str, Formula]:
    """Every array that is computed of each example, by its name."""
    found = {}
    for name, metric in (SIMILARITIES | STEPS).items():
        found[array_of(name)] = metric.formula
        found |= {array_of(name, b): formula for b, formula in metric.baselines.items()}
    return found


@dataclass(frozen=True)
class Control:
    """A control, in words.

    Attributes:
        title: what it is called, in tables and figures.
        short: the same in a few letters.
        guide: what it destroys, and what a score as high as the job's means.
        kind: what it changes, of `CONTROL_KINDS`.
        style: how figures draw it (`reports.plots`); its colour is its kind's.
    """

    title: str
    short: str
    guide: str
    kind: str
    style: str


CONTROLS = {
    "untrained": Control(
        "untrained model",
        "untrained model",
        "all weights drawn anew at random: nothing was learned. A similarity as high as this comes "
        "from the architecture, not from what training taught.",
        "model",
        "model dash thin",
    ),
    "untrained_keep_embeddings": Control(
        "untrained except embeddings",
        "embeddings kept",
        "the same, but embeddings and norms stay trained. A similarity as high as this needs no "
        "trained attention: that tokens are alike is enough.",
        "model",
        "model dot",
    ),
    "permuted_labels": Control(
        "permuted labels",
        "permuted labels",
        "the demonstrations have exchanged their labels, for ICL and FT both: which input has "
        "which label is lost. A similarity as high as this does not come from learning the task.",
        "data",
        "data",
    ),
    "flipped_labels": Control(
        "flipped labels",
        "flipped labels",
        "every label of the demonstrations is a wrong one (the next, round the end), for ICL and "
        "FT both: the opposite is taught. A similarity as high as this does not depend on what "
        "is taught.",
        "data",
        "data dash thin",
    ),
    "other_answers": Control(
        "another task's answers",
        "other answers",
        "each label is written as an answer of another task, for ICL and FT both: the answer words "
        "are lost. A similarity as high as this does not depend on the words that name the labels.",
        "data",
        "data dash",
    ),
    "shuffled_tokens": Control(
        "shuffled tokens",
        "shuffled tokens",
        "the tokens of each demonstration's input stand in random order, for ICL and FT both: "
        "grammar and template are lost. A similarity as high as this needs no readable "
        "demonstrations.",
        "data",
        "data dot",
    ),
    "perturbation": Control(
        "random perturbation",
        "perturbation",
        "instead of finetuning, random noise of the same norm is added to each key and value "
        "matrix: the direction of the update is lost. A similarity as high as this is owed to the "
        "size of the change alone.",
        "update",
        "update thin",
    ),
    "other_seed": Control(
        "FT of another seed",
        "FT of other seed",
        "ICL is compared with finetuning on the demonstrations of the next seed (at that seed's "
        "learning rate): that both see the same ones is lost. A similarity as high as this does "
        "not depend on which demonstrations were seen.",
        "update",
        "update dash",
    ),
}
# What controls change: the model's weights, the demonstrations (of the prompt and of finetuning),
# or what finetuning did to the weights.
CONTROL_KINDS = {
    "model": "Models that learned nothing",
    "data": "Demonstrations that teach something else",
    "update": "Changes of the weights in finetuning's place",
}
# What is compared: the query alone, demonstrations before it, finetuned on them.
SETTINGS = {"zsl": "ZSL", "icl": "ICL", "ft": "FT"}
# Of finetuning.
METHODS = {
    "gd": "gradient descent",
    "lcgd": "layer-causal gradient descent, read out after each block (LCGD)",
    "lcgd_attention": "layer-causal gradient descent, read out after attention (LCGD)",
}


@dataclass(frozen=True)
class Link:
    """What a pair of prompt and update is held against, with one link between the two cut.

    Attributes:
        title: what the pair is replaced by.
        question: what it means where the pair is surely above.
    """

    title: str
    question: str


LINKS = {
    "other_demonstrations": Link(
        "FT on other demonstrations",
        "does it matter which demonstrations finetuning saw?",
    ),
    "wrong_labels_ft": Link(
        "FT on wrong labels",
        "does it matter that finetuning saw right labels?",
    ),
    "wrong_labels_icl": Link(
        "ICL on wrong labels",
        "does it matter that the prompt had right labels?",
    ),
    "other_query": Link(
        "FT's update of another query",
        "is the update one of this query?",
    ),
    "nothing": Link(
        "0",
        "do ICL and FT share what right labels teach and wrong ones do not?",
    ),
}
# What is compared of prompts and updates, and where its pairs stand in `comparison.crossed.AXES`.
CROSSED = {
    "output": "SimAOU, not normalised",
    "map": "SimAM-delta",
    "label_output": "label contrast, attention outputs",
    "label_map": "label contrast, attention maps",
    "answers": "movement of answers",
}
