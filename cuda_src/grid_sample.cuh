// The samples of `grid_sample`: which pixels an item has, where its grid looks, and where the next ones will.
#include "core.cuh"
#include "interpolate.cuh"
#include "samples.cuh"

struct GridSampleParams {
    const scalar_t* input;        // any strides
    const coord_t* grid;          // (N, L, NDIM), contiguous, x first
    scalar_t* output;             // forward: written
    const scalar_t* grad_output;  // backward: read; strides as output's
    sum_t* grad_input;            // backward: added to, on a host zeroed first; null: not needed
    coord_t* grad_grid;           // backward: written, (N, L, NDIM); null: not needed
    const sum_t* anchors;         // of ROUNDED sums
    long long items;              // work items: channel blocks * slabs * batch * tiles
    long long batch;
    long long channels;
    long long channel_block;  // channels of one item
    long long slabs;          // of the input's slowest dimension, to which different items add; 1 unless SLABS
    long long pixels;         // L
    long long align_corners;
    long long looks_ahead;                    // whether a host asks for what tiles will read or add to
    long long next_lines;                     // of the cache, in the next image, that a host asks for at each tile
    long long size[3];                        // of input, slowest dimension first
    long long input_stride[5];                // batch, channel, dimensions
    long long output_stride[3];               // batch, channel, pixel
    long long grad_stride[5];                 // of grad_input
    long long inverse_pixels, inverse_batch;  // what `take_digit` wants
};

struct Item {
    index_t n, first, channel, channel_end;
    index_t low, high;  // of the slowest dimension
    int count;          // pixels of the tile that exist
};

DEVICE Item item_of(const GridSampleParams& p, index_t item) {
    const index_t tiles = ((index_t)p.pixels + TILE - 1) / TILE;
    index_t block = item;
    Item it;
    it.first = take_digit(block, tiles, p.inverse_pixels) * TILE;
    it.n = take_digit(block, (index_t)p.batch, p.inverse_batch);
    const index_t slab = SLABS ? take_digit(block, (index_t)p.slabs) : 0;
    it.low = SLABS ? (index_t)(slab * p.size[0] / p.slabs) : 0;
    it.high = SLABS ? (index_t)((slab + 1) * p.size[0] / p.slabs) : (index_t)p.size[0];
    it.channel = block * (index_t)p.channel_block;
    it.channel_end = smaller(it.channel + (index_t)p.channel_block, (index_t)p.channels);
    it.count = TILE == 1 ? 1 : (int)smaller(index_t(TILE), (index_t)p.pixels - it.first);
    return it;
}

// A place in grad_input, to be added to.
DEVICE Sums sums_in(const GridSampleParams& p, sum_t* at) { return sums_at(at, p.anchors, p.batch * p.grad_stride[0]); }

// The first item of those that add to one target zeroes it.
DEVICE void clear_target(const GridSampleParams& p, const Item& it) {
    if (!CLEARS || !p.grad_input || it.first != 0) return;
    index_t pixels = it.high - it.low;
    UNROLL for (int d = 1; d < NDIM; ++d) pixels *= (index_t)p.size[d];
    clear(p.grad_input + it.n * (index_t)p.grad_stride[0] + it.low * (index_t)p.grad_stride[2],
          (index_t)p.grad_stride[1], (index_t)p.grad_stride[1 + NDIM], it.channel, it.channel_end, pixels);
}

// d(pixel coordinate) / d(grid coordinate): unnormalised = (grid + 1) * scale - shift.
DEVICE acc_t grid_scale(const GridSampleParams& p, int d) {
    return (acc_t(p.size[d]) - (p.align_corners ? acc_t(1) : acc_t(0))) / 2;
}

DEVICE acc_t grid_shift(const GridSampleParams& p) { return p.align_corners ? acc_t(0) : acc_t(0.5); }

// Where the grid has a pixel of image n.
DEVICE const coord_t* grid_at(const GridSampleParams& p, index_t n, index_t pixel) {
    return p.grid + (n * (index_t)p.pixels + pixel) * NDIM;
}

// The tile's coordinates as the grid has them, slowest dimension first.
DEVICE void load_coordinates(const coord_t* grid, int count, acc_t coordinate[][TILE]) {
    if (count == TILE) {
        SIMD for (int j = 0; j < TILE; ++j) {
            UNROLL for (int d = 0; d < NDIM; ++d) coordinate[d][j] = widen(grid[j * NDIM + NDIM - 1 - d]);
        }
    } else {
        for (int j = 0; j < TILE; ++j) {  // samples that do not exist look outside
            UNROLL for (int d = 0; d < NDIM; ++d) {
                coordinate[d][j] = j < count ? widen(grid[j * NDIM + NDIM - 1 - d]) : acc_t(-4);
            }
        }
    }
}

// Whether some coordinate, in pixels, may have taps in the item's slab.
DEVICE bool near_slab(const acc_t* coordinate, const Item& it) {
    const acc_t low = acc_t(it.low - TAPS), high = acc_t(it.high + TAPS);
    int near = 0;
    SIMD for (int j = 0; j < TILE; ++j) near |= (coordinate[j] > low) & (coordinate[j] < high);
    return near;
}

// Leave out the taps of other slabs, which go to the first row of this one; false where none is left.
DEVICE bool keep_slab(Axis& axis, const Item& it, index_t step) {
    const index_t low = it.low * step, high = it.high * step;
    int any = 0;
    UNROLL for (int t = 0; t < TAPS; ++t) {
        SIMD for (int j = 0; j < TILE; ++j) {
            const index_t at = axis.at[t][j];
            const int here = axis.inside[t][j] & (at >= low) & (at < high);
            axis.at[t][j] = here ? at : low;
            axis.inside[t][j] = here;
            any |= here;
        }
    }
    if (WEIGHED) {
        SIMD for (int j = 0; j < TILE; ++j) weigh_inside(axis, j);
    }
    return any;
}

DEVICE acc_t in_pixels(acc_t coordinate, acc_t scale, acc_t shift) {
    // Infinity times the scale of a single pixel, 0, would be a NaN.
    const acc_t far = acc_t(1e30), finite = PADDING == ZEROS ? coordinate : smaller(larger(coordinate, -far), far);
    return fused(finite + 1, scale, -shift);
}

// How far an image's elements are from each other, where rows of taps are one load if WINDOW says so.
DEVICE index_t step_along(const long long* stride, int d) {
    return d < NDIM - 1 || !WINDOW ? (index_t)stride[d] : WINDOW == 2 ? GROUP : 1;
}

// `plan` for nearest samples. Those outside are looked for at the slab's first pixel.
DEVICE bool plan_single(const GridSampleParams& p, const long long* stride, const Item& it, Samples& s) {
    acc_t coordinate[NDIM][TILE];
    load_coordinates(grid_at(p, it.n, it.first), it.count, coordinate);
    Axis& x = s.axis[NDIM - 1];
    int any = 0, all = 1;
    SIMD for (int j = 0; j < TILE; ++j) {
        uindex_t at = 0;
        int inside = 1;
        UNROLL for (int d = 0; d < NDIM; ++d) {
            const acc_t pixel = in_pixels(coordinate[d][j], grid_scale(p, d), grid_shift(p));
            const acc_t near = confine(pixel, (index_t)p.size[d], p.align_corners).x;
            const index_t low = d == 0 ? it.low : 0, high = d == 0 ? it.high : (index_t)p.size[d];
            const index_t index = (index_t)round_even(near) - low;
            inside &= int((uindex_t)index < (uindex_t)(high - low)) & (PADDING == ZEROS ? 1 : int(pixel == pixel));
            at += (uindex_t)index * (uindex_t)step_along(stride, d);  // may overflow outside
        }
        x.at[0][j] = (index_t)(at & -(uindex_t)inside) + it.low * step_along(stride, 0);
        x.inside[0][j] = inside;
        any |= inside;
        all &= inside;
    }
    s.whole = all;
    return !SLABS || any;
}

// Look for the tile's taps in dimension d. Most tiles lie in the interior of an image, where no tap needs a padding:
// those are spared it.
DEVICE void locate_tile(const GridSampleParams& p, int d, const acc_t* coordinate, bool interior, index_t step,
                        Axis& axis) {
    const index_t size = (index_t)p.size[d];
    const bool align_corners = p.align_corners;
    if (TILE > 1 && interior) {
        SIMD for (int j = 0; j < TILE; ++j) locate_interior(axis, j, coordinate[j], step);
    } else if (TILE > 1 && MODE == LINEAR) {
        SIMD for (int j = 0; j < TILE; ++j) locate_linear(axis, j, coordinate[j], size, step, align_corners);
    } else if (WINDOW && d == NDIM - 1 && MODE == CUBIC && PADDING == ZEROS) {
        SIMD for (int j = 0; j < TILE; ++j) locate_cubic(axis, j, coordinate[j], size, step);
    } else {
        SIMD for (int j = 0; j < TILE; ++j) {
            locate(axis, j, coordinate[j], size, step, align_corners);
            if (WEIGHED) weigh_inside(axis, j);
        }
        if (WINDOW && d == NDIM - 1) {
            SIMD for (int j = 0; j < TILE; ++j) make_window(axis, j, size, step);
        }
    }
}

// False where none of the item's slab is among the taps.
DEVICE bool plan(const GridSampleParams& p, const long long* stride, const Item& it, Samples& s) {
    if constexpr (SINGLE) return plan_single(p, stride, it, s);
    acc_t coordinate[NDIM][TILE];
    load_coordinates(grid_at(p, it.n, it.first), it.count, coordinate);
    const acc_t shift = grid_shift(p);
    int interior[NDIM], whole = 1;
    UNROLL for (int d = 0; d < NDIM; ++d) {
        int all = 1;
        const acc_t scale = grid_scale(p, d);
        SIMD for (int j = 0; j < TILE; ++j) {
            coordinate[d][j] = in_pixels(coordinate[d][j], scale, shift);
            all &= is_interior(coordinate[d][j], (index_t)p.size[d]);
        }
        interior[d] = all;
        whole &= all;
        if (SLABS && PADDING == ZEROS && d == 0 && !near_slab(coordinate[0], it)) return false;
    }
    UNROLL for (int d = 0; d < NDIM; ++d) {
        const index_t step = step_along(stride, d);
        locate_tile(p, d, coordinate[d], interior[d], step, s.axis[d]);
        if (SLABS && d == 0 && !keep_slab(s.axis[0], it, step)) return false;
    }
    make_rows(s);
    // Linear and cubic samples outside the interior have taps where zeros are.
    constexpr bool EXACT = PADDING == ZEROS && MODE != NEAREST && !SLABS;
    s.whole = (whole && !SLABS) || (!EXACT && all_inside(s));
    return true;
}

// Of the coordinates in pixels, to where the gradients by the grid are wanted.
DEVICE void store_grid_gradient(const GridSampleParams& p, const Item& it, const acc_t grad[][TILE]) {
    coord_t* out = p.grad_grid + (it.n * (index_t)p.pixels + it.first) * NDIM;
    acc_t scale[NDIM];
    UNROLL for (int d = 0; d < NDIM; ++d) scale[d] = grid_scale(p, d);
    if (it.count == TILE) {
        prefetch_line<TILE * NDIM>(out + TILE * NDIM);
        SIMD for (int j = 0; j < TILE; ++j) {
            UNROLL for (int d = 0; d < NDIM; ++d) narrow(grad[d][j] * scale[d], out[j * NDIM + NDIM - 1 - d]);
        }
    } else {
        for (int j = 0; j < it.count; ++j) {
            UNROLL for (int d = 0; d < NDIM; ++d) narrow(grad[d][j] * scale[d], out[j * NDIM + NDIM - 1 - d]);
        }
    }
}

// The rows of a turned grid are too far apart for the hardware to guess, so what samples will read or add to is asked
// for before. Most of it has been read by the line of samples before. What is new is the last row of taps where an
// image is gone through downwards (the first where upwards), and of that row one end: which one, the direction tells in
// which the samples of a tile leave their rows.
struct Frontier {
    bool last[NDIM];  // whether a dimension's last taps are new, or its first ones
};

// Of `count` samples of image n, from `first` on.
DEVICE Frontier frontier_of(const GridSampleParams& p, index_t n, index_t first, int count) {
    const coord_t *begin = grid_at(p, n, 0), *end = grid_at(p, n, (index_t)p.pixels - 1), *grid = grid_at(p, n, first);
    Frontier frontier;
    acc_t leaving = NDIM == 1 ? -1 : 0;  // the direction in which samples leave their rows, against that of the lines
    UNROLL for (int d = 0; d < NDIM; ++d) {
        const int e = NDIM - 1 - d;
        const acc_t along = widen(grid[(count - 1) * NDIM + e]) - widen(grid[e]);
        frontier.last[d] = d < NDIM - 1 ? widen(end[e]) > widen(begin[e]) : leaving * along <= 0;
        if (leaving == 0) leaving = frontier.last[d] ? along : -along;
    }
    return frontier;
}

// Where planar tiles will look, TILES_AHEAD tiles before, for every FETCH_STRIDE-th sample, as neighbours mostly share
// lines of the cache. FETCH_MARGIN pixels beyond the end of a row that is new are new to the next samples and lines.
constexpr int TILES_AHEAD = 2, FETCH_STRIDE = TILE > 1 ? 2 : 1;
constexpr acc_t FETCH_MARGIN = WINDOW == 2 ? 2 : 4;
constexpr acc_t FIRST_TAP = MODE == CUBIC ? acc_t(-1) : acc_t(0), LAST_TAP = acc_t(TAPS / 2);

// Fill in the offsets for `fetch`, and ask for the grid that comes next; false where the image ends before, or is not
// worth it. Offsets of all samples take fewer instructions than those of every FETCH_STRIDE-th alone.
DEVICE bool look_ahead(const GridSampleParams& p, const long long* stride, const Item& it, index_t* at) {
    const index_t pixels = (index_t)p.pixels, first = it.first + TILES_AHEAD * TILE;
    if (TILE == 1 || !p.looks_ahead || first + TILE > pixels) return false;
    const coord_t* grid = grid_at(p, it.n, first);
    prefetch_line<TILE * NDIM>(grid + 2 * TILE * NDIM);
    const Frontier frontier = frontier_of(p, it.n, first, TILE);
    const acc_t shift = grid_shift(p);
    SIMD for (int j = 0; j < TILE; ++j) at[j] = 0;
    UNROLL for (int d = 0; d < NDIM; ++d) {
        const acc_t scale = grid_scale(p, d), end = acc_t(p.size[d] - 1);
        const acc_t margin = d < NDIM - 1 ? acc_t(0) : FETCH_MARGIN;
        const acc_t tap = (frontier.last[d] ? LAST_TAP + margin : FIRST_TAP - margin) - shift;
        const index_t step = (index_t)stride[d];
        SIMD for (int j = 0; j < TILE; ++j) {
            const acc_t x = fused(widen(grid[j * NDIM + NDIM - 1 - d]) + 1, scale, tap);
            at[j] += (index_t)clip(x, 0, end).x * step;
        }
    }
    return true;
}

// A line of the cache in image n.
DEVICE const char* line_of(const GridSampleParams& p, index_t n, index_t line) {
    return (const char*)(p.input + n * (index_t)p.input_stride[0]) + 64 * line;
}

// Ask for a tile's part of the next image: together they ask for all of it.
DEVICE void fetch_next(const GridSampleParams& p, const Item& it) {
    const index_t lines = TILE > 1 && it.n + 1 < p.batch ? (index_t)p.next_lines : 0, first = it.first / TILE * lines;
    for (index_t i = first; i < first + lines; ++i) PREFETCH_FAR(line_of(p, it.n + 1, i));
}

// Ask for `size` channels of the new tap of a sample that comes soon after number j of `count`, where channels lie next
// to each other. A cubic one takes so long that the hardware is there before.
constexpr int SAMPLES_AHEAD = 12;
template <int size, typename T>
DEVICE void fetch_soon(const Samples& s, const Frontier& frontier, int j, int count, T* image) {
    if (TILE == 1 || MODE == CUBIC) return;
    const int k = smaller(j + SAMPLES_AHEAD, count - 1);
    index_t at = 0;
    UNROLL for (int d = FIRST_AXIS; d < NDIM; ++d) at += s.axis[d].at[frontier.last[d] ? TAPS - 1 : 0][k];
    UNROLL for (int c = 0; c < size; c += 64 / (int)sizeof(T)) PREFETCH(image + at + c);
}
