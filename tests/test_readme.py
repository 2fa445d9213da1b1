"""The README's examples run as they stand, one after another."""

import re

from subprocesses import ROOT, python


def test_examples():
    text = (ROOT / "README.md").read_text()
    code = "\n".join(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL))
    assert code.count("import") >= 5
    done = python(code, "-W", "error::UserWarning")
    error = float(re.search(r"relative error (\S+)", done.stdout)[1])
    assert 0 < error < 1e-6


def test_the_simd_example():
    code = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "simd.md").read_text(), flags=re.DOTALL)[1]
    python(code)


def test_links():
    for document in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "examples" / "README.md", *(ROOT / "docs").glob("*.md")]:
        text = re.sub(r"```.*?```|`[^`]*`", "", document.read_text(), flags=re.DOTALL)
        for target in re.findall(r"\]\((?!http)([^)#]+)", text):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_the_demos_examples(tmp_path):
    code = "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "demos.md").read_text(), flags=re.DOTALL))
    assert code.count("import") >= 7
    scores = python(f"import os; os.chdir({str(tmp_path)!r})\n{code}", FASTDL_BACKEND="reference").stdout
    assert all(float(score) > 0.85 for score in re.findall(r"\d\.\d+", scores)) and (tmp_path / "run.safetensors").exists()
