"""Python code run in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def python(code: str, *options: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess:
    """Run ``python *options -c code`` with fastdl importable, the environment changed as said, and answer what it printed."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("FASTDL_") or k == "FASTDL_CACHE_DIR"}
    done = subprocess.run([sys.executable, *options, "-c", code], capture_output=True, text=True, cwd=ROOT, env={**kept, **environment})
    assert not check or done.returncode == 0, done.stderr
    return done
