"""Many comparisons -> one report: crossed claims, the paper's tables, and figures."""

from collections.abc import Sequence

from icljax.catalog import CROSSED, SIMILARITIES
from icljax.reports import crossed, paper, tables
from icljax.reports.baselines import TITLES
from icljax.reports.crossed_figures import layers_beside
from icljax.reports.document import Block, Figure, Items, Report, Section, section
from icljax.reports.study import Group, main_groups, task_columns
from icljax.reports.study_figures import study_figures
from icljax.reports.text import weights

QUESTION = "Does in-context learning behave like finetuning?"
_ABOUT = (
    "A language model can learn a task from examples in its prompt (in-context learning, ICL) or "
    "by having its weights trained on them (finetuning, FT). Dai et al. (2023) found the two alike "
    "by four measures. A likeness alone does not say that ICL acts like finetuning on these "
    "demonstrations: any change of a model may be alike. Crossed comparisons hold each likeness "
    "against pairs in which one link between the two is cut."
)


def report(groups: Sequence[Group]) -> Report:
    """The report of many jobs."""
    of_model: list[Block] = []
    for group in main_groups(groups):
        models = [r.model for r in group.measured().values()]
        models += [r.model for r in group.crossed().values()]
        of_model += sorted({text for model in models if (text := weights(model))})
    plain = [group for group in groups if not group.crossed()]
    measured = [group for group in groups if group.measured()]
    tasks = task_columns(groups)
    drawn = study_figures(groups)

    def of(*kinds: str) -> list[Figure]:
        return [f for f in drawn if f.key.startswith(tuple(f"{kind}-" for kind in kinds))]

    doses = [tables.dose_table(group, tasks) for group in measured]
    sections = (
        _crossed_section(groups),
        section("dose", "Dose and response", *of("dose"), *doses),
        section("layers", "Layer by layer", *of(*(f"layers-{n}" for n in TITLES))),
        section(
            "accuracy",
            "The paper's tables, beside ours",
            *of("accuracy"),
            *(tables.paper_tables(plain) if measured else ()),
        ),
        section("lcgd", "Layer-causal gradient descent", *of("lcgd"), tables.lcgd_table(groups)),
        section("missing", "What is missing", tables.missing_table(groups)),
        _reading_section(bool(measured)),
    )
    kept = tuple(s for s in sections if s.blocks)
    return Report(QUESTION, (_ABOUT, *of_model), kept, paper.SOURCES)


def _crossed_section(groups: Sequence[Group]) -> Section:
    """The claims of every crossed comparison."""
    made: list[Block] = []
    for group in groups:
        found = group.crossed()
        if found:
            made.append(crossed.study_table(group.key("crossed"), group.title, found))
        if contrasted := {task: job for task, job in found.items() if job.layers}:
            heading = f"Label contrast by layer: {group.title}"
            made.append(layers_beside(group.key("contrast"), heading, contrasted))
    text = (
        "Each cell is the own pair's similarity minus the link's, with its 95 % interval and its "
        "verdict. If ICL acts as finetuning on these demonstrations, every row is above.",
        Items(crossed.GUIDE),
    )
    return section("crossed", "What ICL and FT share, link by link", *(text if made else ()), *made)


def _reading_section(with_paper: bool) -> Section:
    measures: tuple[tuple[str, str], ...] = tuple(
        (f"{m.title}:", m.guide) for m in CROSSED.values()
    )
    blocks: list[Block] = [Items(measures, "The measures of crossed comparisons")]
    if with_paper:
        of_paper = tuple((f"{m.title}:", m.guide) for m in SIMILARITIES.values())
        blocks += [
            Items(of_paper, "The measures of the paper's protocol"),
            "Intervals of the paper's protocol are 95 % bootstrap over seeds and examples (one "
            "draw of examples for all seeds, which read the same); differences are taken example "
            "by example before they are averaged.",
        ]
    return section("reading", "How to read the measures", *blocks)
