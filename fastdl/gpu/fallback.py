"""torch's own operator for a call that no Triton kernel serves."""

from __future__ import annotations

import inspect

import torch
import torch.nn.functional as TF

_ELSEWHERE = {name: getattr(torch, name) for name in (
    "matmul", "bmm", "addmm", "sigmoid", "tanh", "rnn_tanh", "rnn_relu", "gru", "lstm", "rnn_tanh_cell", "rnn_relu_cell", "gru_cell",
    "lstm_cell")}
_OURS = {"activation": None, "algorithm": "auto", "seed": None, "lengths": None, "batch_sizes": None, "peepholes": None,
         "linear_before_reset": True, "precision": None, "checkpoint": None}  # keywords beyond torch's, and their defaults


def torch_function(name: str, args, kwargs):
    """A function of no arguments that calls torch's operator, or the reason (a string) why it cannot stand in."""
    function = _ELSEWHERE.get(name) or getattr(TF, name, None)
    if function is None:
        return "torch has none of that name"
    beyond = [k for k, default in _OURS.items() if k in kwargs and k != "activation" and kwargs[k] != default and k != "algorithm"]
    if beyond:
        return f"it has no {', '.join(beyond)}"
    padding = kwargs.get("padding")
    if padding == "same" or (isinstance(padding, (tuple, list)) and any(isinstance(p, (tuple, list)) for p in padding)):
        return "it has no such padding"
    plain = {k: v for k, v in kwargs.items() if k not in _OURS}
    try:
        inspect.signature(function).bind(*args, **plain)
    except ValueError:
        pass  # a builtin: it checks its arguments itself
    except TypeError as error:
        return str(error)
    activation = kwargs.get("activation")
    return lambda: _activate(function(*args, **plain), activation)


def _activate(y, activation):
    if activation is None:
        return y
    name, parameter = activation if isinstance(activation, (tuple, list)) else (activation, None)
    return getattr(TF, name)(y) if parameter is None else getattr(TF, name)(y, parameter)
