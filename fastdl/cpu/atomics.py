"""Atomic reads and writes of 64-bit words, a spin pause and the machine's cycle counter, for Numba code.

Words are named by address: ``base + 8 * index`` of a block of int64. Every operation but ``release_store`` is sequentially consistent.
"""

from __future__ import annotations

import platform

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

I64 = ir.IntType(64)
_X86 = platform.machine().lower() in ("x86_64", "amd64")


def _word(builder, address):
    return builder.inttoptr(address, I64.as_pointer())


@intrinsic
def atomic_load(typingctx, address):
    def codegen(context, builder, signature, args):
        return builder.load_atomic(_word(builder, args[0]), "seq_cst", 8)

    return types.int64(types.int64), codegen


@intrinsic
def atomic_store(typingctx, address, value):
    def codegen(context, builder, signature, args):
        builder.store_atomic(args[1], _word(builder, args[0]), "seq_cst", 8)

    return types.void(types.int64, types.int64), codegen


@intrinsic
def release_store(typingctx, address, value):
    """A write that whoever sees it sees with all before it; on x86 a plain one, where atomic_store holds up all that follows."""

    def codegen(context, builder, signature, args):
        builder.store_atomic(args[1], _word(builder, args[0]), "release", 8)

    return types.void(types.int64, types.int64), codegen


@intrinsic
def atomic_add(typingctx, address, value):
    """Add and answer what was there before."""

    def codegen(context, builder, signature, args):
        return builder.atomic_rmw("add", _word(builder, args[0]), args[1], "seq_cst")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def compare_exchange(typingctx, address, expected, value):
    """Write value where expected stands; whether it did."""

    def codegen(context, builder, signature, args):
        result = builder.cmpxchg(_word(builder, args[0]), args[1], args[2], "seq_cst", "seq_cst")
        return builder.extract_value(result, 1)

    return types.boolean(types.int64, types.int64, types.int64), codegen


@intrinsic
def pause(typingctx):
    """Tell the core that this is a spin loop."""

    def codegen(context, builder, signature, args):
        name, arguments = ("llvm.x86.sse2.pause", []) if _X86 else ("llvm.aarch64.hint", [ir.IntType(32)(1)])
        function_type = ir.FunctionType(ir.VoidType(), [a.type for a in arguments])
        builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), arguments)

    return types.void(), codegen


@intrinsic
def cycles(typingctx):
    """A counter that ticks at a constant rate."""

    def codegen(context, builder, signature, args):
        # on ARM the cycle counter is the kernel's; the steady counter is anybody's
        name = "llvm.readcyclecounter" if _X86 else "llvm.readsteadycounter"
        return builder.call(cgutils.get_or_insert_function(builder.module, ir.FunctionType(I64, []), name), [])

    return types.int64(), codegen


@intrinsic
def call_chunk(typingctx, function, context_address, slot, index):
    """Call the C function ``void f(void* context, int64 slot, int64 index)`` at an address."""

    def codegen(context, builder, signature, args):
        byte = ir.IntType(8).as_pointer()
        target = ir.FunctionType(ir.VoidType(), [byte, I64, I64]).as_pointer()
        builder.call(builder.inttoptr(args[0], target), [builder.inttoptr(args[1], byte), args[2], args[3]])

    return types.void(types.int64, types.int64, types.int64, types.int64), codegen
