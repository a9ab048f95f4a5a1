"""Learning rates in a report: what each gives, and how they and the seed were selected."""

from icljax.catalog import SIMILARITIES, STEPS
from icljax.reports import figures
from icljax.reports.baselines import (
    doses,
    highest_and_best,
    measured_columns,
)
from icljax.reports.document import (
    Notice,
    Section,
    Table,
    row,
    section,
)
from icljax.reports.text import (
    PERCENT,
    estimate,
    interval,
    listed,
    number,
    percent,
    plural,
    rate,
)
from icljax.results import Results


def best_seed_notice(results: Results) -> Notice | None:
    """A warning where the best of several seeds is reported."""
    if results.selection.best_seed is None:
        return None
    return Notice("Best of seeds, as in the paper: optimistic.")


def selected_text(results: Results) -> str:
    """What FT's numbers owe to a selection."""
    s = results.selection
    return (
        f"FT's learning rate of each seed ({', '.join(map(rate, s.learning_rate))}) was "
        f"selected on {s.num_examples:,} examples: {s.selected_on}."
    )


def dose_section(results: Results, drawn: dict[str, figures.Figure]) -> Section:
    """What every learning rate gives."""
    title = "Similarity against learning rate (dose response)"
    dose = results.dose_response
    if dose is None:
        return section("dose", title)
    names = [n for n in measured_columns(results) if n in dose.similarity]
    rows = []
    for i in sorted(range(len(dose.learning_rates)), key=dose.learning_rates.__getitem__):
        accuracy, at = dose.accuracy[i], dose.learning_rates[i]
        text = estimate(accuracy, *PERCENT)
        if dose.diverged[i]:
            text = f"{dose.diverged[i]} of {len(accuracy.per_seed)} seeds diverged"
        chosen = plural(results.selection.learning_rate.count(at), "seed")
        loss = number(dose.training_loss[i].mean, 2)
        cells = (estimate(dose.similarity[n][i]) for n in names)
        steps = (estimate(curve[i]) for curve in dose.steps.values())
        rows.append(row(rate(at), chosen, text, loss, *cells, *steps))
    titles = [*(SIMILARITIES[n].title for n in names), *(STEPS[n].title for n in dose.steps)]
    header = ("learning rate", "chosen for", "FT accuracy, %", "training loss", *titles)
    return section(
        "dose",
        title,
        "What every learning rate gives, not the chosen ones alone: a similarity that is higher "
        "where finetuning has destroyed the model says nothing about useful finetuning. Measured "
        f"on {dose.examples:,} examples ({dose.measured_on}), on which the rates were "
        "chosen as well: accuracies at a chosen rate are optimistic here.",
        " ".join(filter(None, (dose_sentence(results, "sim_aou"), _dose_count(results)))),
        Table("dose", "", header, rows),
        drawn["dose_response"],
    )


def _dose_count(results: Results) -> str:
    """For how many similarities the highest is not at finetuning's best rate."""
    found = [pair for n in results.similarities if (pair := highest_and_best(results, n))]
    elsewhere = [top for top, best in found if top.accuracy < best.accuracy]
    if not found:
        return ""
    return (
        f"Of {len(found)} similarities, {len(elsewhere)} are highest at a learning rate at which "
        "FT's accuracy is below its best."
    )


def dose_sentence(results: Results, name: str) -> str:
    """Where a similarity is highest over the learning rates, and how good finetuning is there."""
    pair, dose = highest_and_best(results, name), results.dose_response
    if pair is None or dose is None:
        return ""
    top, best = pair

    def accuracy(place: int) -> str:
        share = dose.accuracy[place]
        return f"{percent(share.mean)} % {interval(share.interval, *PERCENT)}".strip()

    curve = dose.similarity[name]
    at_top = (
        f"{SIMILARITIES[name].title} is highest at learning rate {rate(top.rate)} "
        f"({estimate(curve[top.place])}), where FT's accuracy is {accuracy(top.place)}"
    )
    if top.accuracy == best.accuracy:
        return f"{at_top}: the best of all rates."
    worst = top.accuracy == min(d.accuracy for d in doses(results, name))
    where = "highest where finetuning is worst" if worst else "not where finetuning is best"
    return (
        f"{at_top}: {where}. At FT's best rate, {rate(best.rate)} ({accuracy(best.place)}), it is "
        f"{estimate(curve[best.place])}."
    )


def selection_section(results: Results, drawn: dict[str, figures.Figure]) -> Section:
    """How learning rates, and a seed, were selected."""
    s = results.selection
    header = ("seed", "chosen rate", *(f"rate {rate(r)}" for r in s.learning_rates))
    rows = []
    for i, seed in enumerate(results.seeds):
        cells = zip(s.accuracy[i], s.nll[i], s.training_loss[i], strict=True)
        texts = (f"{percent(a)} / {number(n)} / {number(t, 2)}" for a, n, t in cells)
        rows.append(row(str(seed), rate(s.learning_rate[i]), *texts))
    return section(
        "selection",
        "Selection",
        "Each seed's learning rate is the one with the best accuracy on "
        f"{s.num_examples:,} examples (then the lowest negative log-likelihood): "
        f"{s.selected_on}. Cells: accuracy in % / negative log-likelihood on these examples / "
        "mean training loss; dashes where the loss was not finite.",
        best_seed_notice(results),
        seed_text(results),
        Table("selection", "", header, rows),
        drawn["selection"],
    )


def seed_text(results: Results) -> str:
    """Whether seeds were selected."""
    best = results.selection.best_seed
    if best is None:
        return "Seeds were not selected: all are reported."
    return (
        f"Only seed {best.seed} is reported, the one with the best "
        f"ICL accuracy on these examples ({listed(best.icl_accuracy, *PERCENT)} % for seeds "
        f"{', '.join(map(str, results.seeds))})."
    )
