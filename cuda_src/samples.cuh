// What to read: a tile of samples as rows of taps along the innermost dimension, ready for any number of channels.
//
// Taps that share all but the innermost index form a row: ROWS = TAPS^(NDIM - 1). The rows' offsets, weights and
// slopes are worked out once for the tile; each channel then only loads and multiplies.

constexpr int ROWS = NDIM == 1 ? 1 : NDIM == 2 ? TAPS : TAPS * TAPS;

struct Samples {
    Axis axis[NDIM];                                       // slowest dimension first; the last is the one along a row
    index_t row_at[ROWS][TILE];                            // offset of the row
    acc_t row_weight[ROWS][TILE];                          // product of the outer dimensions' weights
    acc_t row_slope[NDIM > 1 ? NDIM - 1 : 1][ROWS][TILE];  // the same with one of them replaced by its slope
    int row_inside[ROWS][TILE];
    bool whole;  // every tap of every sample of the tile is inside: nothing to check
};

// Turn the innermost taps of a tile into TAPS neighbours, at[0] + e * stride, so that a row is one short contiguous load.
// Taps that a padding folded onto one element add up; elements that no tap hits are outside. Needs size >= TAPS: the
// taps of a sample never span more than TAPS elements.
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

// Work out the rows from the axes.
DEVICE void make_rows(Samples& s) {
    int whole = 1;
    UNROLL for (int t = 0; t < TAPS; ++t) {
        SIMD for (int j = 0; j < TILE; ++j) whole &= s.axis[NDIM - 1].inside[t][j];
    }
    UNROLL for (int r = 0; r < ROWS; ++r) {
        SIMD for (int j = 0; j < TILE; ++j) {
            index_t at = 0;
            acc_t weight = 1, slope[NDIM] = {};
            int inside = 1;
            UNROLL for (int d = NDIM - 2, digits = r; d >= 0; --d, digits /= TAPS) {
                const Axis& axis = s.axis[d];
                const int t = digits % TAPS;
                UNROLL for (int e = d + 1; e < NDIM - 1; ++e) slope[e] *= axis.weight[t][j];
                slope[d] = weight * axis.slope[t][j];
                weight *= axis.weight[t][j];
                at += axis.at[t][j];
                inside &= axis.inside[t][j];
            }
            s.row_at[r][j] = at;
            s.row_weight[r][j] = weight;
            s.row_inside[r][j] = inside;
            UNROLL for (int d = 0; d < NDIM - 1; ++d) s.row_slope[d][r][j] = slope[d];
        }
        SIMD for (int j = 0; j < TILE; ++j) whole &= s.row_inside[r][j];
    }
    s.whole = whole;
}
