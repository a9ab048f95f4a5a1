"""Every setting, similarity, baseline, variant, link and finetuning method, once.

Results, reports, figures, preflight and validation read it; an entry here is a column, a row, a
panel and a line there. What a metric computes is its entry's formula; what a variant does is where
its name is a key, in `comparison.changes`.
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
        "output scaled to length 1 first. 1: the same direction; 0: unrelated; -1: opposite. "
        "Scaling first raises the score in any model; a random output in FT's place scores above "
        "0 too.",
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
        "change; 0: unrelated.",
        Formula("sim_am_delta", _MAPS),
        {"random_update": Formula("sim_am_delta", _MAPS | {"ft": "random.scores"})},
    ),
    "kendall": Metric(
        "Kendall, tokens",
        "ranking of demonstration tokens, ICL and FT",
        "Kendall's tau",
        "whether ICL's attention and FT's update rank the demonstration tokens alike. 1: the same "
        "order; 0: unrelated orders; -1: reversed.",
        _ranks("kendall_tau", "token", "ft"),
        {"random_weights": _ranks("kendall_tau", "token", "random")},
    ),
    "kendall_example": Metric(
        "Kendall, demonstrations",
        "ranking of whole demonstrations, ICL and FT",
        "Kendall's tau",
        "the same with the weight of each whole demonstration. Longer demonstrations tend to "
        "get more weight in any setting, which can lift even random weights above 0: compare with "
        "those.",
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
        "over the query's own tokens. 1: the same update; 0: unrelated. update_share "
        "in results.json is each update's share of the norm, beside the zero-shot map's.",
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
class Variant:
    """Demonstrations that teach something else, in words.

    Attributes:
        title: what it is called, in tables and figures.
        guide: what is changed, for ICL and FT both where both have it.
    """

    title: str
    guide: str


VARIANTS = {
    "permuted_labels": Variant(
        "permuted labels",
        "the demonstrations have exchanged their labels at random: which input has which label is "
        "lost, though about half of two classes' labels stay right.",
    ),
    "flipped_labels": Variant(
        "flipped labels",
        "every label of the demonstrations is a wrong one (the next, round the end): the opposite "
        "is taught.",
    ),
    "other_answers": Variant(
        "another task's answers",
        "each label is written as an answer of another task: the answer words are lost.",
    ),
    "shuffled_tokens": Variant(
        "shuffled tokens",
        "the tokens of each demonstration's input stand in random order: grammar and template are "
        "lost.",
    ),
}
# Whose weights a job runs on.
WEIGHTS = {
    "trained": "trained model",
    "untrained": "untrained model",
    "untrained_keep_embeddings": "untrained except embeddings",
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
    "random_step": Link(
        "a random step of the same size",
        "is it more than any step of this size on these inputs?",
    ),
    "weight_noise": Link(
        "noise of the same size in the weights",
        "is it more than any change of this size?",
    ),
    "untrained": Link(
        "a model that learned nothing",
        "does it take a trained model?",
    ),
    "nothing": Link(
        "0",
        "do ICL and FT share what right labels teach and wrong ones do not?",
    ),
}
# Links whose updates no loss has made (`comparison.synthetic`).
SYNTHETIC = ("random_step", "weight_noise")
# Links that need demonstrations with wrong labels.
OF_LABELS = ("wrong_labels_ft", "wrong_labels_icl", "nothing")


@dataclass(frozen=True)
class Measure:
    """What is compared of prompts and updates.

    Attributes:
        title: what it is called.
        guide: which question it answers, and which links test it.
    """

    title: str
    guide: str


# By where its pairs stand in `comparison.crossed.AXES`.
CROSSED = {
    "output": Measure(
        "SimAOU, not normalised",
        "do prompt and update change attention's output in the same direction? The cosine of both "
        "changes. Every link tests it; a random step of the same size scores 0 where directions "
        "are unrelated.",
    ),
    "map": Measure(
        "SimAM-delta",
        "do they change alike which of its own tokens the query attends to? The cosine of both "
        "changes of the attention scores, mean over heads. Every link but another query's update "
        "tests it, since two queries have no tokens in common.",
    ),
    "kendall": Measure(
        "Kendall, tokens",
        "do they rank the demonstrations' tokens alike? Only pairs of one seed rank the same "
        "tokens: wrong labels and another query test it, the latter for what a token's identity "
        "and place alone give.",
    ),
    "label_output": Measure(
        "label contrast, attention outputs",
        "do they share what right labels change beside wrong ones? The cosine of both differences "
        "in attention's output; it is held against 0, and layer by layer.",
    ),
    "label_map": Measure(
        "label contrast, attention maps",
        "the same of attention's maps.",
    ),
    "answers": Measure(
        "movement of answers",
        "do they move the same queries towards the same answers? The correlation over queries of "
        "how far each label's log-probability moves from zero-shot. All links but another query's "
        "update test it.",
    ),
    "label_answers": Measure(
        "label contrast, answers",
        "do they share how right labels move the answers beside wrong ones? The same correlation, "
        "with wrong labels in zero-shot's place; held against 0.",
    ),
}
