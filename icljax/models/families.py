"""config.json of a Hugging Face model -> DecoderConfig; what the decoder lacks is refused."""

from pathlib import Path
from typing import Any

from icljax import forms
from icljax.attention import Kind
from icljax.attention.mixing import check_kind
from icljax.errors import UserError
from icljax.forms import TABLE
from icljax.models.config import DecoderConfig, Rope
from icljax.models.family_tables import (
    ATTENTION_KEY,
    FAMILIES,
    FORMS,
    KIND_FORMS,
    NEUTRAL,
    REFUSED,
    Family,
)
from icljax.models.options import LAYER_TYPES, ROPE_FORMS, ROPE_TABLES, Fields, expect, lookup

DEQUANTISE = "give a dequantised copy (float32, float16 or bfloat16), or a GGUF file of the model"


def decoder_config(
    hf: dict[str, Any], where: Path | str, source: str = "config.json"
) -> DecoderConfig:
    """A Hugging Face config.json as a DecoderConfig.

    Args:
        hf: the file's content.
        where: names its folder in errors.
        source: names it there.

    Raises:
        UserError: for an architecture or option that the decoder does not have, and for a value
            that is none of its key's.
    """
    kind = hf.get("model_type")
    if isinstance(kind, str) and kind in REFUSED:
        raise UserError(f"{where}: model_type {kind!r} {REFUSED[kind]}")
    if not isinstance(kind, str) or kind not in FAMILIES:
        what = f"model_type {forms.shown(kind)} is unknown"
        what = f"{source} has no 'model_type'" if kind is None else what
        raise UserError(f"{where}: {what}; supported: {', '.join(FAMILIES)}")
    named = f"{where}: {source}"
    forms.check(named, hf, FORMS)
    for key in ROPE_TABLES:
        table = hf.get(key) or {}
        forms.check(f"{named}: {key}", table, ROPE_FORMS | dict.fromkeys(LAYER_TYPES, TABLE))
        for kind_of_layer in LAYER_TYPES:
            where_in = f"{named}: {key}: {kind_of_layer}"
            forms.check(where_in, table.get(kind_of_layer) or {}, ROPE_FORMS)
    _refuse_quantised(named, hf)
    own = _own_kinds(named, hf)
    try:
        fields = _fields(hf, FAMILIES[kind])
    except KeyError as e:
        raise UserError(f"{where}: {source} has no {e.args[0]!r}, which {kind} needs") from e
    except ValueError as e:
        raise UserError(f"{named}: {e}") from e
    return DecoderConfig(**fields | ({"attention": own} if own else {}))


def _refuse_quantised(named: str, hf: dict[str, Any]) -> None:
    """Quantised weights are numbers only together with scales that the decoder does not read."""
    for key in ("quantization_config", "compression_config"):
        if about := hf.get(key):
            method = about.get("quant_method") if isinstance(about, dict) else None
            by = f" by {forms.shown(method)}" if method else ""
            raise UserError(
                f"{named}: {key}: the weights are quantised{by}, which is not supported; "
                f"{DEQUANTISE}"
            )


def _own_kinds(named: str, hf: dict[str, Any]) -> tuple[Kind, ...]:
    """The kinds of attention of a model that was trained here."""
    kinds = []
    for given in hf.get(ATTENTION_KEY) or ():
        forms.check(f"{named}: {ATTENTION_KEY}", given, KIND_FORMS)
        given = {name: value for name, value in given.items() if value is not None}
        try:
            kind = Kind(**{**given, "learn": tuple(given.get("learn", ()))})
            check_kind(kind)
        except (TypeError, AttributeError, UserError) as e:
            raise UserError(f"{named}: {ATTENTION_KEY}: {forms.one_line(e)}") from e
        kinds.append(kind)
    return tuple(kinds)


def _fields(hf: dict[str, Any], family: Family) -> Fields:
    """DecoderConfig's fields."""
    for key, supported in (NEUTRAL | family.only).items():
        if key not in family.reads:
            expect(hf, key, supported)
    fields = {field: lookup(hf, key) for field, key in family.keys.items()}
    heads, groups = fields["num_heads"], hf.get("num_key_value_heads") or fields["num_heads"]
    if heads % groups:
        raise ValueError(f"{groups} key/value heads cannot be shared evenly by {heads} heads")
    key = "activation_function" if "activation_function" in hf else "hidden_act"
    expect(hf, key, tuple(family.mlps))
    fields |= {
        "num_kv_heads": groups,
        "head_width": hf.get("head_dim") or fields["width"] // heads,
        "mlp_width": fields["mlp_width"] or 4 * fields["width"],
        "mlp": family.mlps[hf.get(key) or next(iter(family.mlps))],
        **family.fixed,
    }
    more = family.more(hf, fields)
    if not hf.get("head_dim") and "head_width" not in more and fields["width"] % heads:
        raise ValueError(f"a width of {fields['width']} cannot be cut evenly into {heads} heads")
    fields |= more
    _check_positions(fields)
    return fields


def _check_positions(fields: Fields) -> None:
    """Rotations turn pairs of a head's numbers; sinusoids are sines and as many cosines."""
    positions = fields.get("positions")
    one = positions[0] if isinstance(positions, tuple) else positions
    if isinstance(one, Rope):
        width = one.width or fields["head_width"]
        if width % 2 or width > fields["head_width"]:
            raise ValueError(
                f"{width} of a head's {fields['head_width']} numbers cannot be rotated: they are "
                "turned in pairs"
            )
    if positions == "sinusoidal" and (fields["width"] % 2 or fields["width"] < 4):
        raise ValueError(
            f"a width of {fields['width']} has no sinusoidal positions, only even ones"
        )
