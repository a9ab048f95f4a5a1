"""Pretrained models on disk or on the Hugging Face hub -> (config, params, tokenizer).

Everything ends in one loader, that of a Hugging Face folder with safetensors files: GGUF files,
torch pickles and fairseq checkpoints are first converted to one, once, in the cache. Nothing in a
checkpoint is ever executed.
"""

import dataclasses
import functools
import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
from tokenizers import Tokenizer

from icljax import forms
from icljax.checkpoints import stream
from icljax.checkpoints.origin import Origin, of_model
from icljax.checkpoints.tensor_files import INDEX, weight_files
from icljax.data import bpe
from icljax.errors import UserError
from icljax.models.architectures import ARCHITECTURES
from icljax.models.decoder import DecoderConfig
from icljax.models.families import decoder_config
from icljax.models.named import NAMED, converted_folder
from icljax.models.plans import plan
from icljax.runtime import downloads, processes
from icljax.runtime.downloads import Note
from icljax.runtime.progress import Progress
from icljax.types import Params

_ADAPTER = "adapter_config.json"  # PEFT's: changes to a model that is elsewhere
# What a model is read from on the hub: its description, then the first kind of weights it has.
_HUB_NAME = re.compile(r"(\w[\w.-]*/[\w.-]+)(?:@([\w./-]+))?")
_DESCRIPTION = ["config.json", "tokenizer.json", "tokenizer.model", *bpe.FILES, _ADAPTER]
_WEIGHTS = (
    ["model.safetensors", "model-*.safetensors", INDEX],
    ["pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json"],
)
_ID = forms.whole(0)
_IDS = forms.Form(
    f"{_ID.expected}, or a list of such",
    lambda value: _ID.holds(value) or (value != [] and forms.listed(_ID).holds(value)),
)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A model on disk, as a Hugging Face folder.

    Attributes:
        name: what the user asked for.
        folder: holds config.json, *.safetensors and tokenizer.json (or vocab.json, merges.txt).
        config: the decoder that reads it.
        tokenizer: its tokenizer; whoever encodes adds no special tokens.
        bos, eos: token ids.
    """

    name: str
    folder: Path
    config: DecoderConfig
    tokenizer: Tokenizer
    bos: int
    eos: int

    @property
    def origin(self) -> Origin:
        """What its weights are and where they come from, read anew."""
        return of_model(self.name, self.folder)


def open_checkpoint(name: str, progress: Progress | None = None, note: Note = print) -> Checkpoint:
    """Finds (or fetches and converts) a model and reads its config and tokenizer, not its weights.

    Args:
        name, progress, note: as of `locate`.

    Raises:
        UserError: for an unknown name, a damaged file, an unsupported architecture.
    """
    folder = locate(name, progress, note)
    hf_config = _read_json(folder / "config.json")
    config = decoder_config(hf_config, folder)
    tokenizer = _read_tokenizer(folder, hf_config)
    bos, eos = _special_tokens(hf_config, config.vocab_size, folder)
    return Checkpoint(name, folder, config, tokenizer, bos, eos)


# ---- Where it is -------------------------------------------------------------------------------


def locate(name: str, progress: Progress | None = None, note: Note = print) -> Path:
    """The Hugging Face folder of a model.

    Args:
        name: one of `models.named`; a folder; a .gguf file; fairseq's model.pt or its folder; a
            name on the Hugging Face hub, "org/name" or "org/name@revision".
        progress: called with (done, in all) while a model is fetched or converted.
        note: takes the lines that say what is fetched, and under which terms.

    Raises:
        Unavailable: for a known name, or one on the hub, that cannot be had here and now.
        UserError: for anything else that gives no model.
    """
    path = downloads.user_path(name, "model")
    if name in NAMED:
        file, done = NAMED[name].file, NAMED[name].converted
        if (done / "config.json").is_file():
            return done
        return _convert_gguf(downloads.fetch(file, progress, note), file.sha256, progress)
    if path.is_dir():
        return _as_safetensors(path)
    if path.is_file() and path.suffix == ".gguf":
        return _convert_gguf(path, _sha256([path]), progress)
    if path.is_file() and path.suffix == ".pt":
        return _convert_fairseq(path)
    if name in ARCHITECTURES:
        raise UserError(
            f"model {name!r} is an architecture without weights, for python -m icljax.preflight; "
            "to run it, give the folder or the hub name (org/name) of such a model"
        )
    on_hub = None if path.suffix in (".gguf", ".pt") else _HUB_NAME.fullmatch(name)
    if on_hub:
        return _as_safetensors(_download(*on_hub.groups()))
    raise UserError(
        f"model {forms.shown(name)} is neither a known name ({', '.join(NAMED)}) nor an "
        "existing folder or .gguf file, nor a hub name (org/name); give one with "
        "--config.model=NAME_OR_FOLDER"
    )


def _as_safetensors(folder: Path) -> Path:
    """The folder itself, or the one that its pickles are converted to."""
    if (folder / _ADAPTER).is_file():
        raise UserError(
            f"{folder} holds an adapter (its {_ADAPTER}), which would be left out; merge it into "
            "its base model (peft's merge_and_unload), save that and give its folder"
        )
    if (folder / INDEX).is_file() or (folder / "model.safetensors").is_file():
        return folder
    if (folder / "model.pt").is_file():
        return _convert_fairseq(folder / "model.pt")
    if pickles := sorted(folder.glob("pytorch_model*.bin")):
        from icljax.checkpoints.from_torch import convert_torch

        described = [folder / "config.json", *_tokenizer_files(folder)]
        index = [f for f in (folder / "pytorch_model.bin.index.json",) if f.is_file()]
        digest = _sha256([*described, *index, *pickles])
        return _converted(folder.resolve().name, digest, lambda to: convert_torch(folder, to))
    return folder


def _convert_gguf(file: Path, sha256: str, progress: Progress | None) -> Path:
    def convert(to: Path) -> None:
        from icljax.checkpoints import from_gguf  # its import is slow, and needed once a model

        from_gguf.convert(file, to, progress)

    return _converted(file.stem, sha256, convert)


def _convert_fairseq(file: Path) -> Path:
    from icljax.checkpoints.from_torch import FAIRSEQ_FILES, convert_fairseq

    files = [file, *(file.parent / name for name in FAIRSEQ_FILES)]
    if missing := [f.name for f in files if not f.is_file()]:
        raise UserError(
            f"{file.parent} has no {', '.join(missing)}; a fairseq model folder holds model.pt, "
            "its dict.txt, and GPT-2's encoder.json and vocab.bpe"
        )
    return _converted(
        file.resolve().parent.name, _sha256(files), lambda to: convert_fairseq(file, to)
    )


def _converted(stem: str, sha256: str, convert: Callable[[Path], None]) -> Path:
    """The folder in the cache that `convert` makes, once for each content."""
    folder = converted_folder(stem, sha256)
    if not (folder / "config.json").is_file():
        with downloads.writing(downloads.cache_dir()):
            convert(folder)
    return folder


def _download(name: str, revision: str | None) -> Path:
    """A snapshot from the hub, in the hub's own cache; without a network, what is there."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError as e:
        raise downloads.Unavailable(
            f"model {name!r} is no folder here, and fetching it from the Hugging Face hub needs a "
            "package: pip install 'icljax[hub]', or give a folder",
            "no huggingface_hub",
        ) from e
    try:
        for weights in _WEIGHTS:
            folder = Path(
                snapshot_download(name, revision=revision, allow_patterns=_DESCRIPTION + weights)
            )
            found = (_ADAPTER, *weights[:2])
            if any(any(folder.glob(pattern)) for pattern in found):
                return folder
    except Exception as e:  # errors of its own, of its HTTP library, of the file system
        said = f"{type(e).__name__}: {(str(e).strip().splitlines() or [''])[0][:150]}"
        raise downloads.Unavailable(
            f"model {name!r} is no folder here, and the Hugging Face hub does not give it ({said});"
            " check the name, log in with `hf auth login` where it asks for that, or give a folder",
            said,
        ) from e
    raise UserError(
        f"model {name!r} on the Hugging Face hub has no {_WEIGHTS[0][0]} and no {_WEIGHTS[1][0]}; "
        "give another model or revision (org/name@revision)"
    )


# ---- What is in it -----------------------------------------------------------------------------


def load_params(
    folder: Path, config: DecoderConfig, shardings: dict[str, Any] | None = None
) -> Params:
    """Reads the weights of a Hugging Face folder into the decoder's parameter tree.

    Matrices are kept in `config.dtype`; the key and value projections, which finetuning changes
    by steps too small for bfloat16, in float32. Only what this process keeps is read.

    Args:
        folder: as `locate` gives it.
        config: as `decoder_config` makes it; its dtype and attention may differ.
        shardings: a tree like the result, of jax.sharding.Sharding; None: the default device.

    Raises:
        UserError: for a truncated file, a missing tensor, one of an unexpected shape, one that the
            decoder has no use for, or one with NaN or infinity.
    """
    hf = _read_json(folder / "config.json")
    params = stream.load(folder, plan(hf, config), config, shardings)
    processes.give_back_memory()  # what the blocks of the files took
    flat = jax.tree_util.tree_leaves_with_path(params)
    if bad := ["/".join(part.key for part in path) for path, x in flat if not _finite(x)]:
        raise UserError(
            f"{folder}: {len(bad)} of the weights have NaN or infinity in {config.dtype}, such as "
            f"{bad[0]}; fetch the model again"
        )
    stream.forget_pages()  # that the check read
    return params


@jax.jit
def _finite(x: jax.Array) -> jax.Array:
    """Whether a leaf is finite throughout; `all(isfinite(x))` would first write that down."""
    return jnp.isfinite(jnp.sum(x * 0))


def fingerprint(folder: Path) -> str:
    """SHA-256 over the model's config, tokenizer and weights, in that order."""
    files = [folder / "config.json", *_tokenizer_files(folder), *weight_files(folder)]
    stats = (file.stat() for file in files)
    return _fingerprint(tuple(files), tuple((s.st_ino, s.st_size, s.st_mtime_ns) for s in stats))


@functools.cache
def _fingerprint(files: tuple[Path, ...], _: tuple[tuple[int, ...], ...]) -> str:
    """Read once a process; the second argument tells when a file has changed."""
    return _sha256(list(files))


def _sha256(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        try:
            with file.open("rb") as f:
                while block := f.read(1 << 20):
                    digest.update(block)
        except OSError as e:
            raise UserError(f"{file} cannot be read ({e.strerror}); give a file that can") from e
    return digest.hexdigest()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return forms.read_table(path)
    except FileNotFoundError as e:
        raise UserError(
            f"{path.parent} has no {path.name}; a model folder holds config.json, "
            "tokenizer.json and model.safetensors"
        ) from e


def _tokenizer_files(folder: Path) -> list[Path]:
    """tokenizer.json, or the files of models that are older than it.

    Raises:
        UserError: when there is neither.
    """
    if (folder / "tokenizer.json").is_file():
        return [folder / "tokenizer.json"]
    files = [folder / name for name in bpe.FILES if (folder / name).is_file()]
    if [file.name for file in files[:2]] == list(bpe.FILES[:2]):
        return files
    others = (*folder.glob("*.model"), *folder.glob("vocab.*"))
    raise UserError(
        f"{folder} has no tokenizer.json (nor vocab.json and merges.txt); "
        + (bpe.convert(folder) if others else "copy the model's tokenizer there")
    )


def _read_tokenizer(folder: Path, hf: dict[str, Any]) -> Tokenizer:
    files = _tokenizer_files(folder)
    if len(files) > 1:
        return bpe.from_folder(folder, hf.get("model_type"))
    return bpe.from_json(files[0])


def _special_tokens(hf: dict[str, Any], vocab_size: int, folder: Path) -> tuple[int, int]:
    """(bos, eos) ids; a model with one of them uses it for both; some list several eos."""
    forms.check(f"{folder}: config.json", hf, {"bos_token_id": _ID, "eos_token_id": _IDS})
    eos = hf.get("eos_token_id")
    eos = eos[0] if isinstance(eos, list) else eos
    # XGLM's config.json names <s>, but its texts start with </s>, as all of fairseq's do.
    bos = eos if hf.get("model_type") == "xglm" else hf.get("bos_token_id")
    if bos is None and eos is None:
        raise UserError(f"{folder}: config.json has no bos_token_id and no eos_token_id; add one")
    bos = cast(int, eos if bos is None else bos)
    eos = cast(int, bos if eos is None else eos)
    if max(bos, eos) >= vocab_size:
        raise UserError(
            f"{folder}: config.json has bos_token_id {bos} and eos_token_id {eos}, outside the "
            f"vocabulary of {vocab_size}; give the ids that tokenizer.json has for them"
        )
    return bos, eos
