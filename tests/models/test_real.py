"""The real GGUF files against `transformers`, which reads them with a loader of its own.

`pytest -n 0 -rP -m 'real and parity' tests/models/test_real.py` prints what docs/models.md shows.
"""

import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icljax import checkpoints
from icljax.models.decoder import Decoder
from tests.conftest import gguf_of

with warnings.catch_warnings():  # what importing them warns of is none of our business
    warnings.simplefilter("ignore")
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")

pytestmark = [pytest.mark.real, pytest.mark.parity]


def peer_of(gguf):
    """PyTorch's model with the file's weights, float32."""
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    config = transformers.AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name)
    peer = transformers.AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation="eager"
    )
    read = load_gguf_checkpoint(str(gguf), return_tensors=True, model_to_load=peer)["tensors"]
    missing, unexpected = peer.load_state_dict(read, strict=False)
    assert set(missing) <= {"lm_head.weight"}
    assert not unexpected
    peer.tie_weights()
    return peer.eval()


@pytest.mark.parametrize("name", ["gemma-3-270m", "qwen2.5-coder-0.5b"])
def test_logits(name):
    """Over 700 tokens of code, longer than Gemma's window of 512; relative to the largest."""
    checkpoint = checkpoints.open_checkpoint(name)
    ids = checkpoint.tokenizer.encode(Path(warnings.__file__).read_text("utf-8")).ids[:700]
    tokens = np.int32([checkpoint.bos, *ids])
    positions = jnp.arange(len(tokens), dtype=jnp.int32)[None]
    params = checkpoints.load_params(checkpoint.folder, checkpoint.config)
    apply = jax.jit(Decoder(checkpoint.config).apply)
    got = np.asarray(apply({"params": params}, jnp.asarray(tokens)[None], positions))[0]
    del params
    with torch.no_grad():
        ids = torch.from_numpy(tokens.astype(np.int64))[None]
        expected = peer_of(gguf_of(name))(ids).logits[0].numpy()
    apart, size = np.abs(got - expected).max(), np.abs(expected).max()
    print(f"{name:20} largest difference {apart:.1e} of {size:.3g}: {apart / size:.1e}")
    assert apart / size < 1e-4
    np.testing.assert_array_equal(got.argmax(-1), expected.argmax(-1))
