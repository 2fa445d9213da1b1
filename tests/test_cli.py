"""The fastdl command: what it prints, its exit statuses, what it says when something is wrong."""

import builtins
import importlib.metadata
import subprocess
import sys
import types

import numpy as np
import pytest
from subprocesses import ROOT, python

import fastdl
from fastdl import cli, op
from fastdl.checkpoint import CheckpointError
from fastdl.cpu import features


def usage(*argv):
    with pytest.raises(SystemExit) as exit:
        cli.main(list(argv))
    return exit.value.code


@pytest.fixture
def demo(monkeypatch):
    """fastdl.demos.cnn with a run() of the test's."""

    def put(run):
        module = types.ModuleType("fastdl.demos.cnn")
        module.run = run
        monkeypatch.setitem(sys.modules, "fastdl.demos.cnn", module)

    return put


def test_info(capsys):
    assert cli.main(["info"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"fastdl {fastdl.__version__}\n")
    assert f"numpy {np.__version__}" in out and f"torch {importlib.metadata.version('torch')}" in out
    assert f"of {features.vector_bits()} bits" in out
    assert f"{fastdl.get_num_threads()} of " in out
    for name, usable, why in op.backend_report():
        assert name in out and (usable or why.partition(":")[0] in out)
    assert max(map(len, out.splitlines())) <= 120


def test_info_says_what_was_chosen(capsys):
    with fastdl.use_backend("reference"):
        cli.main(["info"])
    assert "reference was chosen" in capsys.readouterr().out


def test_info_imports_no_torch():
    done = python("import sys; from fastdl.cli import main; main(['info']); print('torch' in sys.modules)")
    assert done.stdout.splitlines()[-1] == "False"


def test_info_with_a_variable_that_is_wrong():
    done = python("import sys; from fastdl.cli import main; sys.exit(main(['info']))", check=False, FASTDL_VECTOR_BITS="100")
    assert done.returncode == 1
    assert done.stderr == "fastdl: FASTDL_VECTOR_BITS is '100'; the rule is 128, 256 or 512\n"


def test_module_and_version():
    done = subprocess.run([sys.executable, "-m", "fastdl", "--version"], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, f"fastdl {fastdl.__version__}\n")


@pytest.mark.parametrize("argv", [[], ["nonsense"], ["demo"], ["demo", "nonsense"], ["info", "more"], ["demo", "cnn", "--epochs", "0"],
                                  ["demo", "cnn", "--seeds", "two"], ["demo", "gan", "--seeds", "2"], ["demo", "select", "--folds", "1"],
                                  ["demo", "mlp", "--seed", "-1"]])
def test_bad_usage(argv, capsys):
    assert usage(*argv) == 2
    assert "usage: fastdl" in capsys.readouterr().err


def test_help(capsys):
    assert usage("--help") == 0
    out = capsys.readouterr().out
    assert all(command in out for command in ("info", "warmup", "demo"))


def test_demo_gets_the_options_that_were_given(demo):
    got = []
    demo(lambda **options: got.append(options))
    assert cli.main(["demo", "cnn"]) == 0
    assert cli.main(["demo", "cnn", "--seeds", "2", "--epochs", "3", "--batch-size", "8", "--out", "x", "--resume"]) == 0
    assert got == [{}, {"seeds": 2, "epochs": 3, "batch_size": 8, "out": "x", "resume": True}]


def test_demo_that_cannot_write(demo, capsys, tmp_path):
    (tmp_path / "file").touch()
    demo(lambda out: (tmp_path / "file" / out).mkdir())
    assert cli.main(["demo", "cnn", "--out", "x"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("fastdl: ") and "Not a directory" in err


def test_demo_without_its_packages(demo, capsys):
    def run():
        raise ModuleNotFoundError("No module named 'mlxtend'", name="mlxtend")

    demo(run)
    assert cli.main(["demo", "cnn"]) == 1
    assert capsys.readouterr().err == "fastdl: the demo needs mlxtend, which is not installed: pip install 'fastdl[demo]'\n"


def test_interrupted(demo, capsys):
    def run():
        raise KeyboardInterrupt

    demo(run)
    assert cli.main(["demo", "cnn"]) == 130
    assert "interrupted; the same command with --resume goes on from the last whole epoch" in capsys.readouterr().err


def test_what_cannot_be_resumed_is_told_and_a_fault_of_ours_is_not_hidden(demo, capsys):
    def run(resume=False):
        raise CheckpointError("out/cnn was made with epochs=3") if resume else ValueError("a fault")

    demo(run)
    assert cli.main(["demo", "cnn", "--resume"]) == 1
    assert capsys.readouterr().err == "fastdl: out/cnn was made with epochs=3\n"
    with pytest.raises(ValueError, match="a fault"):
        cli.main(["demo", "cnn"])


def test_nobody_reads_on():
    writer = subprocess.Popen([sys.executable, "-m", "fastdl", "info"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    writer.stdout.close()
    assert "Traceback" not in writer.stderr.read()
    writer.stderr.close()
    assert writer.wait() == 1


# ------------------------------------------------------------------------------------------------ warmup
@pytest.fixture
def compiler(monkeypatch):
    """A fastdl.cpu.jit that has three kernels."""
    jit = types.ModuleType("fastdl.cpu.jit")

    def warmup(report):
        for done, name in enumerate(("a", "b", "c")):
            report(done, 3, name)
        report(3, 3, "done")
        return 3

    jit.warmup, jit.cache_directory = warmup, lambda: "/a/directory"
    monkeypatch.setitem(sys.modules, "fastdl.cpu.jit", jit)
    monkeypatch.setattr("fastdl.cpu.jit", jit, raising=False)
    monkeypatch.setattr(op, "backend_report", lambda: [("numba", True, "")])


def test_warmup(compiler, capsys):
    assert cli.main(["warmup"]) == 0
    out, err = capsys.readouterr()
    assert "3 kernels ready after" in out and "/a/directory" in out
    assert "3/3" in err


def test_warmup_without_tqdm(compiler, capsys, monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name == "tqdm":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    assert cli.main(["warmup"]) == 0
    assert capsys.readouterr().err.splitlines() == ["[0/3] a", "[1/3] b", "[2/3] c", "[3/3] done"]


def test_warmup_without_numba(monkeypatch, capsys):
    monkeypatch.setattr(op, "backend_report", lambda: [("numba", False, "importing numba failed: ImportError: no")])
    assert cli.main(["warmup"]) == 1
    assert capsys.readouterr().err == ("fastdl: there is nothing to compile: the numba backend cannot run here: "
                                       "importing numba failed: ImportError: no\n")
