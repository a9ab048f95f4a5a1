"""Whether a folder's tensors are those of a plan: all there, of their shapes, none left over."""

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from icljax import forms
from icljax.checkpoints.tensor_files import COMPARED, DTYPES, INTEGERS, Stored, equal, rows_of
from icljax.errors import UserError
from icljax.models.decoder import DecoderConfig
from icljax.models.families import DEQUANTISE
from icljax.models.plans import Buffer, LeafPath, Plan, axis_sizes

# Names of tensors that no plain model has, and what they mean.
_QUANTISED = (
    (r"\.(SCB|weight_format)$", "bitsandbytes (8 bits)"),
    (r"\.(nested_)?(absmax|quant_map)$|\.quant_state\.", "bitsandbytes (4 bits)"),
    (r"\.g_idx$", "GPTQ"),
    (r"\.(qweight|qzeros)$", "GPTQ or AWQ"),
    (r"\.weight_(packed|shape|zero_point|global_scale)$", "compressed-tensors"),
    (r"\.(weight|input|activation|output|k|v)_scale(_inv|_2)?$", "FP8 or INT8 with scales"),
    (r"_blocks$", "MXFP4"),
    (r"\.W_q$", "HQQ"),
    (r"\.(codes|codebooks)$", "AQLM"),
    (r"\.(scales?|zeros|zero_point|_scale|_data)$", "a method with scales"),
)
_INSTEAD = (  # of a weight
    (r"lora_|\.base_layer\.|\.modules_to_save\.", "an adapter's; merge it into its base model"),
    (
        r"weight_(orig|mask|g|v)$|\.parametrizations\.",
        "of pruned or normalised weights; make that permanent and save the model again",
    ),
)
_FOREIGN = (
    *_INSTEAD,
    (
        r"(score|classifier|v_head|value_head|summary|qa_outputs)\.",
        "of a head for another task; give the language model",
    ),
    (r"experts?\.|\.router\.", "of a mixture of experts, which is not supported"),
    (r"\.bias$", "biases, which config.json (attention_bias, mlp_bias) says it has not"),
)
_EMBEDDING = ("embed", "embedding")


def matched(
    folder: Path, stored: Mapping[str, Stored], plan: Plan, config: DecoderConfig
) -> dict[LeafPath, list[str]]:
    """The tensors of each leaf: one, or one a layer.

    Raises:
        UserError: for a missing tensor, one of an unexpected shape or type, and one that the
            decoder has no use for.
    """
    _refuse_quantised(folder, stored)
    names = _names(folder, plan, stored, config.num_layers)
    sizes = axis_sizes(config)
    for path, leaf in plan.leaves.items():
        for name in names[path]:
            _check(folder, name, stored[name], leaf.layout.file_shape(sizes))
    _check_all_used(folder, plan, stored, names, config.num_layers)
    return names


def _refuse_quantised(folder: Path, stored: Mapping[str, Stored]) -> None:
    """Quantised weights have other names and shapes, and are numbers only with their scales."""
    for pattern, method in _QUANTISED:
        if name := next((name for name in stored if re.search(pattern, name)), None):
            raise UserError(
                f"{folder}: the weights are quantised by {method}, as tensor {forms.shown(name)} "
                f"says, which is not supported; {DEQUANTISE}"
            )


def _names(
    folder: Path, plan: Plan, stored: Mapping[str, Stored], num_layers: int
) -> dict[LeafPath, list[str]]:
    """The tensors of each leaf: one, or one a layer."""
    leaves = [leaf for leaf in plan.leaves.values() if not leaf.outside]
    prefixes = (p for p in plan.prefixes if any(leaf.name(p) in stored for leaf in leaves))
    prefix = next(prefixes, plan.prefixes[0])
    names: dict[LeafPath, list[str]] = {}
    for path, leaf in plan.leaves.items():
        names[path] = []
        for layer in range(num_layers if "{}" in leaf.tensor else 1):
            name = leaf.name(prefix, layer)
            if name not in stored and path == _EMBEDDING and plan.tied in stored:
                name = plan.tied
            if name not in stored:
                raise UserError(
                    f"{folder}: the weights have no tensor {name!r}{_why(path, plan, stored)}"
                )
            names[path].append(name)
    return names


def _why(path: LeafPath, plan: Plan, stored: Mapping[str, Stored]) -> str:
    """What may be wrong where a leaf's tensor is missing."""
    for pattern, meaning in _INSTEAD:
        if other := next((name for name in stored if re.search(pattern, name)), None):
            return f", but {forms.shown(other)}: it is {meaning}"
    if path[-1] == "bias":
        return "; config.json says that the model has biases: correct it, or give the whole model"
    if path not in (_EMBEDDING, ("unembed", "kernel")):
        return "; wrong model_type, or a file of another model?"
    if plan.tied:
        return f" and no {plan.tied!r}; give the whole model"
    return (
        ", and config.json does not say that embedding and output projection are one matrix; set "
        "its tie_word_embeddings to true if they are, or give the whole model"
    )


def _check(folder: Path, name: str, tensor: Stored, expected: tuple[int, ...]) -> None:
    if tensor.shape != expected:
        raise UserError(
            f"{folder}: tensor {name!r} has shape {tensor.shape}, but config.json asks for "
            f"{expected}; weights and config.json do not belong together"
        )
    if tensor.dtype not in DTYPES:
        raise UserError(
            f"{folder}: tensor {name!r} is stored as {tensor.dtype}, supported: "
            f"{', '.join(DTYPES)}; {DEQUANTISE}"
        )


def _check_all_used(
    folder: Path,
    plan: Plan,
    stored: Mapping[str, Stored],
    names: dict[LeafPath, list[str]],
    num_layers: int,
) -> None:
    """What would be left out silently changes nothing, or is refused."""
    unused = sorted(stored.keys() - set(itertools.chain(*names.values())))
    if plan.tied in unused:
        (embedding,) = names[_EMBEDDING]
        unused.remove(plan.tied)
        if not equal(stored[embedding], stored[plan.tied]):
            raise UserError(
                f"{folder}: tensors {embedding!r} and {plan.tied!r} differ, but config.json ties "
                "them; set its tie_word_embeddings to false to use both"
            )
    for name in list(unused):
        if buffer := next((b for b in plan.buffers if name.endswith(b.ending)), None):
            unused.remove(name)
            _check_buffer(folder, name, stored[name], buffer, plan.config)
    if unused:
        few = ", ".join(map(forms.shown, unused[:3])) + (", ..." if len(unused) > 3 else "")
        raise UserError(
            f"{folder}: the weights have {len(unused)} tensors that the model of config.json does "
            f"not use: {few}; {_meaning(unused, num_layers)}"
        )


def _meaning(unused: Sequence[str], num_layers: int) -> str:
    """What tensors that are not used say about the model."""
    layers = {int(n) for name in unused for n in re.findall(r"(?:layers|h)\.(\d{1,9})\.", name)}
    if layers and min(layers) >= num_layers:
        return (
            f"layers from {min(layers)} on are more than config.json's number of layers, "
            f"{num_layers}; correct it, or give the weights that belong to it"
        )
    for pattern, meaning in _FOREIGN:
        if re.search(pattern, unused[0]):
            return f"they are {meaning}"
    return "weights and config.json do not belong together"


def _check_buffer(
    folder: Path, name: str, tensor: Stored, buffer: Buffer, config: DecoderConfig | None
) -> None:
    """Refuses a buffer that holds something else than what the decoder computes in its place."""
    layer = next((int(n) for n in re.findall(r"\.(\d{1,9})\.", name)), 0)
    columns = tensor.shape[-1] if tensor.shape else 1
    known = tensor.dtype in DTYPES | INTEGERS and 0 not in tensor.shape and 8 * columns <= COMPARED
    if (
        config is None
        or not known
        or not all(buffer.agrees(rows, config, layer) for rows in rows_of(tensor, columns))
    ):
        raise UserError(
            f"{folder}: tensor {forms.shown(name)} is not {buffer.what} as the model of "
            "config.json has it, and would be left out; weights and config.json do not belong "
            "together"
        )
