"""What an installation needs: dependencies, pins, extension modules that may be left out."""

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from subprocesses import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE))


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_core_needs_numpy_and_numba_only():
    assert [Requirement(text).name for text in PROJECT["dependencies"]] == ["numpy", "numba"]


def test_every_package_that_tests_and_demos_need_is_pinned():
    pins = {normal(name): version for name, version in PINS.items()}
    extras = PROJECT["optional-dependencies"]
    todo = [*PROJECT["dependencies"], *extras["demo"], *extras["test"], *extras["dev"]]
    seen = set()
    while todo:
        requirement = Requirement(todo.pop())
        name = normal(requirement.name)
        if name in seen or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        if name.startswith(("nvidia", "cuda", "triton", "colorama")):
            continue  # what a CUDA build of torch, or Windows, adds: not pinned, so that other machines resolve too
        seen.add(name)
        distribution = importlib.metadata.distribution(name)
        assert pins.get(name) == distribution.version.partition("+")[0], name
        todo += distribution.requires or []
    assert seen >= {"torch", "llvmlite", "scipy"}


@pytest.fixture
def source(tmp_path):
    """The project with one extension module, fastdl._probe."""
    for name in ("pyproject.toml", "setup.py", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "fastdl").mkdir()
    shutil.copy(ROOT / "fastdl" / "__init__.py", tmp_path / "fastdl")
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc" / "probe.h").write_text("static int probe(void) { return 42; }\n")
    (tmp_path / "csrc" / "_probe.pyx").write_text('cdef extern from "probe.h":\n    int probe()\n\ndef answer():\n    return probe()\n')
    return tmp_path


def build(source, **environment):
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    return subprocess.run(command, cwd=source, env={**os.environ, **environment}, capture_output=True, text=True)


def test_an_extension_module_is_built_where_there_is_a_compiler(source):
    done = build(source)
    assert done.returncode == 0, done.stderr
    built = list((source / "fastdl").glob("_probe.*"))
    assert len(built) == bool(shutil.which(os.environ.get("CC", "cc").split()[0]))
    if built:
        spec = importlib.util.spec_from_file_location("_probe", built[0])
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        assert module.answer() == 42


@pytest.mark.parametrize("compiler", ["/nonexistent/cc", "false"])
def test_a_compiler_that_does_not_work_stops_nothing(source, compiler):
    done = build(source, CC=compiler)
    assert done.returncode == 0, done.stderr
    assert not list((source / "fastdl").glob("_probe.*"))


def test_no_cython_stops_nothing(source):
    (source / "Cython.py").write_text("raise ImportError('blocked by the test')\n")
    done = build(source, PYTHONPATH=str(source))
    assert done.returncode == 0, done.stderr
    assert "no Cython" in done.stderr
    assert not list((source / "fastdl").glob("_probe.*"))
