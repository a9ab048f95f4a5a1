"""What keys of config.json say: forms of their values, positions, and each family's own rules.

Sources: the configuration_*.py and modeling_*.py of each model type in `transformers`, with its
defaults for keys that are missing.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, TypeVar

from icljax import forms
from icljax.attention import Kind
from icljax.forms import FLAG, SIZE, TEXT
from icljax.models.config import Rope

Fields = dict[str, Any]  # DecoderConfig's, as far as they are known

T = TypeVar("T")
ROPE_TABLES = ("rope_scaling", "rope_parameters")  # older, newer
LAYER_TYPES = ("full_attention", "sliding_attention")
_YARN = ("attention_factor", "beta_fast", "beta_slow", "truncate")
_ROPE_SCALES = ("factor", "low_freq_factor", "high_freq_factor", *_YARN[:3])
ROPE_FORMS = {
    **dict.fromkeys(("rope_type", "type"), TEXT),
    **dict.fromkeys(("rope_theta", *_ROPE_SCALES), forms.number()),
    "partial_rotary_factor": forms.number(0, 1),
    "original_max_position_embeddings": SIZE,
    "truncate": FLAG,
}


def lookup(hf: dict[str, Any], key: str | tuple[str, Any]) -> Any:
    """What config.json says of a key; its default where it is a pair of both, and missing.

    Raises:
        KeyError: a key without a default is missing.
    """
    value = hf.get(key if isinstance(key, str) else key[0])
    if value is not None:
        return value
    if isinstance(key, str):
        raise KeyError(key)
    return key[1]


def expect(hf: dict[str, Any], key: str, supported: Sequence[Any]) -> None:
    """Refuses a value that is not supported; in a list, one item that is not."""
    value = hf.get(key)
    for item in value if isinstance(value, list) else [value]:
        if item is not None and item not in supported:
            only = f", only {' or '.join(map(repr, supported))}" if supported else ""
            raise ValueError(f"{key}={forms.shown(item)} is not supported{only}; use another model")


def rope(hf: dict[str, Any], fields: Fields, partial: float | None = None) -> Rope:
    """Rotary positions; `partial`: how much of a head they turn by default, None: always all."""
    tables = [hf[key] for key in ROPE_TABLES if hf.get(key)]
    given = tables[0] if tables else {}
    for table in tables:
        if table.get("rope_type", table.get("type")) != table.get("type", table.get("rope_type")):
            raise ValueError("type and rope_type of the rotary positions differ; remove one")
        known = set(ROPE_FORMS)
        if "yarn" not in (table.get("rope_type"), table.get("type")):
            known -= set(_YARN)
        if unknown := sorted(table.keys() - known):
            raise ValueError(f"{forms.shown(unknown[0])} of the rotary positions is not supported")
        if table != given:
            raise ValueError(f"{' and '.join(ROPE_TABLES)} differ; remove one")
    kind = "rope_type" if "rope_type" in given else "type"  # the key's older name
    expect(given, kind, ("default", "linear", "llama3", "yarn"))
    theta = given.get("rope_theta") or hf.get("rope_theta") or hf.get("rotary_emb_base")
    shares = (given.get("partial_rotary_factor"), hf.get("partial_rotary_factor"))
    share = next((x for x in (*shares, hf.get("rotary_pct")) if x), partial or 1)
    if partial is None and share != 1:
        raise ValueError(f"rotating only {share:g} of each head is not supported")
    width = 0 if share == 1 else int(share * fields["head_width"])
    if share != 1 and not width:
        raise ValueError(f"{share:g} of a head's {fields['head_width']} numbers is none to rotate")
    rope = Rope(float(theta or 10_000.0), width)
    scales = [key for key in _ROPE_SCALES if given.get(key) is not None]
    if scales and given.get(kind) is None:
        raise ValueError(
            f"the rotary positions have {scales[0]}={given[scales[0]]:g} and no rope_type; add it, "
            "or remove the scaling"
        )
    if given.get(kind) == "linear":
        return dataclasses.replace(rope, factor=float(lookup(given, "factor")))
    if given.get(kind) == "yarn":
        return _yarn(rope, given, fields)
    if given.get(kind) == "llama3":
        factor, low, high = (
            float(lookup(given, key)) for key in ("factor", "low_freq_factor", "high_freq_factor")
        )
        if low >= high:
            raise ValueError(f"low_freq_factor={low:g} is not below high_freq_factor={high:g}")
        context = given.get("original_max_position_embeddings") or fields["context_length"]
        return dataclasses.replace(rope, factor=factor, low=low, high=high, original_length=context)
    return rope


def _yarn(rope: Rope, given: dict[str, Any], fields: Fields) -> Rope:
    """YaRN (Peng et al. 2023): pairs that turn often in the original context stay as they are."""
    width = rope.width or fields["head_width"]
    context = lookup(given, ("original_max_position_embeddings", fields["context_length"]))
    factor = float(lookup(given, "factor"))

    def pair(turns: float) -> float:
        """The pair that turns so often in the context."""
        return width * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    first, last = pair(lookup(given, ("beta_fast", 32))), pair(lookup(given, ("beta_slow", 1)))
    if lookup(given, ("truncate", True)):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, width - 1)
    ramp = (float(first), float(last) + 0.001 * (first == last))
    amplitude = lookup(given, ("attention_factor", 0.1 * math.log(max(factor, 1.0)) + 1))
    return dataclasses.replace(rope, factor=factor, ramp=ramp, amplitude=float(amplitude))


def _repeated(layers: Sequence[T]) -> tuple[T, ...]:
    """The shortest pattern whose repetition gives what the layers have."""
    periods = range(1, len(layers) + 1)
    period = next(p for p in periods if all(x == layers[i % p] for i, x in enumerate(layers)))
    return tuple(layers[:period])


def _pattern(windows: Sequence[int], cap: float = 0.0) -> tuple[Kind, ...]:
    """Softmax attention with each layer's window (0: none), as the shortest repeated pattern."""
    return _repeated([Kind(window=window, cap=cap) for window in windows])


def _are_local(hf: dict[str, Any], fields: Fields, every: int) -> list[bool]:
    """Whether each layer has a window; unless layer_types say it, all but one of `every`."""
    count, kinds = fields["num_layers"], hf.get("layer_types")
    if kinds and len(kinds) != count:
        raise ValueError(f"layer_types are of {len(kinds)} layers, not {count}")
    if kinds:
        return [kind == "sliding_attention" for kind in kinds]
    return [(i + 1) % every > 0 for i in range(count)]


def llama(hf: dict[str, Any], fields: Fields) -> Fields:
    """Llama: rotary positions, biases or none."""
    bias = hf.get("attention_bias") or False
    return {"positions": rope(hf, fields), "qkv_bias": bias, "output_bias": bias}


def mistral(hf: dict[str, Any], fields: Fields) -> Fields:
    """Mistral: a window in every layer."""
    window = hf.get("sliding_window", 4096) or 0
    return {"positions": rope(hf, fields), "attention": _pattern([window])}


def qwen(hf: dict[str, Any], fields: Fields) -> Fields:
    """Qwen2 and Qwen3: the layers from `max_window_layers` on have a window, where one is used."""
    count, kinds = fields["num_layers"], hf.get("layer_types")
    if kinds and len(kinds) != count:
        raise ValueError(f"layer_types are of {len(kinds)} layers, not {count}")
    out = {"positions": rope(hf, fields)}
    if not hf.get("use_sliding_window"):
        return out
    first, window = lookup(hf, ("max_window_layers", 28)), lookup(hf, "sliding_window")
    kinds = kinds or ["full_attention" if i < first else "sliding_attention" for i in range(count)]
    return out | {"attention": _pattern([window * (k == "sliding_attention") for k in kinds])}


def qwen3(hf: dict[str, Any], fields: Fields) -> Fields:
    """Qwen3: as both, and heads of a width of their own."""
    head_width = hf.get("head_dim") or 128
    return llama(hf, fields) | qwen(hf, fields) | {"head_width": head_width}


def gemma(hf: dict[str, Any], fields: Fields) -> Fields:
    """Gemma: embeddings are scaled, heads have a width of their own."""
    scale, head_width = math.sqrt(fields["width"]), hf.get("head_dim") or 256
    return llama(hf, fields) | {"embed_scale": scale, "head_width": head_width}


def gemma2(hf: dict[str, Any], fields: Fields, every: int = 2, cap: float | None = 50.0) -> Fields:
    """Gemma 2: as the first, windows in all but one of `every` layers, soft caps of logits."""
    window, scalar = hf.get("sliding_window", 4096) or 0, hf.get("query_pre_attn_scalar") or 256
    windows = [window * local for local in _are_local(hf, fields, every)]
    return gemma(hf, fields) | {
        "attention_scale": scalar**-0.5,
        "attention": _pattern(windows, hf.get("attn_logit_softcapping", cap) or 0.0),
        "logit_cap": hf.get("final_logit_softcapping", cap and 30.0) or 0.0,
    }


def gemma3(hf: dict[str, Any], fields: Fields) -> Fields:
    """Gemma 3: as the second, a rotary base of its own for layers with a window, no caps."""
    every = lookup(hf, ("sliding_window_pattern", lookup(hf, ("_sliding_window_pattern", 6))))
    parameters = hf.get("rope_parameters") or {}
    if parameters.keys() & set(LAYER_TYPES):  # newer: a table each
        if unknown := sorted(parameters.keys() - set(LAYER_TYPES)):
            raise ValueError(f"{forms.shown(unknown[0])} beside {LAYER_TYPES[0]} is not supported")
        everywhere, local = ({"rope_parameters": parameters.get(kind)} for kind in LAYER_TYPES)
    else:
        everywhere = {key: hf.get(key) for key in ("rope_theta", *ROPE_TABLES)}
        local = {"rope_theta": hf.get("rope_local_base_freq")}
    bases = ((everywhere, 1e6), (local, 1e4))
    ropes = [rope({"rope_theta": theta} | _given(table), fields) for table, theta in bases]
    turned = [ropes[is_local] for is_local in _are_local(hf, fields, every)]
    without = {key: value for key, value in hf.items() if key not in ROPE_TABLES}
    return gemma2(without, fields, every, None) | {"positions": _repeated(turned)}


def _given(table: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in table.items() if value is not None}


def granite(hf: dict[str, Any], fields: Fields) -> Fields:
    """Granite: multipliers of embeddings, attention, residuals and logits."""
    return llama(hf, fields) | {
        "embed_scale": float(lookup(hf, ("embedding_multiplier", 1.0))),
        "residual_scale": float(lookup(hf, ("residual_multiplier", 1.0))),
        "attention_scale": float(lookup(hf, ("attention_multiplier", 1.0))),
        "logit_scale": 1 / lookup(hf, ("logits_scaling", 1.0)),
    }


def smollm3(hf: dict[str, Any], fields: Fields) -> Fields:
    """SmolLM3: layers without positions, every fourth one unless the config says which."""
    count, every = fields["num_layers"], lookup(hf, ("no_rope_layer_interval", 4))
    turned = hf.get("no_rope_layers") or [(i + 1) % every > 0 for i in range(count)]
    if len(turned) != count:
        raise ValueError(f"no_rope_layers are of {len(turned)} layers, not {count}")
    out = llama(hf, fields)
    still = dataclasses.replace(out["positions"], factor=math.inf)
    if still.original_length or still.ramp:
        raise ValueError("layers without positions and this rotary scaling are not supported")
    return out | {"positions": _repeated([out["positions"] if t else still for t in turned])}


def stablelm(hf: dict[str, Any], fields: Fields) -> Fields:
    """StableLM 2: a quarter of each head is rotated, both sublayers may share a norm."""
    parallel = lookup(hf, ("use_parallel_residual", False))
    block = "shared_norm" if parallel else "sequential"
    return {"positions": rope(hf, fields, 0.25), "block": block}


def gpt_neo(hf: dict[str, Any], fields: Fields) -> Fields:
    """GPT-Neo: layers with a window between those without."""
    count, repeated = fields["num_layers"], lookup(hf, "attention_types")
    given = sum(len(kinds) * times for kinds, times in repeated)
    if given != count:
        raise ValueError(f"attention_types are of {given} layers, not {count}")
    kinds = [kind for kinds, times in repeated for _ in range(times) for kind in kinds]
    if not set(kinds) <= {"global", "local"}:
        raise ValueError(f"attention_types={sorted(set(kinds))} are not all 'global' or 'local'")
    window = lookup(hf, ("window_size", 256))
    return {"attention": _pattern([window if kind == "local" else 0 for kind in kinds])}


def gptj(hf: dict[str, Any], fields: Fields) -> Fields:
    """GPT-J: neighbours are rotated, and a part of each head alone."""
    if not hf.get("rotary_dim"):
        raise ValueError("rotary_dim is not given, which the published models have; use another")
    return {"positions": Rope(width=hf["rotary_dim"], interleaved=True)}


def gpt_neox(hf: dict[str, Any], fields: Fields) -> Fields:
    """GPT-NeoX: attention and MLP beside each other, or one after the other."""
    parallel = lookup(hf, ("use_parallel_residual", True))
    return {
        "positions": rope(hf, fields, 0.25),
        "block": "parallel" if parallel else "sequential",
        "output_bias": fields["qkv_bias"],
    }


def opt(hf: dict[str, Any], fields: Fields) -> Fields:
    """OPT: all matrices have biases, or none."""
    expect(hf, "word_embed_proj_dim", (fields["width"],))  # OPT-350m's embeddings are narrower
    return dict.fromkeys(("output_bias", "mlp_bias"), fields["qkv_bias"])


def xglm(hf: dict[str, Any], fields: Fields) -> Fields:
    """XGLM: embeddings may be scaled."""
    scaled = lookup(hf, ("scale_embedding", True))
    return {"embed_scale": math.sqrt(fields["width"]) if scaled else 1.0}
