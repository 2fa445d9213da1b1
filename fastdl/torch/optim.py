"""Optimisers for torch parameters on a GPU: ``torch.optim``'s interface, one Triton kernel for all parameters of a step."""

from __future__ import annotations

import torch

from ..gpu import device
from ..gpu.memory import laid_out_as, order_of


class Adam(torch.optim.Optimizer):
    """Adam, as :class:`torch.optim.Adam`, whose state_dict it shares.

    params: parameters on one CUDA device, float32, float16 or bfloat16; each fills a block of memory without gaps.
    lr, betas, eps, weight_decay, amsgrad: as torch's.

    Raises ValueError for options out of range and for parameters that the kernel cannot take.
    Source: D. P. Kingma, J. Ba, "Adam: a method for stochastic optimization" (2015).
    """

    decoupled = False

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, amsgrad=False):
        name = type(self).__name__
        if lr < 0 or eps < 0 or weight_decay < 0:
            raise ValueError(f"{name}: lr is {lr}, eps is {eps}, weight_decay is {weight_decay}; the rule is at least 0")
        if len(betas) != 2 or not all(0 <= b < 1 for b in betas):
            raise ValueError(f"{name}: betas is {betas!r}; the rule is two numbers from 0 to below 1")
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, amsgrad=amsgrad))
        for group in self.param_groups:
            for p in group["params"]:
                if reason := device.refusal(p):
                    raise ValueError(f"{name}: {reason}")
                if p.dtype not in (torch.float32, torch.float16, torch.bfloat16) or order_of(p) is None:
                    raise ValueError(f"{name}: a parameter of shape {tuple(p.shape)} is {p.dtype} with strides {p.stride()}; "
                                     "the rule is float32, float16 or bfloat16 without gaps")
        self._tables = {}

    @torch.no_grad()
    def step(self, closure=None):
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        from ..optim.triton_adam import adam_step

        for number, group in enumerate(self.param_groups):
            together = {}  # parameters that one launch can take
            for p in group["params"]:
                if p.grad is not None:
                    state = self.state[p]
                    if not state:
                        state["step"] = torch.tensor(0.0)
                        for name in ("exp_avg", "exp_avg_sq") + ("max_exp_avg_sq",) * group["amsgrad"]:
                            state[name] = torch.zeros_like(p, memory_format=torch.preserve_format)
                    state["step"] += 1
                    together.setdefault((p.dtype, p.device, int(state["step"])), []).append(p)
            for (dtype, where, step), params in together.items():
                lists = [params, [laid_out_as(p.grad, p) for p in params], [self.state[p]["exp_avg"] for p in params],
                         [self.state[p]["exp_avg_sq"] for p in params]]
                if group["amsgrad"]:
                    lists.append([self.state[p]["max_exp_avg_sq"] for p in params])
                key = (number, dtype, where, tuple(p.numel() for p in params))
                self._tables[key] = adam_step(lists, self._tables.get(key), step=step, lr=group["lr"], betas=group["betas"],
                                              eps=group["eps"], weight_decay=group["weight_decay"], decoupled=self.decoupled)
        return loss


class AdamW(Adam):
    """Adam whose weight decay acts on the weights, not through the gradient; as :class:`torch.optim.AdamW`."""

    decoupled = True

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2, amsgrad=False):
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad)
