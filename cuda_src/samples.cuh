// What to read: a tile of samples as rows of taps along the innermost dimension, ready for any number of channels.
//
// Taps that share all but the innermost index form a row: ROWS = TAPS^(NDIM - 1). The rows' offsets, weights and
// slopes are worked out once for the tile; each channel then only loads and multiplies.

constexpr int power(int base, int exponent) { return exponent == 0 ? 1 : base * power(base, exponent - 1); }
constexpr int ROWS = power(TAPS, NDIM - 1);

struct Samples {
    Axis axis[NDIM];                                // slowest dimension first; the last is the one along a row
    index_t row_at[ROWS][TILE];                     // offset of the row
    acc_t row_weight[ROWS][TILE];                   // product of the outer dimensions' weights
    acc_t row_slope[NDIM > 1 ? NDIM - 1 : 1][ROWS][TILE];  // the same with one of them replaced by its slope
    int row_inside[ROWS][TILE];
    bool whole;  // every tap of every sample of the tile is inside: nothing to check
};

// Turn the innermost taps of a tile into TAPS neighbours in memory, at[0] ... at[0] + TAPS - 1, so that a row is one
// short contiguous load. Taps that a padding folded onto one element add up; elements that no tap hits are outside.
// Needs stride 1 and size >= TAPS: the taps of a sample never span more than TAPS elements.
DEVICE void make_window(Axis& axis, int j, index_t size) {
    index_t base = axis.at[0][j];
    UNROLL for (int t = 1; t < TAPS; ++t) base = smaller(base, axis.at[t][j]);
    base = smaller(base, size - TAPS);
    acc_t weight[TAPS], slope[TAPS];
    int inside[TAPS];
    UNROLL for (int e = 0; e < TAPS; ++e) {
        weight[e] = slope[e] = 0;
        inside[e] = 0;
        UNROLL for (int t = 0; t < TAPS; ++t) {
            const acc_t tap_weight = axis.weight[t][j], tap_slope = axis.slope[t][j];
            const int here = axis.at[t][j] == base + e, hit = axis.inside[t][j] & here;
            weight[e] += hit ? tap_weight : acc_t(0);
            slope[e] += hit ? tap_slope : acc_t(0);
            inside[e] |= hit;
        }
    }
    UNROLL for (int e = 0; e < TAPS; ++e) {
        axis.at[e][j] = base + e;
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

// One row of every sample of the tile, in one channel: window[j][t] = plane[row_at + at_t], zero where outside.
template <bool CHECKED> DEVICE void load_row(const Samples& s, const scalar_t* plane, int r, scalar_t window[][TAPS]) {
    const Axis& x = s.axis[NDIM - 1];
    for (int j = 0; j < TILE; ++j) {
        if (WINDOW) {
            struct Row {
                scalar_t tap[TAPS];
            };
            *(Row*)window[j] = *(const Row*)(plane + s.row_at[r][j] + x.at[0][j]);
        } else {
            UNROLL for (int t = 0; t < TAPS; ++t) {
                if (!CHECKED || (s.row_inside[r][j] && x.inside[t][j])) {
                    window[j][t] = plane[s.row_at[r][j] + x.at[t][j]];
                } else {
                    window[j][t] = scalar_t();
                }
            }
        }
        SCALAR_LOOP;
    }
}

template <bool CHECKED>
DEVICE acc_t tap_value(const Samples& s, const scalar_t window[][TAPS], int r, int t, int j) {
    const acc_t value = widen(window[j][t]);
    return !CHECKED || (s.row_inside[r][j] & s.axis[NDIM - 1].inside[t][j]) ? value : acc_t(0);
}

// Channels next to each other. `width` <= VEC of them; on a GPU all VEC, aligned to the size of a pack.
struct alignas(LANES > 1 ? VEC * sizeof(scalar_t) : sizeof(scalar_t)) Pack {
    scalar_t value[VEC];
};

DEVICE void load_channels(const scalar_t* from, int width, acc_t* to) {
    if (LANES > 1) {
        const Pack pack = *(const Pack*)from;
        UNROLL for (int v = 0; v < VEC; ++v) to[v] = widen(pack.value[v]);
    } else {
        SIMD for (int v = 0; v < width; ++v) to[v] = widen(from[v]);
    }
}

DEVICE void store_channels(const acc_t* from, int width, scalar_t* to) {
    if (LANES > 1) {
        Pack pack;
        UNROLL for (int v = 0; v < VEC; ++v) narrow(from[v], pack.value[v]);
        *(Pack*)to = pack;
    } else {
        SIMD for (int v = 0; v < width; ++v) narrow(from[v], to[v]);
    }
}

// A tile of pixels x channels in memory, in either order.
DEVICE void store_tile(scalar_t* to, index_t channel_stride, index_t pixel_stride, int count, int width,
                       const acc_t tile[][VEC]) {
    if (channel_stride == 1) {
        for (int j = 0; j < count; ++j) store_channels(tile[j], width, to + j * pixel_stride);
    } else {
        for (int v = 0; v < width; ++v) {
            for (int j = 0; j < count; ++j) narrow(tile[j][v], to[v * channel_stride + j * pixel_stride]);
        }
    }
}

DEVICE void load_tile(const scalar_t* from, index_t channel_stride, index_t pixel_stride, int count, int width,
                      acc_t tile[][VEC]) {
    if (channel_stride == 1) {
        for (int j = 0; j < count; ++j) load_channels(from + j * pixel_stride, width, tile[j]);
    } else {
        for (int v = 0; v < width; ++v) {
            for (int j = 0; j < count; ++j) tile[j][v] = widen(from[v * channel_stride + j * pixel_stride]);
        }
    }
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
    UNROLL for (int k = 0; k < ROWS * TAPS; ++k) {
        const int r = k / TAPS, t = k % TAPS;
        if (!(s.row_inside[r][j] & x.inside[t][j])) continue;
        acc_t value[VEC];
        load_channels(image + s.row_at[r][j] + x.at[t][j], width, value);
        const acc_t weight = s.row_weight[r][j] * x.weight[t][j];
        SIMD for (int v = 0; v < width; ++v) sum[v] = fused(weight, value[v], sum[v]);
    }
}

// grad[d][j] += sum over channels of out_grad * d(sample j) / d(coordinate d): a dot product for each tap.
DEVICE void coordinate_gradient(const Samples& s, int j, const scalar_t* image, int width, const acc_t* out_grad,
                                acc_t grad[][TILE]) {
    const Axis& x = s.axis[NDIM - 1];
    UNROLL for (int r = 0; r < ROWS; ++r) {
        acc_t value = 0, slope = 0;
        UNROLL for (int t = 0; t < TAPS; ++t) {
            if (!(s.row_inside[r][j] & x.inside[t][j])) continue;
            acc_t channel[VEC], dot = 0;
            load_channels(image + s.row_at[r][j] + x.at[t][j], width, channel);
            SIMD_SUM(dot) for (int v = 0; v < width; ++v) dot = fused(out_grad[v], channel[v], dot);
            value = fused(x.weight[t][j], dot, value);
            slope = fused(x.slope[t][j], dot, slope);
        }
        UNROLL for (int d = 0; d < NDIM - 1; ++d) grad[d][j] += s.row_slope[d][r][j] * value;
        grad[NDIM - 1][j] += s.row_weight[r][j] * slope;
    }
}

// The adjoint of sample_channels.
DEVICE void scatter_channels(const Samples& s, int j, acc_t* image, int width, const acc_t* out_grad) {
    const Axis& x = s.axis[NDIM - 1];
    UNROLL for (int k = 0; k < ROWS * TAPS; ++k) {
        const int r = k / TAPS, t = k % TAPS;
        if (!(s.row_inside[r][j] & x.inside[t][j])) continue;
        acc_t* target = image + s.row_at[r][j] + x.at[t][j];
        const acc_t weight = s.row_weight[r][j] * x.weight[t][j];
        SIMD for (int v = 0; v < width; ++v) add_to(target + v, weight * out_grad[v]);
    }
}
