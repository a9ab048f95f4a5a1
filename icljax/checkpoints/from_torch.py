"""Torch pickles turned into Hugging Face folders with safetensors: pytorch_model.bin, model.pt.

A pickle is a program. Torch's restricted unpickler (`weights_only=True`) runs nothing but the
making of tensors and plain containers; the classes that fairseq's checkpoints name beside them are
replaced by `Inert`, which only keeps what it is given. A file that names anything else is refused
before it is read. Needs the extra `torch`.

fairseq's dense language models are the decoder that `transformers` calls XGLM, in fairseq's names
(https://github.com/facebookresearch/fairseq/tree/main/examples/moe_lm).
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from tokenizers import Tokenizer

from icljax import forms
from icljax.checkpoints import tensor_files
from icljax.data import bpe
from icljax.errors import UserError
from icljax.models.families import decoder_config
from icljax.runtime import downloads

# Beside model.pt: fairseq's numbers for GPT-2's tokens, and those tokens.
FAIRSEQ_FILES = ("dict.txt", "encoder.json", "vocab.bpe")
_FAIRSEQ_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")  # ids 0 to 3; each text starts with </s>

# What a training script leaves in its checkpoints.
_EXPECTED = re.compile(
    r"(argparse|omegaconf|fairseq|metaseq|collections|typing|numpy)\.|"
    r"builtins\.(dict|list|tuple|int|float|str|bool)$"
)
_DTYPES = {
    dtype.name: theirs for theirs, dtype in (tensor_files.DTYPES | tensor_files.INTEGERS).items()
}
# fairseq's arguments that are read; those that are flags are only asked whether they are set.
_ARGUMENTS = {
    **dict.fromkeys(("max_target_positions", "tokens_per_sample"), forms.SIZE),
    "decoder_attention_heads": forms.SIZE,
    "activation_fn": forms.TEXT,
}


class Inert:
    """Stands for whatever class a checkpoint names: keeps what it is given, and does nothing."""

    value: Any = None

    def __init__(self, *args: Any) -> None:
        self.value = args[0] if args else None

    def __setstate__(self, state: Any) -> None:
        self.value = state


def convert_torch(folder: Path, to: Path) -> None:
    """Writes the folder `to` with the weights of `folder`'s pytorch_model*.bin as safetensors.

    Args:
        folder: a Hugging Face folder; one file, or several named by an index.
        to: the folder to make; it appears whole or not at all.

    Raises:
        Unavailable: torch is not installed.
        UserError: for a file that is damaged, missing, or holds more than weights.
    """
    weights: dict[str, Any] = {}
    for file in tensor_files.indexed_files(
        folder, "pytorch_model.bin.index.json", "pytorch_model.bin"
    ):
        weights |= _checked(file, _load(file), weights)
    copied = ("config.json", "tokenizer.json", *bpe.FILES)
    with tensor_files.new_folder(to) as made:
        for name in copied:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, made / name)
        _write(made, weights)


def convert_fairseq(file: Path, to: Path) -> None:
    """Writes the folder `to`, XGLM's form of a fairseq language model.

    Args:
        file: fairseq's checkpoint; `FAIRSEQ_FILES` lie beside it.
        to: the folder to make; it appears whole or not at all.

    Raises:
        Unavailable: torch is not installed.
        UserError: for a damaged file, one that holds more than a model, or another kind of model.
    """
    state = _load(file)
    arguments = _table(_table(state.get("cfg")).get("model")) | _table(state.get("args"))
    weights = _xglm_names(file, state)
    with tensor_files.new_folder(to) as made:
        config = _xglm_config(file, weights, arguments)
        _fairseq_tokenizer(file.parent).save(str(made / "tokenizer.json"))
        _write(made, weights)
        (made / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _load(file: Path) -> dict[str, Any]:
    """A checkpoint's dictionary; its tensors stay in the file until they are used."""
    try:
        import torch
    except ImportError as e:
        raise downloads.Unavailable(
            f"{file} is a torch checkpoint, and converting it needs a package: "
            "pip install 'icljax[torch]', or give the model as safetensors",
            "no torch",
        ) from e
    try:
        named = torch.serialization.get_unsafe_globals_in_checkpoint(file)
        if foreign := sorted(name for name in named if not _EXPECTED.match(name)):
            raise UserError(
                f"{file} is more than weights: it names {forms.shown(foreign[0])}. Nothing in it "
                "was run; get the model from a source that you trust, as safetensors"
            )
        with torch.serialization.safe_globals([(Inert, name) for name in named]):
            state = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except UserError:
        raise
    except Exception as e:  # the unpickler raises whatever a damaged file leads it to
        raise UserError(
            f"{file}: not a checkpoint that torch reads as weights only "
            f"({' '.join(str(e).split())[:150]}); fetch it again, or give the model as safetensors"
        ) from e
    if not isinstance(state, dict):
        raise UserError(f"{file}: holds a {type(state).__name__}, expected a table of tensors")
    return state


def _plain(value: Any) -> Any:
    """Dictionaries and lists for what were argparse's and omegaconf's objects."""
    if isinstance(value, Inert):
        return _plain(value.value)
    if isinstance(value, list):
        return [_plain(v) for v in value]
    if not isinstance(value, dict):
        return value
    for inside in ("_content", "_val"):  # omegaconf's containers and leaves
        if inside in value:
            return _plain(value[inside])
    return {key: _plain(v) for key, v in value.items()}


def _table(value: Any) -> dict[str, Any]:
    try:
        value = _plain(value)
    except RecursionError:  # a container that holds itself
        return {}
    return value if isinstance(value, dict) else {}


def _checked(file: Path, weights: dict[Any, Any], before: dict[str, Any]) -> dict[str, Any]:
    """The weights, each a tensor that can be written; whether it is of use is for the loader.

    Args:
        file: where they are from.
        weights: name -> tensor, as far as is known.
        before: those of other files.
    """
    import torch

    for name, x in weights.items():
        if not (isinstance(name, str) and isinstance(x, torch.Tensor)):
            raise UserError(
                f"{file}: {forms.shown(name)} is no tensor but a {type(x).__name__}; give a file "
                "of weights alone (a training checkpoint's state_dict)"
            )
        kind = str(x.dtype).removeprefix("torch.")
        plain = x.layout is torch.strided and x.device.type == "cpu" and kind in _DTYPES
        # A stride of 0 makes as large a tensor as one likes out of one number.
        if not plain or x.numel() * x.element_size() > x.untyped_storage().nbytes():
            raise UserError(
                f"{file}: tensor {forms.shown(name)} ({kind}, {tuple(x.shape)}) is not stored as "
                "plain numbers; save the model again, as safetensors"
            )
        if name in before and not _equal(x, before[name]):
            raise UserError(
                f"{file}: tensor {forms.shown(name)} is in another file too, with other values; "
                "remove the file that is not the model's"
            )
    return weights


def _equal(a: Any, b: Any) -> bool:
    return a.dtype == b.dtype and a.equal(b)


def _write(folder: Path, weights: dict[str, Any]) -> None:
    """Every tensor, masks and counters too."""
    dtypes = {name: _DTYPES[str(x.dtype).removeprefix("torch.")] for name, x in weights.items()}
    shapes = {name: (dtype, tuple(weights[name].shape)) for name, dtype in dtypes.items()}

    def get(name: str) -> np.ndarray:
        tensor = weights[name].detach().contiguous()
        if dtypes[name] != "BF16":
            return tensor.numpy()
        import torch  # has what numpy lacks

        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)

    tensor_files.write(folder, shapes, get)


# ---- fairseq -----------------------------------------------------------------------------------


def _xglm_names(file: Path, state: dict[str, Any]) -> dict[str, Any]:
    """The weights under XGLM's names; an output projection only where it is not the embedding."""
    weights = state.get("model")
    if not isinstance(weights, dict) or "decoder.embed_tokens.weight" not in weights:
        raise UserError(f"{file}: no fairseq language model (no decoder.embed_tokens.weight in it)")
    unneeded = ("decoder.version", "decoder.embed_positions._float_tensor")
    weights = _checked(file, {n: x for n, x in weights.items() if n not in unneeded}, {})
    out = {n.replace("decoder.", "model.", 1): x for n, x in weights.items()}
    unembed = out.pop("model.output_projection.weight", None)
    if unembed is not None and not _equal(unembed, out["model.embed_tokens.weight"]):
        out["lm_head.weight"] = unembed
    return out


def _xglm_config(file: Path, weights: dict[str, Any], args: dict[str, Any]) -> dict[str, Any]:
    """config.json: sizes as the tensors have them, the rest as the training's arguments say."""
    for key in ("decoder_learned_pos", "no_token_positional_embeddings"):
        if args.get(key):
            raise UserError(
                f"{file}: a model with {key}, supported: sinusoidal positions; give another model"
            )
    forms.check(file, args, _ARGUMENTS)
    positions = args.get("max_target_positions") or args.get("tokens_per_sample")
    layers = {n.split(".")[2] for n in weights if n.startswith("model.layers.")}
    try:
        vocabulary, width = weights["model.embed_tokens.weight"].shape
        config = {
            "architectures": ["XGLMForCausalLM"],
            "model_type": "xglm",
            "vocab_size": vocabulary,
            "max_position_embeddings": positions or args["max_target_positions"],
            "d_model": width,
            "ffn_dim": weights["model.layers.0.fc1.weight"].shape[0],
            "num_layers": len(layers),
            "attention_heads": args["decoder_attention_heads"],
            "activation_function": args["activation_fn"],
            "scale_embedding": not args.get("no_scale_embedding", False),
            "tie_word_embeddings": "lm_head.weight" not in weights,
            "bos_token_id": _FAIRSEQ_SPECIAL.index("</s>"),
            "eos_token_id": _FAIRSEQ_SPECIAL.index("</s>"),
            "pad_token_id": _FAIRSEQ_SPECIAL.index("<pad>"),
        }
    except ValueError as e:
        raise UserError(f"{file}: model.embed_tokens.weight is no matrix; fetch it again") from e
    except (KeyError, IndexError) as e:
        raise UserError(
            f"{file}: has no {e.args[0]}, which cannot be told from the rest; expected a language "
            "model as fairseq saves it, with its arguments"
        ) from e
    decoder_config(config, file, "its arguments")  # before anything is written
    return config


def _fairseq_tokenizer(folder: Path) -> Tokenizer:
    """GPT-2's tokenizer with the ids that dict.txt gives its tokens."""
    gpt2 = bpe.read_vocabulary(folder / "encoder.json")
    tokens = {str(number): token for token, number in gpt2.items()}
    ids = {token: number for number, token in enumerate(_FAIRSEQ_SPECIAL)}
    path = folder / "dict.txt"
    with forms.refused(f"{path}: not a list of tokens", (OSError, ValueError)):
        lines = path.read_text(encoding="utf-8").splitlines()
    for line in lines:
        symbol = line.rpartition(" ")[0]  # then its count
        ids.setdefault(tokens.get(symbol, symbol), len(ids))
    if missing := [token for token in gpt2 if token not in ids and token != "<|endoftext|>"]:
        raise UserError(
            f"{path} has no number for {len(missing)} of encoder.json's tokens, such as "
            f"{missing[0]!r}; give the files that belong to this model"
        )
    merges = bpe.read_merges(folder / "vocab.bpe")
    what = f"{folder}: {', '.join(FAIRSEQ_FILES[1:])} do not make a tokenizer"
    with forms.refused(what, bpe.RAISED, "; give the files that belong to this model"):
        return bpe.tokenizer(ids, merges, special=_FAIRSEQ_SPECIAL)
