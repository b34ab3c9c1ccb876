// What to read: a tile of samples as rows of taps along the innermost dimension, ready for any number of channels.
//
// Taps that share all but the innermost index form a row: ROWS = TAPS^(NDIM - 1). The rows' offsets, weights and
// slopes are worked out once for the tile; each channel then only loads and multiplies.

constexpr int ROWS = NDIM == 1 ? 1 : NDIM == 2 ? TAPS : TAPS * TAPS;

struct Samples {
    Axis axis[NDIM];                                // slowest dimension first; the last is the one along a row
    index_t row_at[ROWS][TILE];                     // offset of the row
    acc_t row_weight[ROWS][TILE];                   // product of the outer dimensions' weights
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

// ---------------------------------------------------------------------------------------------------------------------
// Planar: GROUP channels at a time, one row of taps after the other.
//
// WINDOW says what makes a row one contiguous load: nothing (0), neighbouring pixels of a channel (1), or pixels whose
// GROUP channels are all there is, interleaved (2).

struct Row {  // of one channel, or of all with WINDOW == 2
    scalar_t tap[WINDOW == 2 ? TAPS * GROUP : TAPS];
};
constexpr int ROW_SPACE = WINDOW != 2 ? TAPS : TAPS * GROUP <= 2 ? 2 : TAPS * GROUP <= 4 ? 4 : TAPS * GROUP <= 8 ? 8 : 16;

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
        const index_t at = s.row_at[r][j];
        UNROLL for (int c = 0; c < (WINDOW == 2 ? 1 : GROUP); ++c) {
            if (WINDOW) {
                *(Row*)window.value[c][j] = *(const Row*)(plane[c] + at + x.at[0][j]);
            } else {
                UNROLL for (int t = 0; t < TAPS; ++t) {
                    const bool inside = !CHECKED || (s.row_inside[r][j] & x.inside[t][j]);
                    window.value[c][j][t] = inside ? plane[c][at + x.at[t][j]] : scalar_t();
                }
            }
        }
        SCALAR_LOOP;
    }
}

template <bool CHECKED> DEVICE acc_t tap_value(const Samples& s, const Window& window, int r, int c, int t, int j) {
    const acc_t value = widen(tap_of(window, c, t, j));
    return !CHECKED || (s.row_inside[r][j] & s.axis[NDIM - 1].inside[t][j]) ? value : acc_t(0);
}

// sum[c][j] = sample j in the channel plane[c].
template <bool CHECKED>
DEVICE void sample_planes(const Samples& s, const scalar_t* const* plane, acc_t sum[][TILE]) {
    UNROLL for (int c = 0; c < GROUP; ++c) {
        SIMD for (int j = 0; j < TILE; ++j) sum[c][j] = 0;
    }
    UNROLL_ROWS for (int r = 0; r < ROWS; ++r) {
        Window window;
        load_row<CHECKED>(s, plane, r, window);
        SIMD for (int j = 0; j < TILE; ++j) {
            UNROLL for (int c = 0; c < GROUP; ++c) {
                acc_t value = 0;
                UNROLL for (int t = 0; t < TAPS; ++t) {
                    value = fused(s.axis[NDIM - 1].weight[t][j], tap_value<CHECKED>(s, window, r, c, t, j), value);
                }
                sum[c][j] = fused(s.row_weight[r][j], value, sum[c][j]);
            }
        }
    }
}

// grad[d][j] += sum over the group of out_grad * d(sample j) / d(coordinate d).
template <bool CHECKED>
DEVICE void plane_gradients(const Samples& s, const scalar_t* const* plane, const acc_t out_grad[][TILE],
                            acc_t grad[][TILE]) {
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
            UNROLL for (int d = 0; d < NDIM - 1; ++d) grad[d][j] = fused(s.row_slope[d][r][j], value, grad[d][j]);
            grad[NDIM - 1][j] = fused(s.row_weight[r][j], slope, grad[NDIM - 1][j]);
        }
    }
}

// The adjoint of sample_planes; `count` channels of the group exist.
template <bool CHECKED>
DEVICE void scatter_planes(const Samples& s, const acc_t out_grad[][TILE], acc_t* const* plane, int count) {
    const Axis& x = s.axis[NDIM - 1];
    UNROLL_ROWS for (int r = 0; r < ROWS; ++r) {
        acc_t share[GROUP][TILE][TAPS];
        SIMD for (int j = 0; j < TILE; ++j) {
            UNROLL for (int t = 0; t < TAPS; ++t) {
                const acc_t weight = s.row_weight[r][j] * x.weight[t][j];
                UNROLL for (int c = 0; c < GROUP; ++c) share[c][j][t] = out_grad[c][j] * weight;
            }
        }
        for (int j = 0; j < TILE; ++j) {
            const index_t at = s.row_at[r][j];
            UNROLL for (int t = 0; t < TAPS; ++t) {
                if (CHECKED && !(s.row_inside[r][j] & x.inside[t][j])) continue;
                const index_t target = at + x.at[t][j];
                UNROLL for (int c = 0; c < GROUP; ++c) {
                    if (c < count) add_to(plane[c] + target, share[c][j][t]);
                }
            }
            SCALAR_LOOP;
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Channels next to each other. `width` <= VEC of them; on a GPU all VEC, aligned to the size of a pack.
struct alignas(LANES > 1 ? VEC * sizeof(scalar_t) : sizeof(scalar_t)) Pack {
    scalar_t value[VEC];
};

DEVICE void load_channels(const scalar_t* from, int width, acc_t* to) {
    if (LANES > 1) {
        const Pack pack = *(const Pack*)from;
        UNROLL for (int v = 0; v < VEC; ++v) to[v] = widen(pack.value[v]);
    } else {
        load_line<VEC>(from, 1, width, to);
    }
}

DEVICE void store_channels(const acc_t* from, int width, scalar_t* to) {
    if (LANES > 1) {
        Pack pack;
        UNROLL for (int v = 0; v < VEC; ++v) narrow(from[v], pack.value[v]);
        *(Pack*)to = pack;
    } else {
        store_line<VEC>(from, to, 1, width);
    }
}

// A tile of pixels x channels in memory, in either order.
DEVICE void store_tile(scalar_t* to, index_t channel_stride, index_t pixel_stride, int count, int width,
                       acc_t tile[][VEC]) {
    if (channel_stride == 1) {
        for (int j = 0; j < count; ++j) store_channels(tile[j], width, to + j * pixel_stride);
    } else {
        acc_t other[TILE * VEC];
        const acc_t* turned = transpose<TILE, VEC>(tile[0], other);
        for (int v = 0; v < width; ++v) {
            store_line<TILE>(turned + v * TILE, to + v * channel_stride, pixel_stride, count);
        }
    }
}

// Returns where the tile is: in `tile`, or in `other` after a transpose.
DEVICE const acc_t* load_tile(const scalar_t* from, index_t channel_stride, index_t pixel_stride, int count, int width,
                              acc_t tile[][VEC], acc_t* other) {
    if (channel_stride == 1) {
        for (int j = 0; j < count; ++j) load_channels(from + j * pixel_stride, width, tile[j]);
        return tile[0];
    }
    for (int v = 0; v < width; ++v) {
        load_line<TILE>(from + v * channel_stride, pixel_stride, count, tile[0] + v * TILE);
    }
    return transpose<VEC, TILE>(tile[0], other);
}

// Rows that one pass over the channels combines: all of them where their taps fit into registers.
constexpr int PASS = MODE == CUBIC ? 1 : ROWS;

// sum[v] = sample j in the channels image[0] ... image[width - 1].
DEVICE void sample_channels(const Samples& s, int j, const scalar_t* image, int width, acc_t* sum) {
    const Axis& x = s.axis[NDIM - 1];
    if (LANES == 1 && s.whole) {
        for (int r0 = 0; r0 < ROWS; r0 += PASS) {
            const scalar_t* tap[PASS * TAPS];
            acc_t weight[PASS * TAPS];
            UNROLL for (int k = 0; k < PASS * TAPS; ++k) {
                const int r = r0 + k / TAPS, t = k % TAPS;
                tap[k] = image + s.row_at[r][j] + x.at[t][j];
                weight[k] = s.row_weight[r][j] * x.weight[t][j];
            }
            SIMD for (int v = 0; v < width; ++v) {
                acc_t value = r0 == 0 ? acc_t(0) : sum[v];
                UNROLL for (int k = 0; k < PASS * TAPS; ++k) value = fused(weight[k], widen(tap[k][v]), value);
                sum[v] = value;
            }
        }
        return;
    }
    UNROLL for (int v = 0; v < VEC; ++v) sum[v] = 0;
    UNROLL_ROWS for (int k = 0; k < ROWS * TAPS; ++k) {
        const int r = k / TAPS, t = k % TAPS;
        if (!(s.row_inside[r][j] & x.inside[t][j])) continue;
        acc_t value[VEC];
        load_channels(image + s.row_at[r][j] + x.at[t][j], width, value);
        const acc_t weight = s.row_weight[r][j] * x.weight[t][j];
        SIMD for (int v = 0; v < width; ++v) sum[v] = fused(weight, value[v], sum[v]);
    }
}

// grad[d][j] += sum over channels of out_grad * d(sample j) / d(coordinate d). Where everything is inside, the slopes of
// all taps are combined for each channel first, so that there is one sum over channels for each d and not for each tap.
DEVICE void coordinate_gradient(const Samples& s, int j, const scalar_t* image, int width, const acc_t* out_grad,
                                acc_t grad[][TILE]) {
    const Axis& x = s.axis[NDIM - 1];
    if (LANES == 1 && s.whole) {
        for (int r0 = 0; r0 < ROWS; r0 += PASS) {
            const scalar_t* tap[PASS * TAPS];
            UNROLL for (int k = 0; k < PASS * TAPS; ++k) {
                tap[k] = image + s.row_at[r0 + k / TAPS][j] + x.at[k % TAPS][j];
            }
            acc_t sum0 = 0, sum1 = 0, sum2 = 0;
            SIMD_SUM(sum0, sum1, sum2) for (int v = 0; v < width; ++v) {
                acc_t slope0 = 0, slope1 = 0, slope2 = 0;
                UNROLL for (int r = 0; r < PASS; ++r) {
                    acc_t value = 0, slope = 0;
                    UNROLL for (int t = 0; t < TAPS; ++t) {
                        const acc_t pixel = widen(tap[r * TAPS + t][v]);
                        value = fused(x.weight[t][j], pixel, value);
                        slope = fused(x.slope[t][j], pixel, slope);
                    }
                    if (NDIM > 1) slope0 = fused(s.row_slope[0][r0 + r][j], value, slope0);
                    if (NDIM > 2) slope1 = fused(s.row_slope[NDIM > 2][r0 + r][j], value, slope1);
                    slope2 = fused(s.row_weight[r0 + r][j], slope, slope2);
                }
                sum0 += out_grad[v] * slope0;
                sum1 += out_grad[v] * slope1;
                sum2 += out_grad[v] * slope2;
            }
            if (NDIM > 1) grad[0][j] += sum0;
            if (NDIM > 2) grad[NDIM > 2][j] += sum1;
            grad[NDIM - 1][j] += sum2;
        }
        return;
    }
    UNROLL_ROWS for (int r = 0; r < ROWS; ++r) {
        acc_t value = 0, slope = 0;
        UNROLL for (int t = 0; t < TAPS; ++t) {
            if (!(s.row_inside[r][j] & x.inside[t][j])) continue;
            acc_t channel[VEC], dot = 0;
            load_channels(image + s.row_at[r][j] + x.at[t][j], width, channel);
            SIMD_SUM(dot) for (int v = 0; v < width; ++v) dot += out_grad[v] * channel[v];
            value = fused(x.weight[t][j], dot, value);
            slope = fused(x.slope[t][j], dot, slope);
        }
        UNROLL for (int d = 0; d < NDIM - 1; ++d) grad[d][j] = fused(s.row_slope[d][r][j], value, grad[d][j]);
        grad[NDIM - 1][j] = fused(s.row_weight[r][j], slope, grad[NDIM - 1][j]);
    }
}

// The adjoint of sample_channels.
DEVICE void scatter_channels(const Samples& s, int j, acc_t* image, int width, const acc_t* out_grad) {
    const Axis& x = s.axis[NDIM - 1];
    UNROLL_ROWS for (int k = 0; k < ROWS * TAPS; ++k) {
        const int r = k / TAPS, t = k % TAPS;
        if (!(s.row_inside[r][j] & x.inside[t][j])) continue;
        acc_t* target = image + s.row_at[r][j] + x.at[t][j];
        const acc_t weight = s.row_weight[r][j] * x.weight[t][j];
        SIMD for (int v = 0; v < width; ++v) add_to(target + v, weight * out_grad[v]);
    }
}
