"""What a compiled kernel's machine code shows."""

import re

from fastdl.cpu.features import registers, vector_bits
from fastdl.cpu.jit import assembly


def spills_of_loops(dispatcher, char, multiply_adds):
    """For each innermost loop of at least that many multiply-adds, its lines that move a vector to or from the stack.

    None where vectors are wider than the machine's: they are cut in two, which takes twice the registers.
    """
    if vector_bits() > 256 and registers() < 32:
        return None
    lines = assembly(dispatcher, char).splitlines()
    labels = {m.group(1): i for i, line in enumerate(lines) if (m := re.match(r"(\.?L\w+):", line))}
    loops = []
    for i, line in enumerate(lines):
        m = re.match(r"\s+(?:j\w+|b[.\w]*|cbn?z\s+\w+,)\s+(\.?L\w+)$", line)
        if not m or labels.get(m.group(1), i) >= i:
            continue
        body = lines[labels[m.group(1)] : i]
        inner = not any(re.match(r"\.?L\w+:", x) for x in body[1:])
        if inner and sum("fmadd" in x or "fmla" in x for x in body) >= multiply_adds:
            # a number that is repeated comes from an array: rbp may point to anything
            moves = [x for x in body if re.search(r"[xyz]mm|\bq\d+|\bv\d+", x) and "broadcast" not in x]
            loops.append([x for x in moves if re.search(r"\(%rsp|-\d+\(%rbp\)|\[sp", x)])
    return loops
