"""Many comparisons -> one report: the paper's claims, tables and figures, against controls."""

from collections.abc import Sequence

from icljax.catalog import CONTROLS, SIMILARITIES
from icljax.reports import paper, tables
from icljax.reports.claims import CAVEAT, TITLES, headline
from icljax.reports.document import Block, Figure, Items, Report, Section, Table, section
from icljax.reports.study import Group, main_groups, task_columns
from icljax.reports.study_figures import study_figures
from icljax.reports.text import weights

QUESTION = "Does in-context learning behave like finetuning?"
_ABOUT = (
    "A language model can learn a task from examples in its prompt (in-context learning, ICL) or "
    "by having its weights trained on them (finetuning, FT). Dai et al. (2023) found the two alike "
    "by four measures. This page repeats their measurements and holds each against control "
    "conditions: untrained models, corrupted demonstrations, other updates. A likeness that they "
    "share is no evidence of learning."
)


def report(groups: Sequence[Group]) -> Report:
    """The report of many jobs."""
    lead: list[Block] = []
    for group in main_groups(groups):
        answer, why = headline(group)
        lead += [answer, Items(tuple(why))]
        lead += sorted({text for r in group.measured().values() if (text := weights(r.model))})
    measured = [group for group in groups if group.measured()]
    tasks = task_columns(groups)
    drawn = study_figures(groups)

    def of(*kinds: str) -> list[Figure]:
        return [f for f in drawn if f.key.startswith(tuple(f"{kind}-" for kind in kinds))]

    claims = [table for group in measured if (table := tables.claims_table(group))]
    controls = [table for group in measured for table in tables.control_tables(group, tasks)]
    doses = [tables.dose_table(group, tasks) for group in measured]
    sections = (
        _claims_section(claims, of("controls")),
        section("dose", "Dose and response", *of("dose"), *doses),
        section("layers", "Layer by layer", *of(*(f"layers-{n}" for n in TITLES))),
        section(
            "accuracy",
            "The paper's tables, beside ours",
            *of("accuracy"),
            *tables.paper_tables(groups),
        ),
        section("lcgd", "Layer-causal gradient descent", *of("lcgd"), tables.lcgd_table(groups)),
        section("detail", "Every similarity and its controls", *controls),
        section("missing", "What is missing", tables.missing_table(groups)),
        _reading_section(),
    )
    kept = tuple(s for s in sections if s.blocks)
    return Report(QUESTION, (*lead, _ABOUT), kept, paper.SOURCES)


def _claims_section(claims: Sequence[Table], drawn: Sequence[Figure]) -> Section:
    text = (
        "Each claim of the paper stands on a measure, in bold below. It holds in a task where that "
        "measure lies above its baseline and above every control: where the whole 95 % interval of "
        f"the paired difference lies above 0. {CAVEAT}"
    )
    return section("claims", "The four claims, against controls", text, *drawn, *claims)


def _reading_section() -> Section:
    measures = tuple((f"{m.title}:", m.guide) for m in SIMILARITIES.values())
    controls = tuple((f"{c.title}:", c.guide) for c in CONTROLS.values())
    text = (
        "Intervals are 95 % bootstrap over seeds and examples (one draw of examples for all seeds, "
        "which read the same); differences are taken example by example before they are averaged."
    )
    lists = Items(measures, "The measures"), Items(controls, "The controls")
    return section("reading", "How to read the measures", text, *lists)
