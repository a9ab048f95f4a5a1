"""What a model's weights are and where they come from, as reports say it. Nothing is guessed."""

import collections
import dataclasses
import math
import re
from collections.abc import Iterable
from pathlib import Path

from icljax.checkpoints import tensor_files
from icljax.models.named import NAMED


@dataclasses.dataclass(frozen=True)
class Origin:
    """What the weights are; "" where nothing says so.

    Attributes:
        tuning: "base", "instruct", or what a GGUF file's fields call it.
        quantisation: of a GGUF file, which is studied dequantised: its kind, and the share of the
            weights in each type; of other files that there is none, and the types.
        source: where they come from.
    """

    tuning: str
    quantisation: str
    source: str


def of_model(name: str, folder: Path) -> Origin:
    """The origin of the model that the user calls `name`, which was found in `folder`."""
    if name in NAMED:
        model = NAMED[name]
        return Origin(model.tuning, model.quantisation, model.source)
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        tuning, quantisation = _of_gguf(path)
        return Origin(tuning, quantisation, _of_path(path, folder))
    stored = tensor_files.read_headers(folder).values()
    types = _shares((tensor.dtype, math.prod(tensor.shape)) for tensor in stored)
    if path.exists():
        return Origin("", f"none: {types}", _of_path(path, folder))
    hub_name, revision = name.partition("@")[0], folder.name.partition("-")[0]
    return Origin("", f"none: {types}", f"Hugging Face hub, {hub_name}, revision {revision}")


def _of_path(path: Path, folder: Path) -> str:
    """Its last name; of what was converted, the checksum that the folder's name ends with."""
    source = path.resolve()
    if source == folder.resolve():
        return f"folder {source.name}"
    kind = "folder" if source.is_dir() else "file"
    return f"{kind} {source.name}, SHA-256 {folder.name.rpartition('-')[2]}"


def _of_gguf(path: Path) -> tuple[str, str]:
    """(tuning, quantisation) that a GGUF file's header tells."""
    from gguf import LlamaFileType  # slow, and needed for such a file only

    from icljax.checkpoints import gguf_file

    gguf = gguf_file.read(path)
    said = (gguf.fields.get(f"general.{key}", "") for key in ("finetune", "name"))
    words = re.findall(r"\b(?:base|chat|instruct)\b", " ".join(map(str, said)).lower())
    tensors = gguf.tensors.values()
    quantisation = _shares((tensor.kind.name, math.prod(tensor.shape)) for tensor in tensors)
    kinds = {int(kind): kind.name.partition("_")[2] for kind in LlamaFileType}
    if kind := kinds.get(gguf.fields.get("general.file_type", -1)):
        quantisation = f"{kind}: {quantisation}"
    return (words or [""])[0], quantisation


def _shares(tensors: Iterable[tuple[str, int]]) -> str:
    """Text like "Q4_K 76 %, Q6_K 24 %", of types and how many weights are in each."""
    counts: collections.Counter[str] = collections.Counter()
    for kind, size in tensors:
        counts[kind] += size
    shares = [(kind, round(100 * n / counts.total())) for kind, n in counts.most_common()]
    return ", ".join(f"{kind} {share} %" for kind, share in shares if share)
