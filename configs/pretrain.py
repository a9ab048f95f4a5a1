"""x."""

from ml_collections import ConfigDict

from icljax import pretrain


def get_config() -> ConfigDict:
    return pretrain.default()
