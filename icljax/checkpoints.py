"""Pretrained models: a name, a .gguf file or a Hugging Face folder -> (config, params, tokenizer).

Everything ends in one loader, that of a Hugging Face folder: a GGUF file is first converted to
one, once, in the cache. Nothing in a checkpoint is ever executed.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer

from icljax import assets
from icljax.attention import Kind
from icljax.errors import UserError
from icljax.mixing import LEARNABLE
from icljax.model import DecoderConfig, Params, init_params

# Models that a package index carries whole.
PACKAGED = {"smollm2-135m": assets.SMOLLM2}

# Where config.json says which kinds of attention a model has, and what their numbers are called.
ATTENTION_KEY = "icljax_attention"
LEARNED_NAME = "self_attn.icljax_{}"

Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A model on disk, as a Hugging Face folder.

    Attributes:
        name: what the user asked for.
        folder: holds config.json, *.safetensors and tokenizer.json.
        config: the decoder that reads it.
        tokenizer: its tokenizer, without automatic special tokens.
        bos, eos: token ids.
    """

    name: str
    folder: Path
    config: DecoderConfig
    tokenizer: Tokenizer
    bos: int
    eos: int


def open_checkpoint(name: str, progress: Progress | None = None) -> Checkpoint:
    """Finds (or fetches and converts) a model and reads its config and tokenizer, not its weights.

    Raises:
        UserError: for an unknown name, a damaged file, an unsupported architecture.
    """
    folder = locate(name, progress)
    hf_config = _read_json(folder / "config.json")
    config = decoder_config(hf_config, folder)
    tokenizer = _read_tokenizer(folder / "tokenizer.json")
    if tokenizer.get_vocab_size() > config.vocab_size:
        raise UserError(
            f"{folder}: tokenizer.json has {tokenizer.get_vocab_size()} tokens, but the model's "
            f"vocabulary only {config.vocab_size}; use the tokenizer that belongs to this model"
        )
    bos, eos = _special_tokens(hf_config, config.vocab_size, folder)
    return Checkpoint(name, folder, config, tokenizer, bos, eos)


def locate(name: str, progress: Progress | None = None) -> Path:
    """The Hugging Face folder for a packaged name, a folder or a .gguf file."""
    path = Path(name).expanduser()
    if name in PACKAGED:
        return _converted(assets.fetch(PACKAGED[name], progress), PACKAGED[name].sha256, progress)
    if path.is_dir():
        return path
    if path.suffix == ".gguf" and path.is_file():
        return _converted(path, _sha256([path]), progress)
    raise UserError(
        f"model {name!r} is neither a known name ({', '.join(PACKAGED)}) nor an existing folder "
        "or .gguf file; give one with --config.model=NAME_OR_FOLDER"
    )


def _converted(gguf_file: Path, sha256: str, progress: Progress | None) -> Path:
    folder = assets.cache_dir() / "models" / f"{gguf_file.stem}-{sha256[:12]}"
    if not (folder / "config.json").is_file():
        from icljax import gguf_reader  # its import is slow, and needed once a model

        gguf_reader.convert(gguf_file, folder, progress)
    return folder


def decoder_config(hf: dict[str, Any], where: Path | str) -> DecoderConfig:
    """A Hugging Face config.json as a DecoderConfig.

    Raises:
        UserError: for an architecture or option that the decoder does not have.
    """
    kind = hf.get("model_type")
    try:
        if kind == "llama":
            return dataclasses.replace(_llama_config(hf), attention=_own_attention(hf))
        if kind == "gpt2":
            return dataclasses.replace(_gpt2_config(hf), attention=_own_attention(hf))
    except KeyError as e:
        raise UserError(f"{where}: config.json has no {e.args[0]!r}, which {kind} needs") from e
    except (TypeError, ValueError, ZeroDivisionError) as e:
        raise UserError(f"{where}: config.json: {e}") from e
    what = "config.json has no 'model_type'" if kind is None else f"model_type {kind!r} is unknown"
    raise UserError(f"{where}: {what}; supported: gpt2, llama")


def _expect(hf: dict[str, Any], **supported: Any) -> None:
    for key, value in supported.items():
        if hf.get(key, value) != value:
            raise ValueError(
                f"{key}={hf[key]!r} is not supported, only {value!r}; use another model"
            )


def _llama_config(hf: dict[str, Any]) -> DecoderConfig:
    rope = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
    _expect(rope, rope_type="default", type="default")  # `type` is the key's older name
    _expect(hf, hidden_act="silu")
    bias = hf.get("attention_bias", False)
    heads = hf["num_attention_heads"]
    groups = hf.get("num_key_value_heads") or heads
    if heads % groups:
        raise ValueError(f"{groups} key/value heads cannot be shared evenly by {heads} heads")
    return DecoderConfig(
        vocab_size=hf["vocab_size"],
        num_layers=hf["num_hidden_layers"],
        width=hf["hidden_size"],
        mlp_width=hf["intermediate_size"],
        num_heads=heads,
        num_kv_heads=groups,
        head_width=hf.get("head_dim") or hf["hidden_size"] // heads,
        context_length=hf["max_position_embeddings"],
        norm_eps=hf["rms_norm_eps"],
        rope_theta=float(rope.get("rope_theta") or hf.get("rope_theta") or 10_000.0),
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=hf.get("mlp_bias", False),
        tied=hf.get("tie_word_embeddings", False),
    )


def _own_attention(hf: dict[str, Any]) -> tuple[Kind, ...]:
    """Softmax, or the kinds of attention of a model that was trained here."""
    kinds = (Kind(**{**k, "learn": tuple(k["learn"])}) for k in hf.get(ATTENTION_KEY, ()))
    return tuple(kinds) or (Kind(),)


def _gpt2_config(hf: dict[str, Any]) -> DecoderConfig:
    _expect(
        hf,
        activation_function="gelu_new",
        scale_attn_weights=True,
        scale_attn_by_inverse_layer_idx=False,
    )
    return DecoderConfig(
        vocab_size=hf["vocab_size"],
        num_layers=hf["n_layer"],
        width=hf["n_embd"],
        mlp_width=hf.get("n_inner") or 4 * hf["n_embd"],
        num_heads=hf["n_head"],
        num_kv_heads=hf["n_head"],
        head_width=hf["n_embd"] // hf["n_head"],
        context_length=hf["n_positions"],
        norm="layer",
        norm_eps=hf.get("layer_norm_epsilon", 1e-5),
        positions="learned",
        mlp="gelu",
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
        tied=hf.get("tie_word_embeddings", True),
    )


def load_params(folder: Path, config: DecoderConfig) -> Params:
    """Reads the weights of a Hugging Face folder into the decoder's parameter tree.

    Matrices are kept in `config.dtype`; the key and value projections, which finetuning changes
    by steps too small for bfloat16, in float32.

    Raises:
        UserError: for a truncated file, a missing tensor, one of an unexpected shape, or one that
            the decoder has no use for.
    """
    tensors = _Tensors(folder)
    plan = _llama_plan if config.norm == "rms" else _gpt2_plan
    params = plan(tensors, config)
    expected = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    _check_shapes(params, expected, folder)
    tensors.check_all_used(config)
    return _cast(params, config.dtype)


def _check_shapes(params: Params, expected: Params, folder: Path) -> None:
    got = dict(jax.tree_util.tree_leaves_with_path(params))
    for path, leaf in jax.tree_util.tree_leaves_with_path(expected):
        shape = got[path].shape if path in got else None
        if shape != leaf.shape:
            raise UserError(
                f"{folder}: {jax.tree_util.keystr(path)} has shape {shape}, but config.json "
                f"asks for {leaf.shape}; weights and config.json do not belong together"
            )


def _cast(params: Params, dtype: str) -> Params:
    def cast(path: tuple[Any, ...], leaf: np.ndarray) -> jax.Array:
        trained = any(getattr(part, "key", "") in ("key", "value", *LEARNABLE) for part in path)
        return jnp.asarray(leaf, jnp.float32 if trained else dtype)

    return jax.tree_util.tree_map_with_path(cast, params)


class _Tensors:
    """The tensors of a folder by name, read when asked for; single file or sharded index."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.files: dict[str, Any] = {}
        self.used: set[str] = set()
        for file in weight_files(folder):
            try:
                handle = safe_open(file, framework="numpy")
            except (SafetensorError, OSError) as e:
                raise UserError(
                    f"{file}: not a whole safetensors file ({e}); fetch it again"
                ) from e
            self.files |= dict.fromkeys(handle.keys(), handle)
        # GPT-2 checkpoints come with and without this prefix.
        self.prefix = (
            "transformer." if any(n.startswith("transformer.") for n in self.files) else ""
        )

    def __call__(self, name: str) -> np.ndarray:
        if name not in self.files:
            raise UserError(
                f"{self.folder}: the weights have no tensor {name!r}; wrong model_type?"
            )
        self.used.add(name)
        return self.files[name].get_tensor(name)

    def layers(
        self, name: str, count: int, form: Callable[[np.ndarray], np.ndarray] = lambda x: x
    ) -> np.ndarray:
        """The tensors of all layers, each put into `form`, stacked: [L, ...]."""
        first = self._formed(name.format(0), form)
        out = np.empty((count, *first.shape), first.dtype)
        out[0] = first
        for layer in range(1, count):
            out[layer] = self._formed(name.format(layer), form, first.shape)
        return out

    def _formed(
        self,
        name: str,
        form: Callable[[np.ndarray], np.ndarray],
        shape: tuple[int, ...] | None = None,
    ) -> np.ndarray:
        tensor = self(name)
        try:
            out = form(tensor)
        except ValueError:  # a reshape that does not divide
            out = None
        if out is None or shape not in (None, out.shape):
            raise UserError(
                f"{self.folder}: tensor {name!r} has shape {tensor.shape}, which is not what "
                "config.json asks for; weights and config.json do not belong together"
            )
        return out

    def check_all_used(self, config: DecoderConfig) -> None:
        """A bias or a layer that config.json does not announce would be left out silently."""
        buffers = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")  # causal masks etc.
        unused = [n for n in sorted(self.files.keys() - self.used) if not n.endswith(buffers)]
        unused = [n for n in unused if not (config.tied and n == "lm_head.weight")]
        if unused:
            raise UserError(
                f"{self.folder}: config.json asks for all tensors but {len(unused)}, such as "
                f"{unused[0]!r}; weights and config.json do not belong together"
            )


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, in name order.

    Raises:
        UserError: when there are none, or a file of the index is missing.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(_read_json(index)["weight_map"].values()))
        except (AttributeError, KeyError) as e:
            raise UserError(f"{index} has no weight_map of tensors to files; fetch it again") from e
    else:
        names = ["model.safetensors"]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"{folder} has no {', '.join(missing)}; a model folder holds config.json, "
            "tokenizer.json and model.safetensors (or its shards with their index)"
        )
    return [folder / name for name in names]


def _llama_plan(get: _Tensors, c: DecoderConfig) -> Params:
    def stack(name: str, form: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        return get.layers("model.layers.{}." + name, c.num_layers, form)

    def dense(name: str, bias: bool, shape: tuple[int, ...] = (), inputs: bool = False) -> Params:
        """A torch Linear [out, in] as [in, out], `out` (or `in`, for inputs) split to shape."""

        def form(w: np.ndarray) -> np.ndarray:
            return w.T.reshape((*shape, -1) if inputs else (-1, *(shape or w.shape[:1])))

        out = {"kernel": stack(name + ".weight", form)}
        if bias:
            bias_shape = (-1,) if inputs or not shape else shape
            out["bias"] = stack(name + ".bias", lambda b: b.reshape(bias_shape))
        return out

    def scale(name: str) -> Params:
        return {"scale": stack(name + ".weight", lambda x: x)}

    def learned(name: str) -> Any:
        if name == "beta":
            return dense(LEARNED_NAME.format(name), bias=True)
        return stack(LEARNED_NAME.format(name), lambda x: x)

    q_shape, kv_shape = (c.num_heads, c.head_width), (c.num_kv_heads, c.head_width)
    params = {
        "embed": {"embedding": get("model.embed_tokens.weight")},
        "final_norm": {"scale": get("model.norm.weight")},
        "layers": {
            "attention_norm": scale("input_layernorm"),
            "mlp_norm": scale("post_attention_layernorm"),
            "attention": {
                "query": dense("self_attn.q_proj", c.qkv_bias, q_shape),
                "key": dense("self_attn.k_proj", c.qkv_bias, kv_shape),
                "value": dense("self_attn.v_proj", c.qkv_bias, kv_shape),
                "output": dense("self_attn.o_proj", c.output_bias, q_shape, inputs=True),
                **{n: learned(n) for n in c.learned()},
            },
            "mlp": {
                "up": dense("mlp.up_proj", c.mlp_bias),
                "gate": dense("mlp.gate_proj", c.mlp_bias),
                "down": dense("mlp.down_proj", c.mlp_bias),
            },
        },
    }
    if not c.tied:
        params["unembed"] = {"kernel": get("lm_head.weight").T}
    return params


def _gpt2_plan(get: _Tensors, c: DecoderConfig) -> Params:
    def stack(name: str, form: Callable[[np.ndarray], np.ndarray] = lambda x: x) -> np.ndarray:
        return get.layers(get.prefix + "h.{}." + name, c.num_layers, form)

    def dense(name: str) -> Params:
        """GPT-2's Conv1D is [in, out] already."""
        return {"kernel": stack(name + ".weight"), "bias": stack(name + ".bias")}

    def norm(name: str) -> Params:
        return {"scale": stack(name + ".weight"), "bias": stack(name + ".bias")}

    def learned(name: str) -> Any:
        theirs = LEARNED_NAME.format(name)
        return dense(theirs) if name == "beta" else stack(theirs)

    heads = (c.num_heads, c.head_width)

    def part(index: int) -> Params:
        """Query, key or value out of the joint projection [D, 3 * D]."""
        columns = slice(index * c.width, (index + 1) * c.width)
        return {
            "kernel": stack("attn.c_attn.weight", lambda w: w[:, columns].reshape(-1, *heads)),
            "bias": stack("attn.c_attn.bias", lambda b: b[columns].reshape(heads)),
        }

    output = {
        "kernel": stack("attn.c_proj.weight", lambda w: w.reshape(*heads, -1)),
        "bias": stack("attn.c_proj.bias"),
    }
    params = {
        "embed": {"embedding": get(get.prefix + "wte.weight")},
        "embed_positions": {"embedding": get(get.prefix + "wpe.weight")},
        "final_norm": {
            "scale": get(get.prefix + "ln_f.weight"),
            "bias": get(get.prefix + "ln_f.bias"),
        },
        "layers": {
            "attention_norm": norm("ln_1"),
            "mlp_norm": norm("ln_2"),
            "attention": {
                "query": part(0),
                "key": part(1),
                "value": part(2),
                "output": output,
                **{n: learned(n) for n in c.learned()},
            },
            "mlp": {"up": dense("mlp.c_fc"), "down": dense("mlp.c_proj")},
        },
    }
    if not c.tied:
        params["unembed"] = {"kernel": get("lm_head.weight").T}
    return params


def fingerprint(folder: Path) -> str:
    """SHA-256 over the model's config, tokenizer and weights, in that order."""
    return _sha256([folder / "config.json", folder / "tokenizer.json", *weight_files(folder)])


def _sha256(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as f:
            while block := f.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise UserError(
            f"{path.parent} has no {path.name}; a model folder holds config.json, "
            "tokenizer.json and model.safetensors"
        ) from e
    except ValueError as e:
        raise UserError(f"{path}: not valid JSON ({e}); fetch it again") from e
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a JSON object but {type(value).__name__}; fetch it again")
    return value


def _read_tokenizer(path: Path) -> Tokenizer:
    if not path.is_file():
        raise UserError(f"{path.parent} has no tokenizer.json; copy the model's tokenizer there")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as e:  # the tokenizers package raises plain Exception
        raise UserError(f"{path}: not a tokenizer that `tokenizers` can read ({e})") from e


def _special_tokens(hf: dict[str, Any], vocab_size: int, folder: Path) -> tuple[int, int]:
    """(bos, eos) ids; a model with one of them uses it for both; some list several eos."""
    eos = hf.get("eos_token_id")
    eos = eos[0] if isinstance(eos, list) else eos
    bos = hf.get("bos_token_id")
    if bos is None and eos is None:
        raise UserError(f"{folder}: config.json has no bos_token_id and no eos_token_id; add one")
    bos = cast(int, eos if bos is None else bos)
    eos = cast(int, bos if eos is None else eos)
    if not (0 <= bos < vocab_size and 0 <= eos < vocab_size):
        raise UserError(
            f"{folder}: config.json has bos_token_id {bos} and eos_token_id {eos}, outside the "
            f"vocabulary of {vocab_size}; give the ids that tokenizer.json has for them"
        )
    return bos, eos
