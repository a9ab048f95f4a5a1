"""What the papers report, as data, to stand beside what is measured here.

Sources: Dai et al., Findings of ACL 2023 (arXiv 2212.10559), its tables for fairseq GPT 1.3B and
2.7B, called the paper; Deutch et al., NAACL 2024 (arXiv 2311.07772), averages, called the revisit.
"""

from typing import NamedTuple

# Names and addresses, as reports cite them.
SOURCES = (
    ("Dai et al. 2023, the paper", "https://arxiv.org/abs/2212.10559"),
    ("Deutch et al. 2024, the revisit", "https://arxiv.org/abs/2311.07772"),
)


class Task(NamedTuple):
    """A task as the paper used it.

    Attributes:
        title: as the paper's tables call it.
        examples: evaluated.
        labels: to choose from.
        demonstrations: in the prompt and in finetuning.
    """

    title: str
    examples: int
    labels: int
    demonstrations: int


class Cell(NamedTuple):
    """The paper's numbers for one task and model; accuracies and `rec2ftp` in percent.

    Attributes:
        zsl, ft, icl: accuracy.
        rec2ftp: of what finetuning corrects, what ICL corrects too.
        sim_aou: similarity of attention output updates.
        sim_am_before, sim_am: similarity of attention maps, before and after finetuning.
        kendall: rank correlation of the attention to training tokens.
        seed, learning_rate: selected on the validation accuracy that is reported.
    """

    zsl: float
    ft: float
    icl: float
    rec2ftp: float
    sim_aou: float
    sim_am_before: float
    sim_am: float
    kendall: float
    seed: int
    learning_rate: float


TASKS = {
    "sst2": Task("SST2", 872, 2, 32),
    "sst5": Task("SST5", 1101, 5, 32),
    "mr": Task("MR", 1066, 2, 32),
    "subj": Task("Subj", 2000, 2, 32),
    "agnews": Task("AGNews", 7600, 4, 22),
    "cb": Task("CB", 56, 3, 19),
}

# size -> what the paper calls it.
MODELS = {"1.3b": "GPT 1.3B", "2.7b": "GPT 2.7B"}

# (task, size) -> numbers; a row is laid out as Cell.
CELLS = {
    ("sst2", "1.3b"): Cell(70.5, 73.9, 92.7, 91.84, 0.110, 0.555, 0.585, 0.192, 2, 0.0005),
    ("sst5", "1.3b"): Cell(39.3, 39.5, 45.0, 66.67, 0.080, 0.391, 0.404, 0.151, 5, 0.00016),
    ("mr", "1.3b"): Cell(65.9, 73.0, 89.0, 97.08, 0.222, 0.398, 0.498, 0.173, 5, 0.003),
    ("subj", "1.3b"): Cell(72.6, 77.8, 90.0, 87.17, 0.191, 0.378, 0.490, 0.181, 4, 0.003),
    ("agnews", "1.3b"): Cell(46.3, 65.3, 79.2, 83.08, 0.281, 0.152, 0.496, 0.190, 3, 0.2),
    ("cb", "1.3b"): Cell(37.5, 55.4, 57.1, 87.50, 0.234, 0.152, 0.177, 0.274, 3, 0.08),
    ("sst2", "2.7b"): Cell(71.4, 76.9, 95.0, 96.83, 0.195, 0.687, 0.687, 0.213, 7, 0.007),
    ("sst5", "2.7b"): Cell(35.9, 39.1, 46.5, 71.60, 0.323, 0.380, 0.492, 0.177, 5, 0.04),
    ("mr", "2.7b"): Cell(60.9, 80.0, 91.3, 95.83, 0.157, 0.314, 0.347, 0.264, 1, 0.001),
    ("subj", "2.7b"): Cell(75.2, 86.1, 90.3, 87.63, 0.212, 0.346, 0.374, 0.203, 4, 0.002),
    ("agnews", "2.7b"): Cell(39.8, 65.7, 80.3, 84.44, 0.333, 0.172, 0.485, 0.201, 3, 0.2),
    ("cb", "2.7b"): Cell(42.9, 57.1, 55.4, 100.0, 0.130, 0.228, 0.217, 0.225, 3, 0.01),
}

# What the paper chose from, by accuracy on the validation examples that it then reports.
SEARCHED_SEEDS = tuple(range(1, 8))
SEARCHED_RATES = tuple(
    float(f"{digit}e{power}") for power in (-1, -2, -3, -4) for digit in range(1, 10)
)

# Beside SimAOU and Kendall the paper shows random vectors: within these bounds, all tasks.
RANDOM = {"sim_aou": (-0.002, 0.003), "kendall": (-0.001, 0.001)}

# The revisit: (finetuned by gradient descent, by layer-causal gradient descent), averages.
REVISIT = {
    "sim_aou": (0.187, 0.279),
    "sim_aou_unnormalized": (0.102, 0.167),
    "sim_am": (0.435, 0.283),
    "sim_am_delta": (0.267, 0.336),
}


def size_of(model: str) -> str:
    """Which of the paper's models a name or folder means ("1.3b", "2.7b"), or "" for another.

    Only fairseq's dense models are the paper's: the name has to say so.
    """
    name = model.lower()
    return next((size for size in MODELS if "fairseq" in name and size in name), "")
