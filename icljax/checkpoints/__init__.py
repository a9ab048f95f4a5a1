"""Model files in and out: found or fetched, converted once, streamed into the decoder, saved.

Nothing in a file is executed, and what is in it is used or named. Everything ends in one loader,
that of a Hugging Face folder with safetensors files.
"""

from icljax.checkpoints.load import Checkpoint as Checkpoint
from icljax.checkpoints.load import fingerprint as fingerprint
from icljax.checkpoints.load import load_params as load_params
from icljax.checkpoints.load import locate as locate
from icljax.checkpoints.load import open_checkpoint as open_checkpoint
