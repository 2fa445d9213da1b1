"""Optimisers' steps for parameters that are torch tensors: torch's fused lists of tensors, and for Adam on a GPU one Triton kernel."""

from __future__ import annotations

import math

import torch

from .. import op


def norm(gradients, p: float) -> float:
    """The p-norm of all gradients together."""
    each = torch.stack([torch.linalg.vector_norm(g, p, dtype=torch.promote_types(g.dtype, torch.float32)) for g in gradients])
    return float(torch.linalg.vector_norm(each, p))


def _gradients(members, scale):
    gradients = [p.grad for p, _ in members]
    return gradients if scale == 1 else torch._foreach_mul(gradients, scale)


@torch.no_grad()
def sgd(group, members, scale) -> None:
    """One step of SGD for (parameter, state) members of one dtype and device."""
    data, gradients = [p.data for p, _ in members], _gradients(members, scale)
    if group["weight_decay"]:
        gradients = torch._foreach_add(gradients, data, alpha=group["weight_decay"])
    if momentum := group["momentum"]:
        old = [i for i, (_, state) in enumerate(members) if "momentum_buffer" in state]
        if old:
            velocity = [members[i][1]["momentum_buffer"] for i in old]
            torch._foreach_mul_(velocity, momentum)
            torch._foreach_add_(velocity, [gradients[i] for i in old], alpha=1 - group["dampening"])
        for (_, state), gradient in zip(members, gradients, strict=True):
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = gradient.clone()
        velocity = [state["momentum_buffer"] for _, state in members]
        gradients = torch._foreach_add(gradients, velocity, alpha=momentum) if group["nesterov"] else velocity
    torch._foreach_add_(data, gradients, alpha=-group["lr"])


@torch.no_grad()
def adam(group, members, scale, decoupled: bool) -> None:
    """One step of Adam or AdamW for members of one dtype, device and age."""
    data, gradients = [p.data for p, _ in members], _gradients(members, scale)
    step, (beta1, beta2), lr, decay = members[0][1]["step"], group["betas"], group["lr"], group["weight_decay"]
    names = ("exp_avg", "exp_avg_sq") + ("max_exp_avg_sq",) * bool(group["amsgrad"])
    means, squares, *largest = ([state[name] for _, state in members] for name in names)
    if _by_kernel(data[0]):
        from ..gpu.memory import laid_out_as
        from .triton_adam import adam_step

        gradients = [laid_out_as(g, p) for g, p in zip(gradients, data, strict=True)]
        adam_step([data, gradients, means, squares, *largest], None, step=step, lr=lr, betas=(beta1, beta2), eps=group["eps"],
                  weight_decay=decay, decoupled=decoupled)
        return
    if decay and decoupled:
        torch._foreach_mul_(data, 1 - lr * decay)
    elif decay:
        gradients = torch._foreach_add(gradients, data, alpha=decay)
    torch._foreach_lerp_(means, gradients, 1 - beta1)
    torch._foreach_mul_(squares, beta2)
    torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
    if largest:
        torch._foreach_maximum_(largest[0], squares)
    roots = torch._foreach_sqrt(largest[0] if largest else squares)
    torch._foreach_div_(roots, math.sqrt(1 - beta2**step))
    torch._foreach_add_(roots, group["eps"])
    torch._foreach_addcdiv_(data, means, roots, -lr / (1 - beta1**step))


def _by_kernel(tensor) -> bool:
    """Whether Triton's kernel takes it: float32 or half on a GPU; on the CPU where its interpreter was asked for."""
    if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16) or op._backends["triton"].missing:
        return False
    from ..gpu import device

    return (tensor.is_cuda or op.current_backend() == "triton") and device.refusal(tensor) is None
