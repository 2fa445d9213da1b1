"""The thread pool: right from any thread, after a fork, nested, beside torch's; the same bits for any number of threads."""

import ctypes
import os
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest

import fastdl
import fastdl.functional as F
from fastdl.cpu import parallel
from fastdl.cpu._pool import parallel_for
from fastdl.cpu.jit import inline, kernel
from fastdl.cpu.simd import pointer, read, write


@pytest.fixture(autouse=True)
def two_threads():
    before = fastdl.get_num_threads()
    fastdl.set_num_threads(2)
    yield
    fastdl.set_num_threads(before)


@inline
def _square(slot, i, p, q):
    write(q, i, read(p, i) * read(p, i))


@kernel("i R1 W1", dtypes="d")
def squares(pool, x, y):
    parallel_for(pool, _square, x.shape[0], (pointer(x), pointer(y)))


@inline
def _row(slot, i, pool, p, q, n):
    parallel_for(pool, _square_of_row, n, (p, q, i * n))


@inline
def _square_of_row(slot, j, p, q, start):
    write(q, start + j, read(p, start + j) * read(p, start + j))


@kernel("i R1 W1 i", dtypes="d")
def nested_squares(pool, x, y, n):
    parallel_for(pool, _row, x.shape[0] // n, (pool, pointer(x), pointer(y), n))


@pytest.mark.parametrize("n", [0, 1, 2, 3, 1000])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_chunk_runs_once(n, threads):
    fastdl.set_num_threads(threads)
    x, y = np.arange(n, dtype=float), np.full(n, np.nan)
    for _ in range(20):
        y[:] = np.nan
        squares["d"](parallel.pool(), x, y)
        np.testing.assert_array_equal(y, x * x)


def test_every_chunk_runs_once_where_the_count_of_jobs_begins_again():
    squares["d"](parallel.pool(), *np.zeros((2, 5)))
    address, threads = parallel.team()
    job = ctypes.c_int64.from_address(address + 8 * parallel._JOB)
    for thread in range(threads):  # three chunks of job 0 done, the first time around
        ctypes.c_int64.from_address(address + 8 * (parallel._CURSORS + 8 * thread)).value = 3
    job.value = 0x7FFFFFFF
    x, y = np.arange(10, dtype=float), np.empty(10)
    for number in range(3):
        y[:] = np.nan
        squares["d"](parallel.pool(), x, y)
        np.testing.assert_array_equal(y, x * x)
        assert job.value == number


def test_nested_calls_run_serially():
    x, y = np.arange(600, dtype=float), np.full(600, np.nan)
    nested_squares["d"](parallel.pool(), x, y, 20)
    np.testing.assert_array_equal(y, x * x)


CASES = {
    "matmul": lambda rng: (F.matmul, rng.standard_normal((65, 130)).astype("f4"), rng.standard_normal((130, 70)).astype("f4")),
    "linear": lambda rng: (F.linear, rng.standard_normal((33, 200)).astype("f4"), rng.standard_normal((90, 200)).astype("f4")),
    "conv2d": lambda rng: (F.conv2d, rng.standard_normal((2, 8, 17, 17)).astype("f4"), rng.standard_normal((20, 8, 3, 3)).astype("f4")),
    "max_pool2d": lambda rng: (F.max_pool2d, rng.standard_normal((2, 40, 40, 40)).astype("f4"), 2),
}


@pytest.mark.parametrize("name", CASES)
def test_same_bits_for_any_number_of_threads(name):
    f, *args = CASES[name](np.random.default_rng(0))
    answers, gradients = [], []
    for threads in (1, 2, 3, 7):
        fastdl.set_num_threads(threads)
        y, pullback = fastdl.vjp(f, *args)
        answers.append(y)
        gradients.append([g for g in pullback(np.ones_like(y)) if g is not None])
    for a, g in zip(answers[1:], gradients[1:], strict=True):
        np.testing.assert_array_equal(a, answers[0])
        for one, other in zip(g, gradients[0], strict=True):
            np.testing.assert_array_equal(one, other)


def test_eight_python_threads_at_once():
    calls = [CASES[name](np.random.default_rng(i)) for i, name in enumerate(CASES)]
    wants = [f(*args) for f, *args in calls]
    wrong = []

    def work(seed):
        rng = np.random.default_rng(seed)
        for _ in range(1000):
            k = rng.integers(len(calls))
            f, *args = calls[k]
            if not np.array_equal(f(*args), wants[k]):
                wrong.append(k)

    threads = [threading.Thread(target=work, args=(s,)) for s in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_set_num_threads_while_others_call():
    f, *args = CASES["matmul"](np.random.default_rng(0))
    want = f(*args)
    stop, wrong = threading.Event(), []

    def work():
        while not stop.is_set():
            if not np.array_equal(f(*args), want):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for t in threads:
        t.start()
    for i in range(100):  # a hundred pools made and ended
        fastdl.set_num_threads(1 + i % 3)
        f(*args)
    stop.set()
    for t in threads:
        t.join()
    assert not wrong


def test_bad_thread_counts():
    for bad, error in [(0, ValueError), (-1, ValueError), (1.5, TypeError), ("2", TypeError)]:
        with pytest.raises(error, match="set_num_threads: n"):
            fastdl.set_num_threads(bad)
    with pytest.raises(subprocess.CalledProcessError):
        run("import fastdl; fastdl.get_num_threads()", FASTDL_NUM_THREADS="none")
    assert run("import fastdl; print(fastdl.get_num_threads())", FASTDL_NUM_THREADS="3").strip() == "3"


def run(code, **environment):
    return subprocess.run([sys.executable, "-X", "faulthandler", "-c", textwrap.dedent(code)], check=True, capture_output=True, text=True,
                          timeout=120, env={**os.environ, **environment}).stdout


SETUP = """
    import os, sys, time
    import numpy as np, fastdl, fastdl.functional as F
    fastdl.set_num_threads(2)
    a = np.random.default_rng(0).standard_normal((200, 200)).astype("f4")
    want = F.matmul(a, a)
"""


def test_a_forked_child_works():
    code = textwrap.dedent(SETUP) + textwrap.dedent("""
        for _ in range(20):
            F.matmul(a, a)
            child = os.fork()
            if child == 0:
                ok = all(np.array_equal(F.matmul(a, a), want) for _ in range(20))
                os._exit(0 if ok else 3)
            assert np.array_equal(F.matmul(a, a), want)
            assert os.waitpid(child, 0)[1] == 0
        print("fine")
    """)
    assert "fine" in run(code)


def test_fork_workers_like_a_data_loader():
    code = textwrap.dedent(SETUP) + textwrap.dedent("""
        import multiprocessing
        def work(i):
            return bool(np.array_equal(F.matmul(a, a), want))
        with multiprocessing.get_context("fork").Pool(3) as pool:
            assert all(pool.map(work, range(50)))
        print("fine")
    """)
    assert "fine" in run(code)


def test_beside_a_busy_torch():
    code = textwrap.dedent(SETUP) + textwrap.dedent("""
        import threading, torch
        torch.set_num_threads(2)
        t = torch.randn(300, 300)
        stop = False
        def busy():
            while not stop:
                t @ t
        thread = threading.Thread(target=busy)
        thread.start()
        ok = all(np.array_equal(F.matmul(a, a), want) for _ in range(200))
        stop = True
        thread.join()
        assert ok
        print("fine")
    """)
    assert "fine" in run(code)


def test_a_process_ends_while_workers_spin_and_sleep():
    for wait in (0, 0.05):
        for _ in range(3):
            assert run(textwrap.dedent(SETUP) + f"time.sleep({wait}); print('fine')") == "fine\n"


def test_idle_workers_burn_nothing():
    f, *args = CASES["matmul"](np.random.default_rng(0))
    f(*args)
    time.sleep(0.05)
    start = time.process_time()
    time.sleep(1.0)
    assert time.process_time() - start < 0.02


def test_pool_is_not_started_by_one_thread():
    code = "import fastdl; from fastdl.cpu import parallel; fastdl.set_num_threads(1); print(parallel.pool())"
    assert run(code).strip() == "0"
