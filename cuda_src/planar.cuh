// Planar: GROUP channels at a time, one row of taps after the other.
#include "rows.cuh"

// Channels of a part that are sampled together: rows of several planes may have to share a few sets of the cache.
constexpr int PLANES_TOGETHER = ASSEMBLED && WINDOW == 1 && ROWS <= 2 ? 1 : GROUP;

// sum[c][j] = sample j in the channel plane[c].
template <bool CHECKED> DEVICE void sample_planes(const Samples& s, const scalar_t* const* plane, acc_t sum[][TILE]) {
    for (int first = 0; first < TILE; first += SUBTILE) {
        index_t start[SUBTILE];
        if (SHARED_START) find_row(s, 0, first, start);
        UNROLL for (int begin = 0; begin < GROUP; begin += PLANES_TOGETHER) {
            UNROLL_ROWS for (int r = 0; r < ROWS; ++r) {
                Window<WINDOW == 2 ? PLANES : PLANES_TOGETHER> window;
                if (!SHARED_START) find_row(s, r, first, start);
                load_row<CHECKED>(s, plane + begin, r, first, start, window);
                SIMD for (int k = 0; k < SUBTILE; ++k) {
                    const int j = first + k;
                    UNROLL for (int c = 0; c < PLANES_TOGETHER; ++c) {
                        acc_t value = 0;
                        UNROLL for (int t = 0; t < TAPS; ++t) {
                            value =
                                fused(weight_along(s, t, j), tap_value<CHECKED>(s, window, r, c, t, first, k), value);
                        }
                        sum[begin + c][j] = fused(row_weight(s, r, j), value, r == 0 ? acc_t(0) : sum[begin + c][j]);
                    }
                }
            }
        }
    }
}

// The greatest offset among a sample's taps in one dimension.
DEVICE index_t furthest(const Axis& axis, int j) {
    index_t at = axis.at[TAPS - 1][j];
    if (PADDING == REFLECTION) {
        UNROLL for (int t = 0; t < TAPS - 1; ++t) at = larger(at, axis.at[t][j]);
    }
    return at;
}

// Whether the pixels of a tile may be read as vectors of PIXEL_WIDTH channels: channels are neighbours, and what is
// read beyond a pixel's lies before the image's end, where `last` is its last pixel. Numbers of 16 bits take widening,
// which is cheaper for a vector of samples.
constexpr int PIXEL_WIDTH = 4;
DEVICE bool fits_pixels(const Samples& s, index_t last) {
    if (WINDOW != 2 || sizeof(scalar_t) < 4) return false;
    int room = 1;
    SIMD for (int j = 0; j < TILE; ++j) {
        index_t at = PIXEL_WIDTH - GROUP;
        UNROLL for (int d = 0; d < NDIM; ++d) at += furthest(s.axis[d], j);
        room &= at <= last;
    }
    return room;
}

// sample_planes to the same bits, by pixels.
template <bool CHECKED> DEVICE void sample_pixels(const Samples& s, const scalar_t* image, acc_t sum[][TILE]) {
    const Axis& x = s.axis[NDIM - 1];
    acc_t pixel[TILE][PIXEL_WIDTH];
    for (int j = 0; j < TILE; ++j) {
        for (int first = 0; first < ROWS; first += ROWS_TOGETHER) {
            SIMD for (int v = 0; v < PIXEL_WIDTH; ++v) {
                acc_t total = first == 0 ? acc_t(0) : pixel[j][v];
                UNROLL for (int r = first; r < first + ROWS_TOGETHER; ++r) {
                    const scalar_t* row = image + row_at(s, r, j) + x.at[0][j];
                    acc_t value = 0;
                    UNROLL for (int t = 0; t < TAPS; ++t) {
                        const acc_t tap = widen(row[t * GROUP + v]);
                        value = fused(weight_along(s, t, j), CHECKED ? keep(tap, x.inside[t][j]) : tap, value);
                    }
                    total = fused(row_weight(s, r, j), CHECKED ? keep(value, row_inside(s, r, j)) : value, total);
                }
                pixel[j][v] = total;
            }
        }
        SCALAR_LOOP;
    }
    UNROLL for (int c = 0; c < GROUP; ++c) { SIMD for (int j = 0; j < TILE; ++j) sum[c][j] = pixel[j][c]; }
}

// grad[d][j] += sum over the group of out_grad * d(sample j) / d(coordinate d).
template <bool CHECKED> DEVICE void plane_gradients(const Samples& s, const scalar_t* const* plane,
                                                    const acc_t out_grad[][TILE], acc_t grad[][TILE]) {
    const Axis& x = s.axis[NDIM - 1];
    constexpr bool SEVERAL_SETS = PLANES_TOGETHER < GROUP;
    for (int first = 0; first < TILE; first += SUBTILE) {
        acc_t dots[SEVERAL_SETS ? ROWS : 1][TAPS][SUBTILE];  // of the taps and out_grad
        index_t start[SUBTILE];
        if (SHARED_START) find_row(s, 0, first, start);
        UNROLL for (int begin = 0; begin < GROUP; begin += PLANES_TOGETHER) {
            UNROLL_ROWS for (int r = 0; r < ROWS; ++r) {
                Window<WINDOW == 2 ? PLANES : PLANES_TOGETHER> window;
                if (!SHARED_START) find_row(s, r, first, start);
                load_row<CHECKED>(s, plane + begin, r, first, start, window);
                SIMD for (int k = 0; k < SUBTILE; ++k) {
                    const int j = first + k;
                    acc_t(*const dot)[SUBTILE] = dots[SEVERAL_SETS ? r : 0];
                    UNROLL for (int t = 0; t < TAPS; ++t) {
                        acc_t sum = begin == 0 ? acc_t(0) : dot[t][k];
                        UNROLL for (int c = 0; c < PLANES_TOGETHER; ++c) {
                            sum = fused(out_grad[begin + c][j], tap_value<CHECKED>(s, window, r, c, t, first, k), sum);
                        }
                        dot[t][k] = sum;
                    }
                    if (begin + PLANES_TOGETHER < GROUP) continue;
                    acc_t value = 0, slope = 0;
                    UNROLL for (int t = 0; t < TAPS; ++t) {
                        // Outside the sum is 0, or the NaN of an infinite gradient.
                        const int inside = !CHECKED || (row_inside(s, r, j) & x.inside[t][j]);
                        const acc_t sum = CHECKED ? keep(dot[t][k], inside) : dot[t][k];
                        value = fused(x.weight[t][j], sum, value);
                        slope = fused(x.slope[t][j], sum, slope);
                    }
                    UNROLL for (int d = 0; d < NDIM - 1; ++d) {
                        grad[d][j] = fused(row_slope(s, d, r, j), value, grad[d][j]);
                    }
                    grad[NDIM - 1][j] = fused(row_weight(s, r, j), slope, grad[NDIM - 1][j]);
                }
            }
        }
    }
}

// As plane_gradients, but for rounding: the slopes of a pixel's channels are vectors.
template <bool CHECKED>
DEVICE void pixel_gradients(const Samples& s, const scalar_t* image, const acc_t out_grad[][TILE], acc_t grad[][TILE]) {
    const Axis& x = s.axis[NDIM - 1];
    acc_t slopes[NDIM][TILE][PIXEL_WIDTH];
    for (int j = 0; j < TILE; ++j) {
        for (int first = 0; first < ROWS; first += ROWS_TOGETHER) {
            SIMD for (int v = 0; v < PIXEL_WIDTH; ++v) {
                acc_t slope0 = 0, slope1 = 0, slope2 = 0;
                UNROLL for (int r = first; r < first + ROWS_TOGETHER; ++r) {
                    const scalar_t* row = image + row_at(s, r, j) + x.at[0][j];
                    acc_t value = 0, slope = 0;
                    UNROLL for (int t = 0; t < TAPS; ++t) {
                        const acc_t found = widen(row[t * GROUP + v]);
                        const acc_t tap = CHECKED ? keep(found, x.inside[t][j]) : found;
                        value = fused(x.weight[t][j], tap, value);
                        slope = fused(x.slope[t][j], tap, slope);
                    }
                    if (CHECKED) {
                        value = keep(value, row_inside(s, r, j));
                        slope = keep(slope, row_inside(s, r, j));
                    }
                    if (NDIM > 1) slope0 = fused(row_slope(s, 0, r, j), value, slope0);
                    if (NDIM > 2) slope1 = fused(row_slope(s, MIDDLE, r, j), value, slope1);
                    slope2 = fused(row_weight(s, r, j), slope, slope2);
                }
                if (NDIM > 1) slopes[0][j][v] = accumulated(first, slopes[0][j][v], slope0);
                if (NDIM > 2) slopes[MIDDLE][j][v] = accumulated(first, slopes[MIDDLE][j][v], slope1);
                slopes[NDIM - 1][j][v] = accumulated(first, slopes[NDIM - 1][j][v], slope2);
            }
        }
        SCALAR_LOOP;
    }
    UNROLL for (int d = 0; d < NDIM; ++d) {
        SIMD for (int j = 0; j < TILE; ++j) {
            UNROLL for (int c = 0; c < GROUP; ++c) {
                const acc_t slope = slopes[d][j][c];  // 0 outside, whatever out_grad is
                grad[d][j] =
                    CHECKED ? add_product(slope, out_grad[c][j], grad[d][j]) : fused(out_grad[c][j], slope, grad[d][j]);
            }
        }
    }
}

// The adjoint of sample_planes. `count` channels of the group exist; what the others would add is zero.
//
// Neighbouring samples add to the same elements, and each addition waits for the one before: samples of STREAMS distant
// parts of the tile take turns, with several rows of each together. Planes do not: they often are a multiple of 4096
// bytes apart, where processors take addresses of one for those of another.
constexpr int STREAMS = TILE > 16 ? 16 / ROWS_TOGETHER : 1;

struct SumRow {  // as `Row`, of sums
    acc_t tap[ROW_LENGTH];
};

DEVICE void add_row(acc_t* to, const acc_t* share) {
    SumRow row = *(const SumRow*)to;
    UNROLL for (int t = 0; t < ROW_LENGTH; ++t) row.tap[t] += share[t];
    *(SumRow*)to = row;
}

template <bool CHECKED>
DEVICE void scatter_planes(const Samples& s, const acc_t out_grad[][TILE], const Sums* plane, int count) {
    const Axis& x = s.axis[NDIM - 1];
    UNROLL_ROWS for (int first = 0; first < ROWS; first += ROWS_TOGETHER) {
        acc_t share[ROWS_TOGETHER][PLANES][TILE][ROW_LENGTH];
        UNROLL for (int r = 0; r < ROWS_TOGETHER; ++r) {
            SIMD for (int j = 0; j < TILE; ++j) {
                UNROLL for (int t = 0; t < TAPS; ++t) {
                    const acc_t weight = row_weight(s, first + r, j) * weight_along(s, t, j);
                    const int inside = !CHECKED || (row_inside(s, first + r, j) & x.inside[t][j]);
                    UNROLL for (int c = 0; c < GROUP; ++c) {
                        const acc_t product = out_grad[c][j] * weight;
                        acc_t& part = WINDOW == 2 ? share[r][0][j][t * GROUP + c] : share[r][c][j][t];
                        part = CHECKED ? keep(product, inside) : product;
                    }
                }
            }
        }
        UNROLL for (int c = 0; c < PLANES; ++c) {
            if (TILE == 1 && c >= count) break;
            for (int k = 0; k < TILE / STREAMS; ++k) {
                UNROLL for (int stream = 0; stream < STREAMS; ++stream) {
                    const int j = k + stream * (TILE / STREAMS);
                    UNROLL for (int r = 0; r < ROWS_TOGETHER; ++r) {
                        const Sums row = plane[c] + row_at(s, first + r, j);
#if WINDOW
                        add_row(row + x.at[0][j], share[r][c][j]);
#else
                        UNROLL for (int t = 0; t < TAPS; ++t) {
                            if (TILE == 1 && !(row_inside(s, first + r, j) & x.inside[t][j])) continue;
                            add_to(row + x.at[t][j], share[r][c][j][t]);
                        }
#endif
                    }
                }
                SCALAR_LOOP;
            }
        }
    }
}
