"""How many seeds a crossed comparison needs to decide, and how long they take, from a pilot."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import msgspec
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from icljax import metrics
from icljax.catalog import CROSSED, LINKS, SYNTHETIC
from icljax.comparison import claims
from icljax.errors import UserError
from icljax.records import Crossed
from icljax.reports.text import duration
from icljax.runtime import workdir

FEWEST = 3  # seeds of a pilot: the spread of two says next to nothing
# Stages of `experiments.crossed.Study` that all seeds pass; the others take some seeds, or none.
OF_ALL_SEEDS = ("finetune", *SYNTHETIC, "cross", "untrained", "untrained-read")
_FREE = ("seeds", "study.margin")  # fields of the config in which the pilot may differ


@dataclasses.dataclass(frozen=True)
class Need:
    """What one claim needs.

    Attributes:
        measure: of `catalog.CROSSED`.
        link: of `catalog.LINKS`.
        spread: standard deviation of a seed's difference.
        seeds: that show that a difference of 0 is within the margin; None: more than 1,000.
        seconds: of a study of so many.
    """

    measure: str
    link: str
    spread: float
    seeds: int | None
    seconds: float | None


@dataclasses.dataclass(frozen=True)
class Power:
    """What a study needs.

    Attributes:
        margin: within which a difference counts as none.
        pilot_seeds, pilot_seconds: of the pilot.
        differs: in which other settings the pilot was made, in words; "": in none.
        needs: of each claim.
        seeds, seconds: for all claims together, and for any verdict; None: more than 1,000.
    """

    margin: float
    pilot_seeds: int
    pilot_seconds: float
    differs: str
    needs: tuple[Need, ...]
    seeds: int | None
    seconds: float | None


def read(folder: Path) -> Crossed:
    """The results of a pilot.

    Raises:
        UserError: there are none, they are another experiment's, or of fewer than `FEWEST` seeds.
    """
    file = folder / workdir.RESULTS
    advice = "give the --workdir of a finished crossed comparison: --pilot=WORKDIR"
    try:
        pilot = msgspec.json.decode(file.read_bytes(), type=Crossed)
    except (OSError, ValueError, RecursionError) as e:  # msgspec's errors are ValueErrors
        reason = getattr(e, "strerror", None) or e
        raise UserError(f"{file} cannot be read as a pilot's ({reason}); {advice}") from e
    if pilot.config.get("mode") != "crossed":
        raise UserError(f"{file} is of no crossed comparison; {advice}")
    if len(pilot.seeds) < FEWEST:
        raise UserError(
            f"the pilot in {folder} has {len(pilot.seeds)} seeds, whose spread says too little; "
            f"run one with {FEWEST} or more: --config.seeds=1,2,3"
        )
    return pilot


def plan(config: ConfigDict, pilot: Crossed) -> Power:
    """What the config's margin needs, by the pilot's spread.

    Raises:
        UserError: the pilot is of another task or model.
    """
    for field in ("task", "model"):
        if pilot.config[field] != config[field]:
            raise UserError(
                f"the pilot's {field} is {pilot.config[field]!r}, config.{field} is "
                f"{config[field]!r}; give a pilot of the same, or --config.{field}=..."
            )
    spreads = {
        (c.measure, c.link): c.difference.seed_std
        for c in pilot.claims
        if c.difference.seed_std is not None
    }
    seeds = claims.seeds_needed(spreads, config.study.margin)
    needs = tuple(
        Need(*key, spread, seeds["/".join(key)], scaled(pilot, seeds["/".join(key)]))
        for key, spread in spreads.items()
    )
    every = [need.seeds for need in needs]
    known = [count for count in every if count is not None]
    most = max([*known, metrics.FEWEST_SEEDS]) if len(known) == len(every) else None
    here, there = (workdir.flatten(x) for x in (workdir.as_plain(config), pilot.config))
    for field in _FREE:
        there[field] = here[field]
    return Power(
        margin=config.study.margin,
        pilot_seeds=len(pilot.seeds),
        pilot_seconds=sum(value or 0.0 for value in pilot.seconds.values()),
        differs=workdir.differences(there, here),
        needs=needs,
        seeds=most,
        seconds=scaled(pilot, most),
    )


def scaled(pilot: Crossed, seeds: int | None) -> float | None:
    """Seconds of a study with so many seeds, otherwise as the pilot and on its devices."""
    if seeds is None:
        return None
    times = dict.fromkeys(OF_ALL_SEEDS, seeds / len(pilot.seeds))
    return sum(times.get(stage, 1.0) * (value or 0.0) for stage, value in pilot.seconds.items())


def show(power: Power, console: Console) -> None:
    """Prints a line a claim, and what they come to."""
    table = Table("claim", "held against", title=f"Seeds for a margin of {power.margin:g}")
    for name in ("spread over seeds", "seeds", "time"):
        table.add_column(name, justify="right")
    for need in power.needs:
        names = CROSSED[need.measure].title, LINKS[need.link].title
        table.add_row(*names, f"{need.spread:.4f}", _count(need.seeds), _time(need.seconds))
    console.print(table)
    for line in _sentences(power):
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def _count(seeds: int | None) -> str:
    return "> 1000" if seeds is None else str(seeds)


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else duration(seconds)


def _sentences(power: Power) -> Iterator[str]:
    if power.seeds is None:
        yield (
            "All claims: more than 1,000 seeds; a wider margin needs fewer: "
            "--config.study.margin=..."
        )
    else:
        yield f"All claims: {power.seeds} seeds, about {_time(power.seconds)}."
    if power.differs:
        yield f"The pilot had other settings, whose spread and time these are: {power.differs}."
    yield (
        "Seeds: so many show in 80 % of studies that a difference of 0 is within the margin (TOST "
        "at 5 %, shared among a family's claims), if seeds differ as the pilot's "
        f"{power.pilot_seeds} do; a verdict needs {metrics.FEWEST_SEEDS} or more."
    )
    yield (
        f"Time: the pilot's {_time(power.pilot_seconds)} of its last start, of which the stages "
        f"{', '.join(OF_ALL_SEEDS)} grow with the seeds and the others stay; same devices, same "
        "queries. Pairs grow with the square of the seeds, which is left out."
    )
