"""fastdl: hand-written deep-learning kernels in Python.

    functional.py   every operator, torch.nn.functional's names     (what you call)
        |
    ops/<room>/     its checks and shape rule, then its kernels:     reference.py, numba_*.py, ...
        |
    cpu/            SIMD vectors, micro-kernels, threads             (what kernels stand on)

    op.py           what an operator is; which backend serves a call
    vjp.py          gradients;  packing.py: weights used again
    nn/ optim/ data/ train.py    layers and training on top

Importing fastdl imports neither numba nor torch; the first call that needs one does.
"""

from .cpu.parallel import get_num_threads, set_num_threads
from .op import current_backend, use_backend
from .packing import pack
from .vjp import vjp

__version__ = "0.1.0"
__all__ = ["current_backend", "get_num_threads", "pack", "set_num_threads", "use_backend", "vjp"]
