"""What the machine has, read from files and variables made for the test."""

import os
import platform
import sys

import pytest

from fastdl.cpu import features

HOST = {"avx2": True, "fma": True, "avx512f": True, "avx512vl": True, "avx512dq": True, "avx512bw": True, "amx": False}


class Host:
    """llvmlite.binding's part that is used."""

    @staticmethod
    def get_host_cpu_name():
        return "znver4"

    @staticmethod
    def get_host_cpu_features():
        return HOST


def _forget():
    for f in vars(features).values():
        if hasattr(f, "cache_clear"):
            f.cache_clear()


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    for name in ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES", "FASTDL_VECTOR_BITS"):
        monkeypatch.delenv(name, raising=False)
    _forget()
    yield
    monkeypatch.undo()
    _forget()


@pytest.fixture
def host(monkeypatch):
    monkeypatch.setattr(features, "_llvm", lambda: Host)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    return monkeypatch


@pytest.fixture
def linux(monkeypatch, tmp_path):
    """A machine whose /sys and /proc are folders of the test: write(path, text)."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(features, "_SYS", tmp_path / "sys")
    monkeypatch.setattr(features, "_PROC", tmp_path / "proc")

    def write(path, text):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text + "\n")

    return write


# ------------------------------------------------------------------------------------------------ the instruction set
@pytest.mark.parametrize("name,changes,expected,bits,registers", [
    (None, None, {k for k, v in HOST.items() if v}, 512, 32),
    (None, "-avx512f,-avx512vl", {"avx2", "fma", "avx512dq", "avx512bw"}, 256, 16),
    (None, "-avx512bw,+sse9", {"avx2", "fma", "avx512f", "avx512vl", "avx512dq", "sse9"}, 256, 16),
    ("haswell", "+avx2,+fma", {"avx2", "fma"}, 256, 16),
    ("haswell", "+avx2", {"avx2"}, 128, 16),
    ("znver4", "-fma", {k for k, v in HOST.items() if v} - {"fma"}, 512, 32),
    ("haswell", None, {k for k, v in HOST.items() if v}, 512, 32),
    ("generic", None, set(), 128, 16),
    ("generic", "", set(), 128, 16),
])
def test_instruction_set(host, name, changes, expected, bits, registers):
    if name is not None:
        host.setenv("NUMBA_CPU_NAME", name)
    if changes is not None:
        host.setenv("NUMBA_CPU_FEATURES", changes)
    assert features.cpu_name() == (name or "znver4")
    assert features.features() == tuple(sorted(expected))
    assert features.vector_bits() == bits
    assert features.registers() == registers


@pytest.mark.parametrize("bits", ["128", "256", "512"])
def test_vector_bits_override(host, bits):
    host.setenv("FASTDL_VECTOR_BITS", bits)
    assert features.vector_bits() == int(bits)
    assert features.registers() == 32  # AVX-512 has 32 registers of any width


@pytest.mark.parametrize("bits", ["1024", "avx2", "-1", "256 "])
def test_vector_bits_refused(host, bits):
    host.setenv("FASTDL_VECTOR_BITS", bits)
    with pytest.raises(ValueError, match=r"FASTDL_VECTOR_BITS is .*; the rule is 128, 256 or 512"):
        features.vector_bits()


def test_arm_has_32_registers(host):
    host.setattr(platform, "machine", lambda: "aarch64")
    host.setenv("NUMBA_CPU_FEATURES", "")
    host.setenv("NUMBA_CPU_NAME", "neoverse-n1")
    assert (features.registers(), features.vector_bits()) == (32, 128)


def test_without_llvmlite(monkeypatch):
    monkeypatch.setattr(features, "_llvm", lambda: None)
    assert features.cpu_name() == "unknown"
    assert features.features() == ()
    assert features.vector_bits() == 128


def test_this_machine():
    assert features.cpu_name() and features.model_name()
    assert features.features() == tuple(sorted(features.features()))
    assert features.vector_bits() in (128, 256, 512)
    assert features.caches().l1d >= 8 << 10
    assert 1 <= features.available_cores() <= os.cpu_count()


# ------------------------------------------------------------------------------------------------ names and caches
def test_model_name(linux):
    linux("proc/cpuinfo", "processor\t: 0\nmodel name\t: A Fine CPU @ 3 GHz\n")
    assert features.model_name() == "A Fine CPU @ 3 GHz"


def test_caches(linux):
    told = [(1, "Data", "48K"), (1, "Instruction", "64K"), (2, "Unified", "2M"), (3, "Unified", "36864K")]
    for i, (level, kind, size) in enumerate(told):
        for name, text in (("level", level), ("type", kind), ("size", size)):
            linux(f"sys/devices/system/cpu/cpu0/cache/index{i}/{name}", str(text))
    assert features.caches() == (48 << 10, 2 << 20, 36 << 20)


@pytest.mark.parametrize("level,size", [("2", "?"), ("", "1M"), ("2", "")])
def test_caches_not_told(linux, level, size):
    for name, text in (("level", level), ("type", "Unified"), ("size", size)):
        linux(f"sys/devices/system/cpu/cpu0/cache/index2/{name}", text)
    assert features.caches() == (32 << 10, 512 << 10, 8 << 20)


def test_caches_macos(monkeypatch):
    told = {"hw.perflevel0.l1dcachesize": "131072", "hw.l2cachesize": "4194304"}
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(features, "_sysctl", told.get)
    assert features.caches() == (128 << 10, 4 << 20, 8 << 20)


# ------------------------------------------------------------------------------------------------ cores
@pytest.fixture
def eight_cores(monkeypatch):
    monkeypatch.setattr(os, "process_cpu_count", lambda: 8, raising=False)


@pytest.mark.parametrize("quota,cores", [
    ("max 100000", 8), ("150000 100000", 2), ("50000 100000", 1), ("1600000 100000", 8), ("nonsense", 8)])
def test_cores_cgroup_v2(linux, eight_cores, quota, cores):
    linux("proc/self/cgroup", "0::/box/job")
    linux("sys/fs/cgroup/box/job/cpu.max", quota)
    assert features.available_cores() == cores


def test_cores_cgroup_v2_parent(linux, eight_cores):
    linux("proc/self/cgroup", "0::/box/job")
    linux("sys/fs/cgroup/box/job/cpu.max", "max 100000")
    linux("sys/fs/cgroup/box/cpu.max", "300000 100000")
    assert features.available_cores() == 3


@pytest.mark.parametrize("folder", ["cpu,cpuacct/docker/1", "cpu", "cpu,cpuacct"])
@pytest.mark.parametrize("quota,cores", [("-1", 8), ("250000", 3)])
def test_cores_cgroup_v1(linux, eight_cores, folder, quota, cores):
    linux("proc/self/cgroup", "7:memory:/docker/1\n3:cpu,cpuacct:/docker/1\n0::/")
    linux(f"sys/fs/cgroup/{folder}/cpu.cfs_quota_us", quota)
    linux(f"sys/fs/cgroup/{folder}/cpu.cfs_period_us", "100000")
    assert features.available_cores() == cores


def test_cores_by_affinity(linux, monkeypatch):
    monkeypatch.delattr(os, "process_cpu_count", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 5}, raising=False)
    assert features.available_cores() == 3
    _forget()
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert features.available_cores() == 1
