"""docs/findings.md says what its result files hold: its tables, made anew from them, in order."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from icljax.reports import claims, study
from icljax.reports.study import task_title
from icljax.results import Estimate, Results

DOCS = Path(__file__).parents[2] / "docs"
METRICS = (
    "sim_aou",
    "sim_aou_unnormalized",
    "sim_am",
    "sim_am_delta",
    "kendall",
    "kendall_example",
    "sim_update",
)
DOSES = ("accuracy", "sim_aou", "sim_am_delta", "sim_update")
Cell = Callable[[Results], str]


def tables(groups: list[study.Group]) -> Iterator[list[str]]:
    """The page's tables, in the page's order; a table is its lines of Markdown."""
    gd, lcgd = (group.measured() for group in groups)
    yield by_task(gd, accuracy_rows())
    yield by_task(
        gd,
        {"Rec2FTP, %": rec2ftp, "ICL right where ZSL and FT are wrong, %": right_where_both_wrong},
    )
    for metric in METRICS:
        others = claims.others(groups[0], [metric])
        rows = {f"minus {claims.name_of(o)}": against(metric, o) for o in others}
        yield by_task(gd, {"measured": measured(metric)} | rows)
    for path in DOSES:
        yield dose(gd, path)
    for label, of in (("GD", {task: gd[task] for task in lcgd}), ("LCGD", lcgd)):
        rows = {claims.TITLES[metric]: measured(metric) for metric in METRICS}
        yield by_task(of, {f"{label}: FT's accuracy, %": accuracies("ft")} | rows)
    for path in DOSES[:2]:
        yield dose(lcgd, path)


def accuracy_rows() -> dict[str, Cell]:
    rows = {name.upper(): accuracies(name) for name in ("zsl", "icl", "ft")}
    rows["majority class"] = lambda r: percent(r.accuracy.majority)
    for pair in ("icl_zsl", "ft_zsl"):
        for field, how in (("accuracy", "raw"), ("accuracy_calibrated", "calibrated")):
            label = f"{pair.upper().replace('_', ' - ')}, {how}"
            rows[label] = lambda r, f=field, p=pair: difference(r.gap(f, p), points)
    return rows


def by_task(measured_tasks: dict[str, Results], rows: dict[str, Cell]) -> list[str]:
    body = [line(label, map(cell, measured_tasks.values())) for label, cell in rows.items()]
    return [*head("", map(task_title, measured_tasks)), *body]


def dose(measured_tasks: dict[str, Results], what: str) -> list[str]:
    text = percent if what == "accuracy" else share
    rates = next(iter(measured_tasks.values())).dose_response.learning_rates
    body = []
    for task, r in measured_tasks.items():
        found = r.dose_response
        curve = found.accuracy if what == "accuracy" else found.similarity[what]
        body.append(line(task_title(task), (text(x.mean) for x in curve)))
    return [*head("learning rate", (f"{rate:g}" for rate in rates)), *body]


def head(label: str, columns: Iterable[str]) -> list[str]:
    titles = list(columns)
    return [line(label, titles), "|" + "---|" * (1 + len(titles))]


def line(label: str, cells: Iterable[str]) -> str:
    return f"| {' | '.join([label, *cells])} |"


def accuracies(setting: str) -> Cell:
    return lambda r: " / ".join(
        percent(a.of(setting).mean) for a in (r.accuracy, r.accuracy_calibrated)
    )


def rec2ftp(results: Results) -> str:
    low, high = results.rec2ftp.interval
    return f"{results.rec2ftp.percent:.1f} [{low:.0f}, {high:.0f}]"


def right_where_both_wrong(results: Results) -> str:
    return f"{claims.rate_unlike(results):.1f}"


def measured(metric: str) -> Cell:
    return lambda r: spread(r.similarities[metric], share)


def against(metric: str, other: str) -> Cell:
    return lambda r: difference(claims.beside(r, metric)[other].difference, lambda x: share(x, "+"))


def difference(found: Estimate, text: Callable[[float], str]) -> str:
    """Bold where the interval does not hold 0."""
    mark = "**" if claims.outcome(found.interval) in ("above", "below") else ""
    return f"{mark}{spread(found, text)}{mark}"


def spread(found: Estimate, text: Callable[[float], str]) -> str:
    low, high = found.interval
    return f"{text(found.mean)} [{text(low)}, {text(high)}]"


def share(x: float, sign: str = "") -> str:
    return f"{x:{sign}.3f}".replace("0.", ".", 1)


def percent(x: float) -> str:
    return f"{100 * x:.1f}"


def points(x: float) -> str:
    return f"{100 * x:+.1f}"


def test_the_tables_are_what_the_results_hold():
    page = (DOCS / "findings.md").read_text()
    shown = [text for text in page.splitlines() if text.startswith("|")]
    assert shown == [text for table in tables(study.read([DOCS / "findings"])) for text in table]
