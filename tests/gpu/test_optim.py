"""Adam on a GPU against torch's."""

import pytest
import torch
from cases import DEVICE, randn

from fastdl.torch.optim import Adam, AdamW


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1}, {"amsgrad": True, "betas": (0.8, 0.9)}])
@pytest.mark.parametrize("ours,theirs", [(Adam, torch.optim.Adam), (AdamW, torch.optim.AdamW)])
def test_adam(ours, theirs, options):
    shapes = [(3, 5), (1,), (400,), (2, 3, 4, 4)]
    a = [torch.nn.Parameter(randn(*s).float().to(DEVICE)) for s in shapes]
    a[3] = torch.nn.Parameter(a[3].detach().to(memory_format=torch.channels_last))
    b = [torch.nn.Parameter(p.detach().cpu().double()) for p in a]
    f, g = ours(a, lr=0.02, **options), theirs(b, lr=0.02, **options)
    for step in range(4):
        for i, (p, q) in enumerate(zip(a, b, strict=True)):
            if i == 1 and step == 1:  # a parameter without a gradient falls a step behind
                p.grad = q.grad = None
                continue
            q.grad = randn(*p.shape, seed=step)
            p.grad = q.grad.float().to(DEVICE)
        f.step()
        g.step()
    for p, q in zip(a, b, strict=True):
        torch.testing.assert_close(p.detach().cpu().double(), q.detach(), rtol=2e-5, atol=2e-6)
    resumed = ours(a, lr=0.02, **options)
    resumed.load_state_dict(f.state_dict())
    assert resumed.state_dict()["state"][0]["step"] == 4
    torch.testing.assert_close(resumed.state[a[0]]["exp_avg"].cpu().double(), g.state[b[0]]["exp_avg"], rtol=1e-5, atol=1e-7)


def test_bfloat16():
    p = torch.nn.Parameter(torch.ones(100, dtype=torch.bfloat16, device=DEVICE))
    p.grad = torch.full_like(p, 0.5)
    Adam([p], lr=0.25).step()
    torch.testing.assert_close(p.detach().float(), torch.full((100,), 0.75, device=DEVICE))


def test_refuses():
    p = torch.nn.Parameter(torch.ones(4, dtype=torch.float64, device=DEVICE))
    with pytest.raises(ValueError, match="the rule is float32, float16 or bfloat16"):
        Adam([p])
    with pytest.raises(ValueError, match="betas is"):
        Adam([p], betas=(0.9, 1.0))
