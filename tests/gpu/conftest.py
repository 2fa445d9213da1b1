"""Tests of the Triton kernels: on a GPU, or under Triton's interpreter (which tests/test_gpu.py starts); else not collected."""

import os
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"

if DEVICE == "cpu" and not INTERPRETED:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(autouse=True)
def _triton(monkeypatch):
    """Every call goes to Triton's kernels or raises; memory that a kernel is to fill holds NaN; float32 is not rounded to tf32."""
    import fastdl

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)

    empty, empty_like = torch.empty, torch.empty_like

    def poisoned(t):
        return t.fill_(float("nan")) if t.is_floating_point() and t.device.type != "meta" and t.numel() < 1 << 28 else t

    monkeypatch.setattr(torch, "empty", lambda *a, **k: poisoned(empty(*a, **k)))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: poisoned(empty_like(*a, **k)))
    with fastdl.use_backend("triton"):
        yield
