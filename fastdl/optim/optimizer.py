"""Optimisers: torch.optim's names and update rules, in place on numpy arrays.

A step of SGD, Adam or AdamW is one compiled pass over all parameters of a group (numba_backend.py). Where Numba cannot be had, or the
reference backend was asked for, it is numpy's chain of elementwise operations, over blocks that stay in a core's cache.
"""

from __future__ import annotations

import math

import numpy as np

from .. import check
from ..cpu import parallel
from ..cpu.workspace import NOTHING
from ..nn import Parameter
from ..nn.parameter import as_array, edited, is_tensor, to_edit
from .gradients import clip_scale, compiled, gradients_norm

_BLOCK = 1 << 15  # elements: six float32 arrays of 128 KB fit a 1 MB second-level cache, and Python's share of the time is small


class Optimizer:
    """The base: parameter groups, gradients, state. ``param_groups`` and ``state_dict()`` have torch's form.

    params: Parameters, or dicts ``{"params": [...], "lr": ...}`` whose options override the constructor's.
    """

    buffers: tuple[str, ...] = ()  # the state that each parameter has, as arrays of its shape

    def __init__(self, params, **defaults):
        name = type(self).__name__
        params = [params] if isinstance(params, (dict, Parameter)) else list(params)
        if not params:
            raise ValueError(f"{name}: params is empty")
        if not isinstance(params[0], dict):
            params = [{"params": params}]
        self.defaults = defaults
        self.param_groups = []
        self.state: dict[int, dict] = {}  # by the parameter's number in the order of the groups
        seen = set()
        for group in params:
            if not isinstance(group, dict) or "params" not in group:
                raise TypeError(f"{name}: params must be Parameters, or dicts with an entry 'params'; got {group!r}")
            members = [group["params"]] if isinstance(group["params"], Parameter) else list(group["params"])
            for p in members:
                if not isinstance(p, Parameter):
                    raise TypeError(f"{name}: params holds a {type(p).__name__}; the rule is nn.Parameter (model.parameters())")
                if id(p) in seen:
                    raise ValueError(f"{name}: a parameter of shape {p.shape} appears twice in params")
                seen.add(id(p))
            unknown = set(group) - set(defaults) - {"params"}
            if unknown:
                raise ValueError(f"{name}: {', '.join(sorted(unknown))} is no option; the options are {', '.join(defaults)}")
            group = {**defaults, **group, "params": members}
            self.check(group)
            self.param_groups.append(group)

    def check(self, group) -> None:
        """Raise ValueError where a group's options are out of range."""

    def zero_grad(self) -> None:
        """Forget all gradients (each becomes None)."""
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None

    def step(self, max_norm: float | None = None) -> None:
        """Update every parameter that has a gradient.

        max_norm: step as if ``clip_grad_norm_`` had first scaled the gradients of this optimiser's parameters to at most that
        norm; they are left as they are, and the scale costs no pass over memory.

        Raises ValueError where a gradient's shape is not its parameter's, or max_norm is negative.
        """
        number, groups = -1, []
        for group in self.param_groups:
            members = []
            for p in group["params"]:
                number += 1
                grad = p.grad
                if grad is None or not p.requires_grad:
                    continue
                if grad.shape != p.shape:
                    raise ValueError(f"{type(self).__name__}: a gradient has shape {grad.shape}, its parameter {p.shape}")
                members.append((number, p))
            groups.append(members)
        scale = 1.0
        if max_norm is not None:
            max_norm = check.number("step", "max_norm", max_norm, 0)
            scale = clip_scale(gradients_norm([p.grad for members in groups for _, p in members]), max_norm)
        states = self.state
        for group, members in zip(self.param_groups, groups, strict=True):
            arrays, tensors = [], {}  # together: tensors that one call can take
            for number, p in members:
                state = states.get(number)
                if state is None:
                    state = states[number] = self.new_state(p, group)
                state["step"] += 1
                if p._tensor is None:
                    arrays.append((p, state))
                else:
                    tensors.setdefault((p.dtype, p.data.device, state["step"]), []).append((p, state))
            if arrays:
                self.update_all(group, arrays, scale)
            for together in tensors.values():
                self.update_tensors(group, together, scale)

    def update_all(self, group, members, scale) -> None:
        """One step of each (parameter, state) of a group, the gradients times scale."""
        for p, state in members:
            grad = p.grad
            try:
                if scale != 1:
                    p.grad = grad * grad.dtype.type(scale)
                self.update(group, p, state)
            finally:
                p.grad = grad

    def update_tensors(self, group, members, scale) -> None:
        """As update_all, for parameters that are torch tensors, of one dtype, device and age."""
        raise TypeError(f"{type(self).__name__} defines no update_tensors")

    def new_state(self, p, group) -> dict:
        def zeros():
            return p.data.new_zeros(p.shape) if is_tensor(p.data) else np.zeros(p.shape, p.dtype)

        return {"step": 0, **{name: zeros() for name in self.required_buffers(group)}}

    def update(self, group, p, state) -> None:
        """One parameter's step."""
        raise TypeError(f"{type(self).__name__} defines no update")

    def in_one_pass(self, kernel, members, names, buffers, *rest):
        """Call ``kernel[dtype](pool, like, data, grads, *buffers, firsts, *rest)`` for members of one dtype.

        names: of the state's buffers that the kernel takes, which has room for so many ``buffers``.
        """
        parameters = [p for p, _ in members]
        char = parameters[0].dtype.char
        arrays, grads = to_edit(parameters), [p.grad for p in parameters]
        kept = [[state[name] for _, state in members] for name in names] + [[]] * (buffers - len(names))
        try:
            pool, like, firsts, run = parallel.pool(), NOTHING[char], np.empty(2 * len(members), np.int64), kernel[char]
            if not run(pool, like, arrays, grads, *kept, firsts, *rest):  # a gradient of another dtype, or with gaps
                grads = [np.ascontiguousarray(g, dtype=p.dtype) for g, p in zip(grads, parameters, strict=True)]
                if not run(pool, like, arrays, grads, *kept, firsts, *rest):
                    raise TypeError(f"{type(self).__name__}: a buffer of its state has not its parameter's dtype and size, or has gaps")
        finally:
            edited(parameters)

    def blocks(self, p, state, *names):
        """Flat views, a block at a time, of data, grad and each named buffer, and two scratch arrays."""
        with p.edit() as data:
            arrays = [data, np.ascontiguousarray(p.grad, dtype=p.dtype), *(state[name] for name in names)]
            flat = [a.reshape(-1) for a in arrays]
            scratch = np.empty((2, min(_BLOCK, p.size)), p.dtype)
            for start in range(0, p.size, _BLOCK):
                parts = [a[start : start + _BLOCK] for a in flat]
                yield *parts, *scratch[:, : parts[0].size]

    # ---- its own state
    def state_dict(self) -> dict:
        """``{"state": {number: {...}}, "param_groups": [...]}``, torch's form; the arrays are the optimiser's own."""
        groups, number = [], 0
        for group in self.param_groups:
            numbers = list(range(number, number + len(group["params"])))
            number += len(numbers)
            groups.append({**group, "params": numbers})
        return {"state": {n: dict(s) for n, s in self.state.items()}, "param_groups": groups}

    def load_state_dict(self, state: dict) -> None:
        """Take over what ``state_dict`` gave.

        Raises ValueError where groups, shapes or entries differ from this optimiser's; it is then unchanged.
        """
        name = type(self).__name__
        groups = [{k: v for k, v in g.items() if k in self.defaults or k == "initial_lr"} for g in state["param_groups"]]
        sizes, own = [len(g["params"]) for g in state["param_groups"]], [len(g["params"]) for g in self.param_groups]
        if sizes != own:
            raise ValueError(f"{name}: load_state_dict got groups of {sizes} parameters, this optimiser has {own}")
        parameters = [(p, {**old, **new}) for old, new in zip(self.param_groups, groups, strict=True) for p in old["params"]]
        loaded = {}
        for number, entry in state["state"].items():
            number = int(number)  # a JSON file makes keys strings
            if not 0 <= number < len(parameters):
                raise ValueError(f"{name}: load_state_dict got a state for parameter {number}, this optimiser has {len(parameters)}")
            loaded[number] = self._loaded(number, entry, *parameters[number])
        for _, group in parameters:
            self.check(group)
        self.state = loaded
        for group, new in zip(self.param_groups, groups, strict=True):
            group.update(new)

    def _loaded(self, number, entry, p, group):
        """One parameter's state, copied and checked."""
        fresh = {"step": int(entry.get("step", 0))}
        for key in self.buffers:
            if entry.get(key) is not None:
                if is_tensor(p.data):
                    fresh[key] = p.data.new_tensor(as_array(entry[key]))
                else:
                    fresh[key] = np.array(as_array(entry[key]), dtype=p.dtype, order="C")
                if tuple(fresh[key].shape) != p.shape:
                    raise ValueError(f"{type(self).__name__}: load_state_dict got {key} of shape {fresh[key].shape} "
                                     f"for parameter {number}, whose shape is {p.shape}")
            elif key in self.required_buffers(group):
                raise ValueError(f"{type(self).__name__}: load_state_dict got no {key} for parameter {number}")
        return fresh

    def required_buffers(self, group) -> tuple[str, ...]:
        """The buffers that a step needs to find."""
        return self.buffers


class SGD(Optimizer):
    """Stochastic gradient descent with momentum, as :class:`torch.optim.SGD`.

    lr: the step's size. momentum: how much of the last direction stays. dampening: how much of the gradient does not
    enter it. weight_decay: an L2 penalty added to the gradient. nesterov: look ahead along the momentum.

    Raises ValueError for negative values, and for nesterov without momentum or with dampening.
    Source: I. Sutskever et al., "On the importance of initialization and momentum in deep learning" (2013), in torch's form.
    """

    buffers = ("momentum_buffer",)

    def __init__(self, params, lr=1e-3, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False):
        super().__init__(params, lr=lr, momentum=momentum, dampening=dampening, weight_decay=weight_decay, nesterov=nesterov)

    def check(self, group):
        for name in ("lr", "momentum", "weight_decay"):
            check.number("SGD", name, group[name], 0)
        check.number("SGD", "dampening", group["dampening"])
        if group["nesterov"] and (group["momentum"] <= 0 or group["dampening"] != 0):
            raise ValueError("SGD: nesterov is True; the rule is a momentum above 0 and no dampening with it")

    def required_buffers(self, group):
        return ()  # the momentum starts as the first gradient, not as zeros

    def update_all(self, group, members, scale):
        kernels = compiled()
        if kernels is None:
            return super().update_all(group, members, scale)
        momentum, together = group["momentum"], {}
        for p, state in members:
            first = bool(momentum) and "momentum_buffer" not in state
            if first:
                state["momentum_buffer"] = np.empty(p.shape, p.dtype)
            together.setdefault((p.dtype, first), []).append((p, state))
        for (_, first), some in together.items():
            self.in_one_pass(kernels.sgd, some, ["momentum_buffer"] if momentum else [], 1, group["lr"], momentum, 1 - group["dampening"],
                             group["weight_decay"], scale, bool(momentum), bool(group["nesterov"]), first)

    def update_tensors(self, group, members, scale):
        from .tensors import sgd

        sgd(group, members, scale)

    def update(self, group, p, state):
        lr, momentum, decay = group["lr"], group["momentum"], group["weight_decay"]
        first = momentum and "momentum_buffer" not in state
        if first:
            state["momentum_buffer"] = np.empty(p.shape, p.dtype)
        for data, grad, *velocity, decayed, scratch in self.blocks(p, state, *(["momentum_buffer"] if momentum else [])):
            if decay:
                np.multiply(data, decay, out=decayed)
                decayed += grad
                grad = decayed
            if momentum:
                v = velocity[0]
                if first:
                    v[...] = grad
                else:
                    v *= momentum
                    v += grad if not group["dampening"] else np.multiply(grad, 1 - group["dampening"], out=scratch)
                if group["nesterov"]:
                    np.multiply(v, momentum, out=scratch)
                    scratch += grad
                    grad = scratch
                else:
                    grad = v
            np.multiply(grad, lr, out=scratch)
            data -= scratch


class Adam(Optimizer):
    """Adaptive moments, as :class:`torch.optim.Adam`.

    lr: the step's size. betas: the decay of the running means of the gradient and of its square. eps: added to the
    root of the latter. weight_decay: an L2 penalty added to the gradient. amsgrad: divide by the largest second moment
    so far.

    Raises ValueError for values out of range.
    Source: D. P. Kingma, J. Ba, "Adam: a method for stochastic optimization" (2015); S. Reddi et al., "On the
    convergence of Adam and beyond" (2018), for amsgrad.
    """

    buffers = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
    decoupled = False

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, amsgrad=False):
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, amsgrad=amsgrad)

    def check(self, group):
        name = type(self).__name__
        for option in ("lr", "eps", "weight_decay"):
            check.number(name, option, group[option], 0)
        betas = group["betas"]
        if not isinstance(betas, (tuple, list)) or len(betas) != 2 or not all(0 <= check.number(name, "betas", b) < 1 for b in betas):
            raise ValueError(f"{name}: betas is {betas!r}; the rule is two numbers from 0 to below 1")

    def required_buffers(self, group):
        return self.buffers if group["amsgrad"] else self.buffers[:2]

    def update_all(self, group, members, scale):
        kernels = compiled()
        if kernels is None:
            return super().update_all(group, members, scale)
        lr, (beta1, beta2), decay = group["lr"], group["betas"], group["weight_decay"]
        together = {}
        for p, state in members:
            together.setdefault((p.dtype, state["step"]), []).append((p, state))
        for (_, step), some in together.items():
            self.in_one_pass(kernels.adam, some, self.required_buffers(group), 3, lr / (1 - beta1**step), 1 / math.sqrt(1 - beta2**step),
                             1 - beta1, beta2, 1 - beta2, group["eps"], 0.0 if self.decoupled else decay,
                             1 - lr * decay if self.decoupled else 1.0, scale, bool(group["amsgrad"]))

    def update_tensors(self, group, members, scale):
        from .tensors import adam

        adam(group, members, scale, self.decoupled)

    def update(self, group, p, state):
        lr, (beta1, beta2), eps, decay = group["lr"], group["betas"], group["eps"], group["weight_decay"]
        step_size = lr / (1 - beta1 ** state["step"])
        root = math.sqrt(1 - beta2 ** state["step"])
        for data, grad, mean, square, *largest, decayed, scratch in self.blocks(p, state, *self.required_buffers(group)):
            if decay and self.decoupled:
                data *= 1 - lr * decay
            elif decay:
                np.multiply(data, decay, out=decayed)
                decayed += grad
                grad = decayed
            np.subtract(grad, mean, out=scratch)
            scratch *= 1 - beta1
            mean += scratch
            np.multiply(grad, grad, out=scratch)
            scratch *= 1 - beta2
            square *= beta2
            square += scratch
            if largest:
                np.maximum(largest[0], square, out=largest[0])
            np.sqrt(largest[0] if largest else square, out=scratch)
            scratch /= root
            scratch += eps
            np.divide(mean, scratch, out=scratch)
            scratch *= step_size
            data -= scratch


class AdamW(Adam):
    """Adam whose weight decay acts on the weights, not through the gradient; as :class:`torch.optim.AdamW`.

    Source: I. Loshchilov, F. Hutter, "Decoupled weight decay regularization" (2019).
    """

    decoupled = True

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2, amsgrad=False):
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad)
