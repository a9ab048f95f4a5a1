"""Attention as an optimizer: kinds of attention, their recurrence, EMA(V), and the layer's mixing.

The heart of the project: each kind is an optimizer's step, held to optax in configs/dual.py. Pure
functions; `mixing` is what the decoder calls, `kernels` chooses the implementation.
"""

from icljax.attention.ema import EMA_CHUNK as EMA_CHUNK
from icljax.attention.ema import ema_chunked as ema_chunked
from icljax.attention.ema import ema_parallel as ema_parallel
from icljax.attention.ema import ema_recurrent as ema_recurrent
from icljax.attention.kinds import KINDS as KINDS
from icljax.attention.kinds import Kind as Kind
from icljax.attention.kinds import has_momentum as has_momentum
from icljax.attention.recurrence import CHUNK as CHUNK
from icljax.attention.recurrence import Decay as Decay
from icljax.attention.recurrence import Memory as Memory
from icljax.attention.recurrence import Rates as Rates
from icljax.attention.recurrence import State as State
from icljax.attention.recurrence import Tokens as Tokens
from icljax.attention.recurrence import accumulator as accumulator
from icljax.attention.recurrence import chunked as chunked
from icljax.attention.recurrence import decay as decay
from icljax.attention.recurrence import dot as dot
from icljax.attention.recurrence import parallel as parallel
from icljax.attention.recurrence import powers as powers
from icljax.attention.recurrence import read as read
from icljax.attention.recurrence import recurrent as recurrent
from icljax.attention.recurrence import unit_lower_inverse as unit_lower_inverse
from icljax.attention.recurrence import write as write
