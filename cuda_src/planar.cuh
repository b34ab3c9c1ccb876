// Planar: GROUP channels at a time, one row of taps after the other.
//
// WINDOW says what makes a row one contiguous load: nothing (0), neighbouring pixels of a channel (1), or pixels whose
// GROUP channels are all there is, interleaved (2).

struct Row {  // of one channel, or of all with WINDOW == 2
    scalar_t tap[WINDOW == 2 ? TAPS * GROUP : TAPS];
};
constexpr int ROW_SPACE = WINDOW != 2         ? TAPS
                          : TAPS * GROUP <= 2 ? 2
                          : TAPS * GROUP <= 4 ? 4
                          : TAPS * GROUP <= 8 ? 8
                                              : 16;

// One row of every sample of the tile.
struct Window {
    scalar_t value[WINDOW == 2 ? 1 : GROUP][TILE][ROW_SPACE];
};

DEVICE const scalar_t& tap_of(const Window& w, int c, int t, int j) {
    return WINDOW == 2 ? w.value[0][j][t * GROUP + c] : w.value[c][j][t];
}

template <bool CHECKED> DEVICE void load_row(const Samples& s, const scalar_t* const* plane, int r, Window& window) {
    const Axis& x = s.axis[NDIM - 1];
    for (int j = 0; j < TILE; ++j) {
        const index_t at = row_at(s, r, j);
        UNROLL for (int c = 0; c < (WINDOW == 2 ? 1 : GROUP); ++c) {
            if (WINDOW) {
                *(Row*)window.value[c][j] = *(const Row*)(plane[c] + at + x.at[0][j]);
            } else {
                UNROLL for (int t = 0; t < TAPS; ++t) {
                    const bool inside = !CHECKED || (row_inside(s, r, j) & x.inside[t][j]);
                    window.value[c][j][t] = inside ? plane[c][at + x.at[t][j]] : scalar_t();
                }
            }
        }
        SCALAR_LOOP;
    }
}

template <bool CHECKED> DEVICE acc_t tap_value(const Samples& s, const Window& window, int r, int c, int t, int j) {
    const acc_t value = widen(tap_of(window, c, t, j));
    return CHECKED ? keep(value, row_inside(s, r, j) & s.axis[NDIM - 1].inside[t][j]) : value;
}

// sum[c][j] = sample j in the channel plane[c].
template <bool CHECKED> DEVICE void sample_planes(const Samples& s, const scalar_t* const* plane, acc_t sum[][TILE]) {
    UNROLL for (int c = 0; c < GROUP; ++c) { SIMD for (int j = 0; j < TILE; ++j) sum[c][j] = 0; }
    UNROLL_ROWS for (int r = 0; r < ROWS; ++r) {
        Window window;
        load_row<CHECKED>(s, plane, r, window);
        SIMD for (int j = 0; j < TILE; ++j) {
            UNROLL for (int c = 0; c < GROUP; ++c) {
                acc_t value = 0;
                UNROLL for (int t = 0; t < TAPS; ++t) {
                    value = fused(s.axis[NDIM - 1].weight[t][j], tap_value<CHECKED>(s, window, r, c, t, j), value);
                }
                sum[c][j] = fused(row_weight(s, r, j), value, sum[c][j]);
            }
        }
    }
}

// grad[d][j] += sum over the group of out_grad * d(sample j) / d(coordinate d).
template <bool CHECKED> DEVICE void plane_gradients(const Samples& s, const scalar_t* const* plane,
                                                    const acc_t out_grad[][TILE], acc_t grad[][TILE]) {
    const Axis& x = s.axis[NDIM - 1];
    UNROLL_ROWS for (int r = 0; r < ROWS; ++r) {
        Window window;
        load_row<CHECKED>(s, plane, r, window);
        SIMD for (int j = 0; j < TILE; ++j) {
            acc_t value = 0, slope = 0;
            UNROLL for (int t = 0; t < TAPS; ++t) {
                acc_t dot = 0;
                UNROLL for (int c = 0; c < GROUP; ++c) {
                    dot = fused(out_grad[c][j], tap_value<CHECKED>(s, window, r, c, t, j), dot);
                }
                value = fused(x.weight[t][j], dot, value);
                slope = fused(x.slope[t][j], dot, slope);
            }
            UNROLL for (int d = 0; d < NDIM - 1; ++d) grad[d][j] = fused(row_slope(s, d, r, j), value, grad[d][j]);
            grad[NDIM - 1][j] = fused(row_weight(s, r, j), slope, grad[NDIM - 1][j]);
        }
    }
}

// The adjoint of sample_planes. `count` channels of the group exist; what the others would add is zero.
//
// Neighbouring samples add to the same elements, and each addition waits for the one before: several rows are kept in
// flight together.
constexpr int FLIGHT = !STORED ? 1 : ROWS < 4 ? ROWS : 4;

template <bool CHECKED>
DEVICE void scatter_planes(const Samples& s, const acc_t out_grad[][TILE], acc_t* const* plane, int count) {
    const Axis& x = s.axis[NDIM - 1];
    UNROLL_ROWS for (int first = 0; first < ROWS; first += FLIGHT) {
        acc_t share[FLIGHT][GROUP][TILE][TAPS];
        UNROLL for (int r = 0; r < FLIGHT; ++r) {
            SIMD for (int j = 0; j < TILE; ++j) {
                UNROLL for (int t = 0; t < TAPS; ++t) {
                    const acc_t weight = row_weight(s, first + r, j) * x.weight[t][j];
                    UNROLL for (int c = 0; c < GROUP; ++c) share[r][c][j][t] = out_grad[c][j] * weight;
                }
            }
        }
        for (int j = 0; j < TILE; ++j) {
            UNROLL for (int r = 0; r < FLIGHT; ++r) {
                const index_t row = row_at(s, first + r, j);
                UNROLL for (int t = 0; t < TAPS; ++t) {
                    if (CHECKED && !(row_inside(s, first + r, j) & x.inside[t][j])) continue;
                    const index_t target = row + (WINDOW == 1 ? x.at[0][j] + t : x.at[t][j]);
                    UNROLL for (int c = 0; c < GROUP; ++c) {
                        if (TILE > 1 || c < count) add_to(plane[c] + target, share[r][c][j][t]);
                    }
                }
            }
            SCALAR_LOOP;
        }
    }
}
