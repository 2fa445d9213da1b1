"""The examples run as they stand, on less data for a shorter time."""

import re
import sys

import pytest
from subprocesses import ROOT

import fastdl

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
SMALL = {"EPOCHS": "2", "ROWS": "120", "FOLDS": "2", "JOBS": "1"}


def small(source):
    for name, value in SMALL.items():
        source = re.sub(rf"^{name} = .*$", f"{name} = {value}", source, flags=re.MULTILINE)
    return source


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path, monkeypatch, capsys):
    import matplotlib.pyplot as plt

    monkeypatch.setitem(SMALL, "ROWS", {"charlm": "3300"}.get(path.stem, "120"))
    monkeypatch.setattr(plt, "show", lambda: None)
    plt.switch_backend("agg")
    source = path.read_text()
    assert re.search(r"^EPOCHS = ", source, flags=re.MULTILINE) and re.search(r"^ROWS = ", source, flags=re.MULTILINE)
    names = {"__name__": "__main__", "__file__": str(path)}
    monkeypatch.setitem(sys.modules, "__main__", type(sys)("__main__"))
    with fastdl.use_backend("reference"):
        exec(compile(small(source), str(path), "exec"), names)
    assert plt.get_fignums() and len(capsys.readouterr().out.splitlines()) >= 1
    plt.close("all")


def test_there_is_one_for_each_demo():
    from fastdl.demos import DEMOS

    assert {path.stem for path in EXAMPLES} == set(DEMOS)
    told = (ROOT / "examples" / "README.md").read_text()
    assert all(f"[{name}.py]({name}.py)" in told and f"`fastdl demo {name}`" in told for name in DEMOS)


def test_they_can_be_taken_in_at_one_reading():
    for path in EXAMPLES:
        lines = path.read_text().splitlines()
        assert lines[0] == "# %% [markdown]" and lines[1].startswith("# # ") and len(lines) < 160, path.name
