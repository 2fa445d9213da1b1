"""The matrix product c = a b on strided operands, with a last step on each part of c while it is in a core's cache.

c has contiguous rows; a and b have any strides. Five ways, the caller chooses:

* ``dots``: both operands contiguous along k (a times a transposed weight): nothing is packed;
* ``row``: a single row of a, b has contiguous rows: b flows past once, its rows shared by threads in long pieces;
* ``direct``: b has contiguous rows: b is read in place, a through any strides;
* ``few``: few rows of a: each thread copies some panels of b to its L2 and all of a passes them. Any strides;
* ``packed``: panels of b are copied once into the order in which tiles read them (or were before: weights used again),
  then blocks of a's rows pass over them; a is read in place where its rows are contiguous, packed otherwise. Any strides.

Every sum runs over k in the same order whatever the number of threads.
"""

from __future__ import annotations

from ._pool import parallel_for
from .blocking import KC, MC, NC, tiles_of_heights
from .dot_tiles import dot_tile, store_scalars
from .in_place import ROW_BLOCK, four_rows, many_rows, one_row, row_times
from .jit import always_inline, inline
from .microkernel import LINE_VECTORS, TILE_ROWS, TILE_VECTORS, UNROLL, asked, outer_tile, store_tile
from .panels import GROUP, pack_panels, pack_rows
from .simd import lanes, load_n, offset, prefetch, store_n

# Rows of a tile. Of the first three almost any number is a sum; a tile of four serves no more rows than that: beside others, panels of b
# would flow past it for little work.
MR, MIDDLE, LOW = (TILE_ROWS, 9, 8) if TILE_ROWS > 8 else (TILE_ROWS, TILE_ROWS - 1, TILE_ROWS - 2)
LOWEST = 4
IN_PLACE = TILE_ROWS < 8  # whether rows of a are read where they lie as fast as packed: more need more addresses than registers


def scratch_elements(n: int, k: int, slots: int, lanes: int, ready: bool) -> int:
    """How many elements of scratch memory ``packed`` needs; ready: b's panels were made before."""
    width = TILE_VECTORS * lanes
    columns = -(-min(n, NC) // width) * width
    return (0 if ready else min(k, KC) * columns) + slots * (MC * min(k, KC) + 2 * lanes)  # see pack_rows for what is behind a block


def few_elements(m: int, k: int, lanes: int) -> int:
    """How many elements of scratch memory a thread of ``few`` needs, in whole cache lines: see pack_rows for what is behind it."""
    return -(-((-(-m // MR) * MR + GROUP * TILE_VECTORS * lanes) * min(k, KC) + 2 * lanes) // 64) * 64


@inline
def _depth(k):
    """How much of k a pass takes: as few passes as KC allows, all about as long."""
    passes = max(1, (k + KC - 1) // KC)
    return max(1, (k + passes - 1) // passes)


@inline
def _columns(n, width):
    """How many columns a pass takes: as few passes as NC allows, all about as wide, in whole panels."""
    passes = max(1, (n + NC - 1) // NC)
    return max(1, ((n + passes - 1) // passes + width - 1) // width) * width


# ------------------------------------------------------------------------------------------------ packed
_tile = outer_tile(TILE_ROWS, TILE_VECTORS, ahead=1)
_store = store_tile(TILE_ROWS, TILE_VECTORS)
_tile_middle, _store_middle = outer_tile(MIDDLE, TILE_VECTORS, ahead=1), store_tile(MIDDLE, TILE_VECTORS)
_tile_low, _store_low = outer_tile(LOW, TILE_VECTORS, ahead=1), store_tile(LOW, TILE_VECTORS)
_tile_lowest, _store_lowest = outer_tile(LOWEST, TILE_VECTORS, ahead=1), store_tile(LOWEST, TILE_VECTORS)
_LAST = tiles_of_heights((MR, MIDDLE, LOW), 3 * MR)  # for up to so many rows: any more are in whole tiles
# Of few rows, which pass a panel as it flows from memory: all of it is asked for, so many elements before it is read. On two cores of
# Zen 5, 8 x 1024 to 12544 (51 MB): 0.60 ms, 0.89 with 512, 1.20 with what a tile of many asks for.
STREAM_AHEAD = 4096
ALL_LINES = UNROLL * TILE_VECTORS // LINE_VECTORS
_stream, _stream_middle, _stream_low, _stream_lowest = (
    outer_tile(rows, TILE_VECTORS, ahead=ALL_LINES) for rows in (MR, MIDDLE, LOW, LOWEST))


@inline
def _tiles(m):
    """(how many of m rows whole tiles take, how many behind them those of the middle height, the height of the tiles behind those)."""
    if m <= LOWEST:
        return 0, 0, LOWEST
    first = max(0, m // MR - 2) * MR
    whole, middle = first + _LAST[m - first, 0] * MR, _LAST[m - first, 1] * MIDDLE
    if whole > m:
        return whole - MR, 0, MR
    return whole, min(middle, m - whole), LOW


@inline
def _pack_last(a, a_row, a_col, m, k, whole, middle, height, out):
    """What _last_tiles reads of a: the rows behind the whole tiles'."""
    pack_rows(offset(a, whole * a_row), a_row, a_col, middle, k, MIDDLE, out)
    pack_rows(offset(a, (whole + middle) * a_row), a_row, a_col, m - whole - middle, k, height, offset(out, middle * k))


@inline
def _last_tiles(k, rows, height, panel, width, following, c, c_row, whole, middle, m, n, add, stream):
    """Rows from ``whole`` on of c; rows: _pack_last's. stream: whether the panel comes from memory."""
    i, tiles = whole, whole // MR
    if stream and whole == 0:
        ask = offset(panel, STREAM_AHEAD)
        if middle:
            _store_middle(_stream_middle(k, rows, 1, MIDDLE, panel, width, ask), c, c_row, m, n, add)
            i = MIDDLE
        elif height == LOW:
            _store_low(_stream_low(k, rows, 1, LOW, panel, width, ask), c, c_row, m, n, add)
            i = LOW
        elif height == MR:
            _store(_stream(k, rows, 1, MR, panel, width, ask), c, c_row, m, n, add)
            i = MR
        else:
            _store_lowest(_stream_lowest(k, rows, 1, LOWEST, panel, width, ask), c, c_row, m, n, add)
            i = LOWEST
        tiles = 1
    while i < m:
        left, there, count = offset(rows, (i - whole) * k), offset(c, i * c_row), m - i
        ask = offset(following, tiles * asked(k, lanes(following)))
        tiles += 1
        if i < whole + middle:
            _store_middle(_tile_middle(k, left, 1, MIDDLE, panel, width, ask), there, c_row, count, n, add)
            i += MIDDLE
        elif height == LOW:
            _store_low(_tile_low(k, left, 1, LOW, panel, width, ask), there, c_row, count, n, add)
            i += LOW
        elif height == MR:
            _store(_tile(k, left, 1, MR, panel, width, ask), there, c_row, count, n, add)
            i += MR
        else:
            _store_lowest(_tile_lowest(k, left, 1, LOWEST, panel, width, ask), there, c_row, count, n, add)
            i += LOWEST


@inline
def part_ahead(following, i, k):
    """What the tile at row i asks for of the next panel: tiles one after the other ask for all of it."""
    return offset(following, i // MR * asked(k, lanes(following)))


@inline
def _pack_chunk(slot, chunk, b, b_row, b_col, k, n, packed):
    width = GROUP * TILE_VECTORS * lanes(b)
    first = chunk * width
    pack_panels(offset(b, first * b_col), b_row, b_col, k, min(width, n - first), offset(packed, first * k))


@inline
def pack_all(pool, b, b_row, b_col, k, n, out):
    """b's panels in the order in which ``packed`` wants them ready: panel_elements(n, k, lanes) elements."""
    width = TILE_VECTORS * lanes(b)
    full = _depth(k)
    block = _columns(n, width)
    for j in range(0, n, block):
        columns = min(block, n - j)
        panels = (columns + width - 1) // width
        for p in range(0, k, full):
            target = offset(out, j * k + p * panels * width)
            source = offset(b, p * b_row + j * b_col)
            parallel_for(pool, _pack_chunk, (panels + GROUP - 1) // GROUP, (source, b_row, b_col, min(full, k - p), columns, target))


@inline
def _prefetch_rows(c, c_row, rows):
    for r in range(rows):  # c comes from far, and its rows are pages apart: ask now, add when the sums are done
        prefetch(c, r * c_row)


# Rows of b in one pass. Each is a stream of its own, from pages of its own: more of them than the core follows at once
# (prefetchers, first-level TLB) cost more than going over c again. Many rows of c find a longer pass in L2.
FEW_STREAMS, MANY_STREAMS = 16, 64
FEWEST_STREAMS = 8  # where rows lie a power of two apart, in the same few sets of the caches
BLOCK = 8  # vectors of columns that all rows of c pass before the next ones

# One row of a takes b's as they flow from memory, in two streams: a core of Zen 5 reads 124 GB/s from L3 in two, asked for ahead,
# and 100 in four (two cores: 245 and 170).
_DOTS_AHEAD = 2048  # bytes
_dot_43, _dot_41 = dot_tile(4, 3), dot_tile(4, 1)
_dot_12, _dot_11 = dot_tile(1, 2, unroll=4, ahead=_DOTS_AHEAD), dot_tile(1, 1, unroll=4, ahead=_DOTS_AHEAD)


def products(finish, is_simple, store_finished):
    """``(packed, few, row, direct, dots)`` whose last step on a part of c is ``finish(part, c_row, rows, columns, row, column, x, y, z)``.

    row, column: where the part begins in c. x, y, z: what the caller handed on: a pointer, an integer and a number; the step is
    left out where y is 0. Where ``is_simple(y)``, ``store_finished(sums, part, c_row, row, column, x, y, z)`` stores a whole tile and
    takes the last step with it.
    """

    @always_inline
    def put(sums, part, c_row, rows, columns, add, finished, row, column, x, y, z):
        if finished and rows >= MR:
            store_finished(sums, part, c_row, row, column, x, y, z)
        else:
            _store(sums, part, c_row, rows, columns, add)

    @inline
    def rows_chunk(
        slot, chunk, row_chunks, column_chunks, a, a_row, a_col, panels, c, c_row, m, n, k, add, last, stream, scratch, space, column,
        x, y, z
    ):
        """A block of c's rows against a range of panels. stream: whether these come from memory, one behind the other."""
        width = TILE_VECTORS * lanes(panels)
        part, across = chunk // column_chunks, chunk % column_chunks
        tiles, count_panels = (m + MR - 1) // MR, (n + width - 1) // width
        first = part * tiles // row_chunks * MR
        count = min(m, (part + 1) * tiles // row_chunks * MR) - first
        from_panel, to_panel = across * count_panels // column_chunks, (across + 1) * count_panels // column_chunks
        block = offset(a, first * a_row)
        target = offset(c, first * c_row)
        mine = offset(scratch, slot * space)
        whole, middle, height = _tiles(count)
        if stream and count == MR:
            whole, height = 0, MR
        # what a tile reads in place: contiguous rows, unless enough panels pass them to pay for a better place
        in_place = whole if IN_PLACE and a_col == 1 and to_panel - from_panel < 8 else 0
        pack_rows(offset(block, in_place * a_row), a_row, a_col, whole - in_place, k, MR, mine)
        behind = offset(mine, (whole - in_place) * k)
        _pack_last(block, a_row, a_col, count, k, whole, middle, height, behind)
        for q in range(from_panel, to_panel):
            j = q * width
            panel = offset(panels, j * k)
            following = offset(panel, width * k)
            finished = last and not add and is_simple(y) and n - j >= width
            for i in range(0, in_place, MR):
                there = offset(target, i * c_row + j)
                _prefetch_rows(there, c_row, MR)
                sums = _tile(k, offset(block, i * a_row), a_row, 1, panel, width, part_ahead(following, i, k))
                put(sums, there, c_row, MR, n - j, add, finished, first + i, column + j, x, y, z)
            for i in range(in_place, whole, MR):
                there = offset(target, i * c_row + j)
                _prefetch_rows(there, c_row, MR)
                sums = _tile(k, offset(mine, (i - in_place) * k), 1, MR, panel, width, part_ahead(following, i, k))
                put(sums, there, c_row, MR, n - j, add, finished, first + i, column + j, x, y, z)
            _last_tiles(k, behind, height, panel, width, following, offset(target, j), c_row, whole, middle, count, n - j, add, stream)
            done = whole if finished else 0
            if last and y and done < count:
                there = offset(target, done * c_row + j)
                finish(there, c_row, count - done, min(width, n - j), first + done, column + j, x, y, z)

    @inline
    def passes_chunk(
        slot, chunk, row_chunks, column_chunks, a, a_row, a_col, panels, c, c_row, m, n, k, full, add, last, stream, scratch, space, column,
        x, y, z
    ):
        """rows_chunk for ``full`` of k after ``full``, whose panels lie one after the other."""
        width = TILE_VECTORS * lanes(panels)
        columns = (n + width - 1) // width * width
        for p in range(0, max(k, 1), full):
            rows_chunk(slot, chunk, row_chunks, column_chunks, offset(a, p * a_col), a_row, a_col, offset(panels, p * columns), c, c_row,
                       m, n, min(full, k - p), add or p > 0, last and p + full >= k, stream, scratch, space, column, x, y, z)

    @inline
    def packed(pool, slots, a, a_row, a_col, b, b_row, b_col, c, c_row, m, n, k, ready, scratch, x, y, z):
        """ready: b is pack_all's result. scratch: scratch_elements(n, k, slots, lanes, ready) elements."""
        if m == 0 or n == 0:
            return
        width = TILE_VECTORS * lanes(b)
        full = _depth(k)
        space = scratch if ready else offset(scratch, full * ((min(n, NC) + width - 1) // width * width))
        tiles = (m + MR - 1) // MR
        row_chunks = (tiles * MR + MC - 1) // MC
        block = _columns(n, width)
        for j in range(0, n, block):
            columns = min(block, n - j)
            count = (columns + width - 1) // width
            # chunks enough for threads to end together; each copies its rows of a, which takes a few panels to pay
            column_chunks = 1
            if pool != 0 and ready and row_chunks < 8 * slots:
                # as many ranges of panels as threads, which go through them by turns: so most of a range stays in the L2 of one
                column_chunks = max(1, min(count if row_chunks == 1 else count // 4, slots))
            elif pool != 0 and row_chunks < 8 * slots:
                column_chunks = max(1, min(count // 4, (8 * slots + row_chunks - 1) // row_chunks))
            # panels that are ready wait for nobody; more chunks of rows would read all of them again, these while they are in cache
            step = max(1, k) if ready and row_chunks == 1 else full
            for p in range(0, max(k, 1), step):
                panels = offset(b, j * k + p * count * width) if ready else scratch
                if not ready:
                    source = offset(b, p * b_row + j * b_col)
                    parallel_for(pool, _pack_chunk, (count + GROUP - 1) // GROUP,
                                 (source, b_row, b_col, min(full, k - p), columns, scratch))
                parallel_for(
                    pool,
                    passes_chunk,
                    row_chunks * column_chunks,
                    (row_chunks, column_chunks, offset(a, p * a_col), a_row, a_col, panels, offset(c, j), c_row, m, columns,
                     min(step, k - p), full, p > 0, p + step >= k, ready, space, MC * full + 2 * lanes(b), j, x, y, z),
                )

    @inline
    def few_chunk(slot, chunk, columns, a, a_row, a_col, b, b_row, b_col, c, c_row, m, n, k, scratch, space, x, y, z):
        """All rows of c for one range of columns; panels of b are copied to L2 just before all rows pass them."""
        width = TILE_VECTORS * lanes(b)
        first = chunk * columns
        last = min(n, first + columns)
        full = _depth(k)
        panels = offset(scratch, slot * space)
        rows = offset(panels, GROUP * width * full)
        whole, middle, height = _tiles(m)
        for p in range(0, max(k, 1), full):
            depth = min(full, k - p)
            source, behind = offset(a, p * a_col), offset(rows, whole * depth)
            pack_rows(source, a_row, a_col, whole, depth, MR, rows)
            _pack_last(source, a_row, a_col, m, depth, whole, middle, height, behind)
            for group in range(first, last, GROUP * width):
                end = min(last, group + GROUP * width)
                pack_panels(offset(b, p * b_row + group * b_col), b_row, b_col, depth, end - group, panels)
                for j in range(group, end, width):
                    panel = offset(panels, (j - group) * depth)
                    following = offset(panel, depth * width)
                    finished = p + full >= k and p == 0 and is_simple(y) and last - j >= width
                    for i in range(0, whole, MR):
                        sums = _tile(depth, offset(rows, i * depth), 1, MR, panel, width, part_ahead(following, i, depth))
                        put(sums, offset(c, i * c_row + j), c_row, MR, last - j, p > 0, finished, i, j, x, y, z)
                    _last_tiles(depth, behind, height, panel, width, following, offset(c, j), c_row, whole, middle, m, last - j, p > 0,
                                False)
                    done = whole if finished else 0
                    if p + full >= k and is_simple(y) and done < m:
                        finish(offset(c, done * c_row + j), c_row, m - done, min(width, last - j), done, j, x, y, z)
        if y and not is_simple(y):
            finish(offset(c, first), c_row, m, last - first, 0, first, x, y, z)

    @inline
    def few(pool, slots, a, a_row, a_col, b, b_row, b_col, c, c_row, m, n, k, scratch, space, x, y, z):
        """scratch: ``space`` elements a thread, few_elements(m, k, lanes)."""
        wide = TILE_VECTORS * lanes(b)
        # each chunk packs all of a: two of them for each thread
        width = max(wide, (n + 2 * slots - 1) // (2 * slots) // wide * wide) if pool != 0 else n
        if n > 0:
            parallel_for(pool, few_chunk, (n + width - 1) // width,
                         (width, a, a_row, a_col, b, b_row, b_col, c, c_row, m, n, k, scratch, space, x, y, z))

    @inline
    def row_chunk(slot, chunk, parts, a, a_col, b, b_row, n, k, sums):
        first, last = chunk * k // parts, (chunk + 1) * k // parts
        target, block = offset(sums, chunk * n), ROW_BLOCK * lanes(b)
        for j in range(0, n, block):
            row_times(offset(a, first * a_col), a_col, offset(b, first * b_row), b_row, target, j, min(n, j + block), last - first)

    @inline
    def row(pool, a, a_col, b, b_row, c, n, k, parts, sums, x, y, z):
        """One row of c; b's columns must be contiguous (b_col == 1). parts: row_parts'. sums: parts * n elements."""
        V = lanes(b)
        parallel_for(pool, row_chunk, parts, (parts, a, a_col, b, b_row, n, k, sums))
        for j in range(0, n, V):
            v = load_n(sums, j, n - j)
            for part in range(1, parts):
                v = v + load_n(sums, part * n + j, n - j)
            store_n(c, j, v, n - j)
        if y:
            finish(c, n, 1, n, 0, 0, x, y, z)

    @inline
    def direct_chunk(slot, chunk, width, a, a_row, a_col, b, b_row, c, c_row, m, n, k, x, y, z):
        """All rows of c for one range of columns."""
        first = chunk * width
        last = min(n, first + width)
        streams = max(k, 1)
        if k * n > 1 << 13:  # not of this chunk: what is summed first must not depend on the number of threads
            streams = FEW_STREAMS if m < MR else MANY_STREAMS
            if b_row % (64 * lanes(b)) == 0:
                streams = FEWEST_STREAMS
        for p in range(0, max(k, 1), streams):
            depth = min(streams, k - p)
            left, right = offset(a, p * a_col), offset(b, p * b_row)
            for j in range(first, last, BLOCK * lanes(b)):
                end = min(last, j + BLOCK * lanes(b))
                i = 0
                while i + MR <= m:
                    many_rows(depth, offset(left, i * a_row), a_row, a_col, right, b_row, offset(c, i * c_row), c_row, j, end, p > 0)
                    i += MR
                while i + 4 <= m:
                    four_rows(depth, offset(left, i * a_row), a_row, a_col, right, b_row, offset(c, i * c_row), c_row, j, end, p > 0)
                    i += 4
                while i < m:
                    one_row(depth, offset(left, i * a_row), a_row, a_col, right, b_row, offset(c, i * c_row), c_row, j, end, p > 0)
                    i += 1
        if y:
            finish(offset(c, first), c_row, m, last - first, 0, first, x, y, z)

    @inline
    def direct(pool, slots, a, a_row, a_col, b, b_row, c, c_row, m, n, k, x, y, z):
        """b's columns must be contiguous (b_col == 1)."""
        wide = TILE_VECTORS * lanes(b)
        width = max(wide, (n + 2 * slots - 1) // (2 * slots) // wide * wide) if pool != 0 else n
        if n > 0:
            parallel_for(pool, direct_chunk, (n + width - 1) // width, (width, a, a_row, a_col, b, b_row, c, c_row, m, n, k, x, y, z))

    @inline
    def dots_chunk(slot, chunk, width, a, a_row, b, b_col, c, c_row, m, n, k, x, y, z):
        first = chunk * width
        last = min(n, first + width)
        many = m - m % 4
        j = first
        while j + 3 <= last:
            for i in range(0, many, 4):
                sums = _dot_43(k, offset(a, i * a_row), a_row, offset(b, j * b_col), b_col)
                store_scalars(sums, offset(c, i * c_row + j), c_row, 1, 3, False)
            j += 3
        while j < last:
            for i in range(0, many, 4):
                sums = _dot_41(k, offset(a, i * a_row), a_row, offset(b, j * b_col), b_col)
                store_scalars(sums, offset(c, i * c_row + j), c_row, 1, 1, False)
            j += 1
        half = (last - first) // 2
        for i in range(many, m):
            row, there = offset(a, i * a_row), offset(c, i * c_row)
            for j in range(first, first + half):
                store_scalars(_dot_12(k, row, 0, offset(b, j * b_col), half * b_col), offset(there, j), c_row, half, 2, False)
            if first + 2 * half < last:
                store_scalars(_dot_11(k, row, 0, offset(b, (last - 1) * b_col), 0), offset(there, last - 1), c_row, 1, 1, False)
        if y:
            finish(offset(c, first), c_row, m, last - first, 0, first, x, y, z)

    @inline
    def dots(pool, slots, a, a_row, b, b_col, c, c_row, m, n, k, x, y, z):
        """a's and b's k must be contiguous (a_col == 1, b_row == 1)."""
        width = max(12, ((n + 4 * slots - 1) // (4 * slots) + 11) // 12 * 12) if pool != 0 else n
        if n > 0:
            parallel_for(pool, dots_chunk, (n + width - 1) // width, (width, a, a_row, b, b_col, c, c_row, m, n, k, x, y, z))

    return packed, few, row, direct, dots
