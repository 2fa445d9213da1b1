"""The pool's compiled half: what the caller and the workers run. See parallel.py.

A job is open from when its fields are written until its chunks are gone. A worker first counts itself into ACTIVE, then
looks whether the job is open, and only then reads the fields; the caller closes the job, then waits until ACTIVE is 0,
and only then writes new fields. So a worker that sees an open job sees one that cannot change under it.

A thread begins with chunks of its own, the same part of the whole in every job: what it wrote in the last job, or read in the last call,
is in its cache still. Only then it takes those that others have not begun. Where two cores share no cache that counts for much: relu of
4 MB took 65 us on two such cores with chunks handed out to whoever comes first, 40 with chunks of their own.

How far a part is done stands in its thread's cursor, in a cache line of its own: the job's number in the upper half, the chunks taken in
the lower. A cursor with another job's number says that none is, so nobody has to set it back.
"""

from __future__ import annotations

import platform
import sys
import time

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .atomics import atomic_add, atomic_load, atomic_store, call_chunk, compare_exchange, cycles, pause, release_store
from .jit import callback, code_of_result, inline
from .parallel import (
    _ACTIVE,
    _CONTEXT,
    _COUNT,
    _CURSORS,
    _EPOCH,
    _FUNCTION,
    _JOB,
    _LOCK,
    _OPEN,
    _SLEEPERS,
    _SLOTS,
    _SPIN,
    _STOP,
    _THREADS,
)

_LINUX = sys.platform.startswith("linux")
_FUTEX = {"x86_64": 202, "aarch64": 98}.get(platform.machine(), 0)
_WAIT, _WAKE = 128, 129  # FUTEX_WAIT_PRIVATE, FUTEX_WAKE_PRIVATE
_LOWER, _JOBS = 0xFFFFFFFF, 0x7FFFFFFF
_SPIN_SECONDS = 300e-6  # a stream of calls this far apart finds the workers awake; waking one costs 40 to 100 us

_syscall = types.ExternalFunction("syscall", types.int64(*[types.int64] * 7))
_usleep = types.ExternalFunction("usleep", types.int32(types.int32))


if _LINUX and _FUTEX:

    @inline
    def _sleep(state, epoch):
        """Sleep until EPOCH is no longer what it was."""
        _syscall(_FUTEX, state + 8 * _EPOCH, _WAIT, epoch & 0xFFFFFFFF, 0, 0, 0)

    @inline
    def _wake(state, n):
        _syscall(_FUTEX, state + 8 * _EPOCH, _WAKE, n, 0, 0, 0)

else:

    @inline
    def _sleep(state, epoch):
        _usleep(100)

    @inline
    def _wake(state, n):
        pass


@inline
def _take_chunks(state, slot):
    function = atomic_load(state + 8 * _FUNCTION)
    context = atomic_load(state + 8 * _CONTEXT)
    count = atomic_load(state + 8 * _COUNT)
    job = atomic_load(state + 8 * _JOB)
    parts = min(count, atomic_load(state + 8 * _THREADS))
    for turn in range(parts):
        part = (slot + turn) % parts
        first, end = (part * count + parts - 1) // parts, ((part + 1) * count + parts - 1) // parts
        cursor = state + 8 * (_CURSORS + 8 * part)
        while True:
            found = atomic_load(cursor)
            taken = found & _LOWER if found >> 32 == job else 0
            if first + taken >= end:
                break
            if compare_exchange(cursor, found, (job << 32) + taken + 1):
                call_chunk(function, context, slot, first + taken)


@callback(types.void(types.int64, types.int64, types.int64, types.int64), "fastdl.cpu.pool_run")
def pool_run(state, function, context, count):
    """Run chunks 0..count-1 of a job on the caller and whoever is awake."""
    if not compare_exchange(state + 8 * _LOCK, 0, 1):
        for i in range(count):  # somebody else is at it, or this is a chunk
            call_chunk(function, context, 0, i)
        return
    release_store(state + 8 * _FUNCTION, function)
    release_store(state + 8 * _CONTEXT, context)
    release_store(state + 8 * _COUNT, count)
    job = (atomic_load(state + 8 * _JOB) + 1) & _JOBS
    release_store(state + 8 * _JOB, job)
    if job == 0:  # all over again: no cursor may have a number that comes back
        for thread in range(atomic_load(state + 8 * _THREADS)):
            release_store(state + 8 * (_CURSORS + 8 * thread), 0)
    atomic_store(state + 8 * _OPEN, 1)
    atomic_add(state + 8 * _EPOCH, 1)
    if atomic_load(state + 8 * _SLEEPERS) > 0:
        _wake(state, count - 1)
    _take_chunks(state, 0)
    atomic_store(state + 8 * _OPEN, 0)
    while atomic_load(state + 8 * _ACTIVE) > 0:
        pause()
    release_store(state + 8 * _LOCK, 0)


@callback(types.int64(types.int64), "fastdl.cpu.worker_main")
def worker_main(state):
    """A worker's life: spin for a new job, sleep after a while, help, until told to stop."""
    slot = atomic_add(state + 8 * _SLOTS, 1) + 1
    seen = 0
    while True:
        start = cycles()
        limit = atomic_load(state + 8 * _SPIN)
        while True:
            epoch = atomic_load(state + 8 * _EPOCH)
            if epoch != seen:
                break
            if cycles() - start > limit:
                atomic_add(state + 8 * _SLEEPERS, 1)
                if atomic_load(state + 8 * _EPOCH) == seen:
                    _sleep(state, seen)
                atomic_add(state + 8 * _SLEEPERS, -1)
            else:
                pause()
        seen = epoch
        if atomic_load(state + 8 * _STOP):
            return 0
        atomic_add(state + 8 * _ACTIVE, 1)
        if atomic_load(state + 8 * _OPEN):
            _take_chunks(state, slot)
        atomic_add(state + 8 * _ACTIVE, -1)


@callback(types.void(types.int64), "fastdl.cpu.request_stop")
def _request_stop(state):
    while not compare_exchange(state + 8 * _LOCK, 0, 1):  # a running job ends first
        pause()
    atomic_store(state + 8 * _STOP, 1)
    atomic_add(state + 8 * _EPOCH, 1)
    _wake(state, 1 << 30)
    release_store(state + 8 * _LOCK, 0)


@callback(types.int64(), "fastdl.cpu.cycles_now")
def _cycles_now():
    return cycles()


def request_stop(state: int) -> None:
    """Tell the workers to end; waits for a job that is running."""
    _request_stop.ctypes(state)


def calibrate() -> int:
    """The spin time in ticks of the cycle counter."""
    a, t = _cycles_now.ctypes(), time.perf_counter()
    time.sleep(0.002)
    b, u = _cycles_now.ctypes(), time.perf_counter()
    return int((b - a) / (u - t) * _SPIN_SECONDS)


# ------------------------------------------------------------------------------------------------ parallel_for
@intrinsic
def parallel_for(typingctx, pool, body, n, arguments):
    """Run ``body(slot, i, *arguments)`` for i in 0..n-1; see parallel.py.

    body: a compiled function that returns nothing and raises nothing. arguments: a tuple of numbers and pointers.
    """
    members = tuple(arguments.types)
    resolved = typingctx.resolve_function_type(body, (types.int64, types.int64, *members), {})

    def codegen(context, builder, signature, args):
        pool_value, _, count, packed = args
        i64, byte = ir.IntType(64), ir.IntType(8).as_pointer()
        block = cgutils.alloca_once(builder, packed.type)
        builder.store(packed, block)
        # void chunk(void* context, int64 slot, int64 index): unpack the tuple and call the body
        module = builder.module
        chunk = ir.Function(module, ir.FunctionType(ir.VoidType(), [byte, i64, i64]), module.get_unique_name("fastdl_chunk"))
        chunk.linkage = "internal"
        inner = ir.IRBuilder(chunk.append_basic_block())
        values = inner.load(inner.bitcast(chunk.args[0], packed.type.as_pointer()))
        unpacked = [inner.extract_value(values, k) for k in range(len(members))]
        result = body.dispatcher.get_compile_result(resolved)
        context.add_linking_libs([code_of_result(result)])
        context.call_internal_no_propagate(inner, result.fndesc, resolved, [chunk.args[1], chunk.args[2], *unpacked])
        inner.ret_void()
        job = builder.bitcast(block, byte)

        alone = builder.or_(builder.icmp_signed("==", pool_value, i64(0)), builder.icmp_signed("<=", count, i64(1)))
        with builder.if_else(alone) as (serially, together):
            with serially:
                loop_header = builder.append_basic_block("chunks")
                loop_body = builder.append_basic_block("chunk")
                done = builder.append_basic_block("done")
                entry = builder.block
                builder.branch(loop_header)
                builder.position_at_end(loop_header)
                index = builder.phi(i64)
                index.add_incoming(i64(0), entry)
                builder.cbranch(builder.icmp_signed("<", index, count), loop_body, done)
                builder.position_at_end(loop_body)
                builder.call(chunk, [job, i64(0), index])
                index.add_incoming(builder.add(index, i64(1)), builder.block)
                builder.branch(loop_header)
                builder.position_at_end(done)
            with together:
                run_type = ir.FunctionType(ir.VoidType(), [i64, i64, i64, i64]).as_pointer()
                run_address = builder.load(builder.inttoptr(pool_value, i64.as_pointer()))
                run = builder.inttoptr(run_address, run_type)
                builder.call(run, [pool_value, builder.ptrtoint(chunk, i64), builder.ptrtoint(job, i64), count])
        return context.get_dummy_value()

    return types.void(types.int64, body, types.int64, arguments), codegen
