// What to read: a tile of samples as rows of taps along the innermost dimension, ready for any number of channels.
//
// Taps that share all but the innermost index form a row: ROWS = TAPS^(NDIM - 1). With one outer dimension the rows are
// its taps. With two, their offsets, weights and slopes are worked out once for the tile. Each channel then only loads
// and multiplies.

constexpr int ROWS = NDIM == 1 ? 1 : NDIM == 2 ? TAPS : TAPS * TAPS;
constexpr int MIDDLE = NDIM > 2 ? 1 : 0;  // the second of two outer dimensions, or a valid index where there are fewer

// A GPU's registers do not hold the 16 rows of a cubic sample in 3-D: there each is worked out when its turn comes.
constexpr bool STORED = TILE > 1 || ROWS <= 4;
constexpr int STORED_ROWS = NDIM == 3 && STORED ? ROWS : 1;

// What two outer dimensions make of a row: its offset, the product of their weights, and the same with one of the
// weights replaced by its slope.
struct Outer {
    index_t at;
    acc_t weight, slope[2];
    int inside;
};

// A nearest sample is one element, whose offset the last dimension has for all.
constexpr bool SINGLE = MODE == NEAREST && !DUAL;
constexpr int FIRST_AXIS = SINGLE ? NDIM - 1 : 0;

struct Samples {
    Axis axis[NDIM];  // slowest dimension first, FIRST_AXIS at the earliest; the last is the one along a row
    index_t row_at[STORED_ROWS][TILE];
    acc_t row_weight[STORED_ROWS][TILE];
    acc_t row_slope[2][STORED_ROWS][TILE];
    int row_inside[STORED_ROWS][TILE];
    bool whole;  // every tap of every sample of the tile is inside: nothing to check
};

// Turn the innermost taps of a tile into TAPS neighbours, at[0] + e * stride, so that a row is one short contiguous
// load. Taps that a padding folded onto one element add up; elements that no tap hits are outside. Needs size >= TAPS:
// the taps of a sample never span more than TAPS elements.
DEVICE void make_window(Axis& axis, int j, index_t size, index_t stride) {
    index_t base = axis.at[0][j];
    UNROLL for (int t = 1; t < TAPS; ++t) base = smaller(base, axis.at[t][j]);
    base = smaller(base, (size - TAPS) * stride);
    acc_t weight[TAPS], slope[TAPS];
    int inside[TAPS];
    UNROLL for (int e = 0; e < TAPS; ++e) {
        weight[e] = slope[e] = 0;
        inside[e] = 0;
        UNROLL for (int t = 0; t < TAPS; ++t) {
            const acc_t tap_weight = axis.weight[t][j], tap_slope = axis.slope[t][j];
            const int here = axis.at[t][j] == base + e * stride, hit = axis.inside[t][j] & here;
            weight[e] += hit ? tap_weight : acc_t(0);
            slope[e] += hit ? tap_slope : acc_t(0);
            inside[e] |= hit;
        }
    }
    UNROLL for (int e = 0; e < TAPS; ++e) {
        axis.at[e][j] = base + e * stride;
        axis.weight[e][j] = weight[e];
        axis.slope[e][j] = slope[e];
        axis.inside[e][j] = inside[e];
    }
}

// Where taps outside weigh nothing, they may be read like any other, as their offsets are clipped. What comes of it is
// right unless it is a NaN: then what was read may have been infinite, or one itself.
constexpr bool WEIGHED = TILE > 1 && MODE != NEAREST;

DEVICE void weigh_inside(Axis& axis, int j) {
    UNROLL for (int t = 0; t < TAPS; ++t) {
        const acc_t inside = acc_t(axis.inside[t][j]);
        axis.weight[t][j] *= inside;
        axis.slope[t][j] *= inside;
    }
}

// `locate`, `make_window` and `weigh_inside` in one, to the same bits, for linear samples: an element has the weight
// 1 - |x - element|, where that is positive. A single pixel is both elements.
DEVICE void locate_linear(Axis& axis, int j, acc_t x, index_t size, index_t stride, bool align_corners) {
    const Mapped near = confine(x, size, align_corners);
    const acc_t below = round_down(near.x);
    const index_t cell = (index_t)below, base = larger(index_t(0), smaller(cell, size - 2));
    // near.x - base, from -1 to 2 or both elements are outside. A base may have more digits than a float has, and a
    // number just below 0 would lose its own beside `below`.
    const acc_t f = base > 0 ? near.x - below + acc_t(cell - base) : near.x;
    const int from[4] = {f >= -1, f >= 0, f >= 1, f >= 2}, several = size > 1, known = x == x;
    const acc_t weight[2] = {smaller(1 - f, 1 + f), smaller(f, 2 - f)};
    UNROLL for (int e = 0; e < 2; ++e) {
        const int inside = (from[e] - from[e + 2]) & (e ? several : 1) & (PADDING == ZEROS ? 1 : known);
        const int falls = from[e + 1] - from[e + 2];
        axis.at[e][j] = (base + (e ? several : 0)) * stride;
        axis.weight[e][j] = keep(weight[e], inside);
        axis.slope[e][j] = acc_t(inside - 2 * (inside & falls)) * (PADDING == ZEROS ? acc_t(1) : near.slope);
        axis.inside[e][j] = inside;
#if DUAL
        axis.curvature[e][j] = 0;
#endif
    }
}

// The same for cubic samples with zeros outside, along a dimension of at least four elements.
DEVICE void locate_cubic(Axis& axis, int j, acc_t x, index_t size, index_t stride) {
    const acc_t near = confine(x, size, false).x, below = round_down(near);
    const index_t cell = (index_t)below, base = larger(index_t(0), smaller(cell - 1, size - 4));
    const acc_t rest = base > 0 ? near - below : near;  // as in `locate_linear`
    const index_t first = base > 0 ? base - cell : index_t(0);
    UNROLL for (int e = 0; e < 4; ++e) {
        const acc_t f = rest - acc_t(first + e), distance = f < 0 ? -f : f;
        const int inside = int(f >= -2) & int(f < 2);
        const acc_t weight = distance < 1 ? cubic_inner(distance) : cubic_outer(distance);
        const acc_t slope = distance < 1 ? cubic_inner_slope(distance) : cubic_outer_slope(distance);
        axis.at[e][j] = (base + e) * stride;
        axis.weight[e][j] = keep(weight, inside);
        axis.slope[e][j] = keep(f < 0 ? -slope : slope, inside);
        axis.inside[e][j] = inside;
    }
}

// values[t][j], where t need not be a constant: an array that is indexed at run time would leave a GPU's registers.
template <typename T> DEVICE T pick(const T values[][TILE], int t, int j) {
    if (TILE > 1) return values[t][j];
    T value = values[0][j];
    UNROLL for (int k = 1; k < TAPS; ++k) value = t == k ? values[k][j] : value;
    return value;
}

DEVICE Outer outer(const Samples& s, int r, int j) {
    const Axis &first = s.axis[0], &second = s.axis[MIDDLE];
    const int t = r / TAPS, u = r % TAPS;
    const acc_t weight = pick(first.weight, t, j), other = pick(second.weight, u, j);
    return {pick(first.at, t, j) + pick(second.at, u, j),
            weight * other,
            {pick(first.slope, t, j) * other, weight * pick(second.slope, u, j)},
            pick(first.inside, t, j) & pick(second.inside, u, j)};
}

DEVICE index_t row_at(const Samples& s, int r, int j) {
    if (NDIM == 1 || SINGLE) return 0;
    if (NDIM == 2) return s.axis[0].at[r][j];
    return STORED ? s.row_at[r][j] : outer(s, r, j).at;
}
DEVICE acc_t row_weight(const Samples& s, int r, int j) {
    if (MODE == NEAREST) return 1;
    if (NDIM < 3) return NDIM == 1 ? 1 : s.axis[0].weight[r][j];
    return STORED ? s.row_weight[r][j] : outer(s, r, j).weight;
}
DEVICE acc_t weight_along(const Samples& s, int t, int j) {
    return MODE == NEAREST ? acc_t(1) : s.axis[NDIM - 1].weight[t][j];
}
DEVICE int row_inside(const Samples& s, int r, int j) {
    if (NDIM == 1 || SINGLE) return 1;
    if (NDIM == 2) return s.axis[0].inside[r][j];
    return STORED ? s.row_inside[r][j] : outer(s, r, j).inside;
}
DEVICE acc_t row_slope(const Samples& s, int d, int r, int j) {
    if (NDIM < 3) return s.axis[0].slope[r][j];
    return STORED ? s.row_slope[d][r][j] : outer(s, r, j).slope[d];
}

// Work out the rows of a volume.
DEVICE void make_rows(Samples& s) {
    if constexpr (NDIM == 3 && STORED) {
        UNROLL for (int r = 0; r < ROWS; ++r) {
            SIMD for (int j = 0; j < TILE; ++j) {
                const Outer row = outer(s, r, j);
                s.row_at[r][j] = row.at;
                s.row_weight[r][j] = row.weight;
                s.row_slope[0][r][j] = row.slope[0];
                s.row_slope[1][r][j] = row.slope[1];
                s.row_inside[r][j] = row.inside;
            }
        }
    }
}

// Whether every tap of sample j is inside.
DEVICE int is_inside(const Samples& s, int j) {
    int inside = 1;
    UNROLL for (int d = FIRST_AXIS; d < NDIM; ++d) {
        UNROLL for (int t = 0; t < TAPS; ++t) inside &= s.axis[d].inside[t][j];
    }
    return inside;
}

// Whether those of all samples are.
DEVICE int all_inside(const Samples& s) {
    int inside = 1;
    SIMD for (int j = 0; j < TILE; ++j) inside &= is_inside(s, j);
    return inside;
}
