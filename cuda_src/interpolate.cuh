// How to look: the taps of one coordinate, their weights and slopes, for every mode and padding. Written once; an
// operator makes coordinates, calls `locate` for each dimension, and combines the products of the dimensions' weights:
//
//     value = sum over taps t of  w_1(t_1) ... w_n(t_n)  input[at_1(t_1) + ... + at_n(t_n)]
//
// The slope is dw/dx at the sample, so the gradient by one coordinate replaces that dimension's weight by its slope,
// and the adjoint scatters the same products. At an integer `floor` picks the cell, hence the right-hand slope.
//
// Specialised by MODE and PADDING; everything is kept for TILE samples at a time, so that a host compiler vectorises
// over samples (TILE is 1 on a GPU, where the arrays become registers).

#ifndef DUAL
#define DUAL 0  // whether what is sampled has a direction (duals.cuh)
#endif

enum Mode { NEAREST, LINEAR, CUBIC };
enum Padding { ZEROS, BORDER, REFLECTION };

constexpr int TAPS = MODE == NEAREST ? 1 : MODE == LINEAR ? 2 : 4;

// One dimension of the tile's samples.
struct Axis {
    index_t at[TAPS][TILE];    // offset of each tap, in elements; always inside the array, even where `inside` is 0
    acc_t weight[TAPS][TILE];  // w(x - tap)
    acc_t slope[TAPS][TILE];   // dw/dx, times what the padding does to the coordinate (0 where clipped, -1 reflected)
    int inside[TAPS][TILE];    // 0: the tap counts as zero and must not be read
#if DUAL
    acc_t curvature[TAPS][TILE];  // the slope's own slope
#endif
};

// A coordinate after its padding, and its derivative by the coordinate before.
struct Mapped {
    acc_t x, slope;
};

// A NaN goes to `low`. Products rather than && in here and below: compilers vectorise them.
DEVICE Mapped clip(acc_t x, acc_t low, acc_t high) {
    const acc_t above = x > low ? acc_t(1) : acc_t(0), below = x < high ? acc_t(1) : acc_t(0);
    return {smaller(high, larger(low, x)), above * below};
}

// Fold x into [0, size - 1]: about the centres of the outer pixels (align_corners) or about their outer edges, then
// clip. The slope is +-1 by the parity of the reflections, 0 where clipped.
DEVICE Mapped reflect(acc_t x, index_t size, bool align_corners) {
    const acc_t low = align_corners ? acc_t(0) : acc_t(-0.5);
    const acc_t span = acc_t(size) - (align_corners ? acc_t(1) : acc_t(0));
    const acc_t period = 2 * span;
    const acc_t distance = x < low ? low - x : x - low;
    // x - period * floor(x / period), twice: the first quotient is inexact when it has more digits than the mantissa.
    acc_t rest = fused(-period, round_down(distance / period), distance);
    rest = fused(-period, round_down(rest / period), rest);
    const acc_t back = rest >= span ? acc_t(-1) : acc_t(1);
    const acc_t folded = low + (rest >= span ? period - rest : rest);
    const Mapped clipped = clip(folded, acc_t(0), acc_t(size - 1));
    return {size == 1 ? acc_t(0) : clipped.x, clipped.slope * back * (x < low ? acc_t(-1) : acc_t(1))};
}

// Keys' cubic convolution kernel with A = -0.75 at the distance 0 <= d <= 1 (inner taps) or 1 <= d <= 2 (outer taps),
// and its derivatives.
constexpr acc_t A = acc_t(-0.75);
DEVICE acc_t cubic_inner(acc_t d) { return ((A + 2) * d - (A + 3)) * d * d + 1; }
DEVICE acc_t cubic_outer(acc_t d) { return ((A * d - 5 * A) * d + 8 * A) * d - 4 * A; }
DEVICE acc_t cubic_inner_slope(acc_t d) { return (3 * (A + 2) * d - 2 * (A + 3)) * d; }
DEVICE acc_t cubic_outer_slope(acc_t d) { return (3 * A * d - 10 * A) * d + 8 * A; }
DEVICE acc_t cubic_inner_curvature(acc_t d) { return 6 * (A + 2) * d - 2 * (A + 3); }
DEVICE acc_t cubic_outer_curvature(acc_t d) { return 6 * A * d - 10 * A; }

// Weight and slope of tap t of a sample that lies f past its cell.
DEVICE acc_t tap_weight(int t, acc_t f) {
    if (MODE == NEAREST) return 1;
    if (MODE == LINEAR) return t == 0 ? 1 - f : f;
    return t == 0 ? cubic_outer(f + 1) : t == 1 ? cubic_inner(f) : t == 2 ? cubic_inner(1 - f) : cubic_outer(2 - f);
}
DEVICE acc_t tap_slope(int t, acc_t f) {
    if (MODE == NEAREST) return 0;
    if (MODE == LINEAR) return t == 0 ? acc_t(-1) : acc_t(1);
    return t == 0   ? cubic_outer_slope(f + 1)
           : t == 1 ? cubic_inner_slope(f)
           : t == 2 ? -cubic_inner_slope(1 - f)
                    : -cubic_outer_slope(2 - f);
}
DEVICE acc_t tap_curvature(int t, acc_t f) {
    if (MODE != CUBIC) return 0;
    return t == 0   ? cubic_outer_curvature(f + 1)
           : t == 1 ? cubic_inner_curvature(f)
           : t == 2 ? cubic_inner_curvature(1 - f)
                    : cubic_outer_curvature(2 - f);
}

// Where a coordinate in pixels ends up before its taps are taken. What is returned converts to an index without
// overflow, whatever came.
DEVICE Mapped confine(acc_t x, index_t size, bool align_corners) {
    const acc_t last = acc_t(size - 1), limit = sizeof(index_t) == 8 ? acc_t(0x1p62) : acc_t(0x1p31);
    if (PADDING == REFLECTION) {
        const Mapped near = clip(x, -limit, limit);  // slope 0: too far, infinite or NaN
        const acc_t finite = near.slope == 0 ? acc_t(0) : x;
        const Mapped folded = MODE == CUBIC ? Mapped{finite, 1} : reflect(finite, size, align_corners);
        const acc_t edge = x > 0 ? last : acc_t(0);
        return {near.slope == 0 ? edge : folded.x, near.slope * folded.slope};
    }
    if (PADDING == BORDER && MODE != CUBIC) return clip(x, 0, last);
    return clip(x, -4, acc_t(size) + 3);  // at these bounds every tap of a zero-padded or cubic sample is outside
}

// Fill row j of `axis` for the coordinate x (in pixels) along a dimension of `size` elements, `stride` apart.
DEVICE void locate(Axis& axis, int j, acc_t x, index_t size, index_t stride, bool align_corners) {
    const Mapped centre = confine(x, size, align_corners);
    const acc_t cell = MODE == NEAREST ? round_even(centre.x) : round_down(centre.x);
    const acc_t f = centre.x - cell;
    const index_t last = size - 1;
    UNROLL for (int t = 0; t < TAPS; ++t) {
        const int shift = MODE == CUBIC ? t - 1 : t;
        const bool fold = MODE == CUBIC && PADDING == REFLECTION;  // each tap on its own
        const index_t index =
            fold ? (index_t)reflect(cell + acc_t(shift), size, align_corners).x : (index_t)cell + shift;
        // Linear taps may stick out by one even after the padding; cubic ones are clipped to the border.
        const bool clipped = PADDING != ZEROS && MODE == CUBIC;
        const int within = clipped ? 1 : (uindex_t)index <= (uindex_t)last;
        const int known = x == x;
        axis.at[t][j] = larger(index_t(0), smaller(index, last)) * stride;
        axis.weight[t][j] = tap_weight(t, f);
        axis.slope[t][j] = tap_slope(t, f) * centre.slope;
        axis.inside[t][j] = within & known;
#if DUAL
        axis.curvature[t][j] = tap_curvature(t, f) * centre.slope * centre.slope;
#endif
    }
}

// More than whole numbers and sizes together: a sample that lies so far from one is outside.
constexpr acc_t FAR = sizeof(index_t) == 8 ? acc_t(0x1p61) : acc_t(0x1p30);

// `locate` for the coordinate whole + delta of a linear sample with zeros outside: as one float32 number, the sum would
// lose digits of delta.
DEVICE void locate_beside(Axis& axis, int j, index_t whole, acc_t delta, index_t size, index_t stride) {
    const int low = delta > -FAR, high = delta < FAR, known = low & high;
    const acc_t x = smaller(FAR, larger(-FAR, delta)), below = round_down(x), rest = x - below;
    const acc_t next = rest < 1 ? acc_t(0) : acc_t(1);  // where it is rounded up: the next cell begins
    const acc_t f = rest - next;
    const index_t cell = whole + (index_t)(below + next), last = size - 1;
    UNROLL for (int t = 0; t < TAPS; ++t) {
        const int within = (uindex_t)(cell + t) <= (uindex_t)last;
        axis.at[t][j] = larger(index_t(0), smaller(cell + t, last)) * stride;
        axis.weight[t][j] = tap_weight(t, f);
        axis.slope[t][j] = tap_slope(t, f);
        axis.inside[t][j] = within & known;
#if DUAL
        axis.curvature[t][j] = 0;
#endif
    }
}

// Whether every tap of a sample at x lies inside, and the padding neither moves it nor takes its slope, as a linear
// one's at the first pixel.
DEVICE int is_interior(acc_t x, index_t size) {
    const acc_t low = MODE == CUBIC ? acc_t(1) : acc_t(0);
    const acc_t high = acc_t(size - 1) - low;
    const int above = MODE == LINEAR && PADDING != ZEROS ? x > low : x >= low;
    const int below = MODE == NEAREST ? x <= high : x < high;
    return above & below;
}

// `locate` for such a sample, to the same bits.
DEVICE void locate_interior(Axis& axis, int j, acc_t x, index_t stride) {
    const acc_t cell = MODE == NEAREST ? round_even(x) : round_down(x);
    const acc_t f = x - cell;
    UNROLL for (int t = 0; t < TAPS; ++t) {
        axis.at[t][j] = ((index_t)cell + (MODE == CUBIC ? t - 1 : t)) * stride;
        axis.weight[t][j] = tap_weight(t, f);
        axis.slope[t][j] = tap_slope(t, f);
        axis.inside[t][j] = 1;
#if DUAL
        axis.curvature[t][j] = tap_curvature(t, f);
#endif
    }
}
