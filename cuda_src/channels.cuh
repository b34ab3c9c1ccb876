// Channels next to each other. `width` <= VEC of them; on a GPU all VEC, aligned to the size of a pack.
struct alignas(PACKS ? VEC * sizeof(scalar_t) : sizeof(scalar_t)) Pack {
    scalar_t value[VEC];
};

DEVICE void load_channels(const scalar_t* from, int width, acc_t* to) {
    if (PACKS) {
        const Pack pack = *(const Pack*)from;
        UNROLL for (int v = 0; v < VEC; ++v) to[v] = widen(pack.value[v]);
    } else {
        load_line<VEC>(from, 1, width, to);
    }
}

DEVICE void store_channels(const acc_t* from, int width, scalar_t* to) {
    if (PACKS) {
        Pack pack;
        UNROLL for (int v = 0; v < VEC; ++v) narrow(from[v], pack.value[v]);
        *(Pack*)to = pack;
    } else {
        store_line<VEC>(from, to, 1, width);
    }
}

// A GPU's threads read all taps of a sample before they make anything of the first: behind branches each read would
// wait for the one before. What is not read is zeros. Numbers of two bytes come in words, for each would take a
// register.
template <typename T, int bytes> struct WordOf {
    typedef T type;
};
template <typename T> struct WordOf<T, 2> {
    typedef unsigned type;
};
typedef WordOf<scalar_t, sizeof(scalar_t)>::type word_t;
struct alignas(alignof(Pack) > alignof(word_t) ? alignof(Pack) : alignof(word_t)) Words {
    word_t word[(sizeof(Pack) + sizeof(word_t) - 1) / sizeof(word_t)];
};

DEVICE Words load_words(const scalar_t* from, index_t at, int read) {
    Words words = {};
    if (read) words = *(const Words*)(from + at);
    return words;
}

template <typename T> DEVICE T number(const T* word, int v) { return word[v]; }
template <typename T> DEVICE T number(const unsigned* word, int v) {
    return {(unsigned short)(word[v / 2] >> 16 * (v % 2))};
}

// sum[v] += factor * words[v]
DEVICE void add_words(acc_t factor, const Words& words, acc_t* sum) {
    UNROLL for (int v = 0; v < VEC; ++v) sum[v] = fused(factor, widen(number<scalar_t>(words.word, v)), sum[v]);
}

// sum + the products of both, added up.
DEVICE acc_t add_dot(const acc_t* value, const Words& words, acc_t sum) {
    UNROLL for (int v = 0; v < VEC; ++v) sum = fused(value[v], widen(number<scalar_t>(words.word, v)), sum);
    return sum;
}

// target[v] += factor * value[v] for `width` channels; on a GPU all VEC, whose targets are aligned to the size of a
// pack.
template <typename P, typename T> DEVICE void add_channels(P target, T factor, const T* value, int width) {
    if constexpr (ADDS_FOUR && PACKS && VEC % 4 == 0 && sizeof(sum_t) == 4) {
        UNROLL for (int v = 0; v < VEC; v += 4) {
            add_four(target + v, factor * value[v], factor * value[v + 1], factor * value[v + 2],
                     factor * value[v + 3]);
        }
    } else {
        SIMD for (int v = 0; v < width; ++v) add_to(target + v, factor * value[v]);
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
DEVICE acc_t* load_tile(const scalar_t* from, index_t channel_stride, index_t pixel_stride, int count, int width,
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

DEVICE int tap_inside(const Samples& s, int r, int t, int j) {
    return row_inside(s, r, j) & s.axis[NDIM - 1].inside[t][j];
}

// The taps of PASS rows of a GPU's sample, which is a tile of its own.
DEVICE void load_taps(const Samples& s, int r0, const scalar_t* image, Words* pixel) {
    UNROLL for (int k = 0; k < PASS * TAPS; ++k) {
        const int r = r0 + k / TAPS, t = k % TAPS;
        pixel[k] = load_words(image, row_at(s, r, 0) + s.axis[NDIM - 1].at[t][0], tap_inside(s, r, t, 0));
    }
}

// sum[v] = sample j in the channels image[0] ... image[width - 1].
DEVICE void sample_channels(const Samples& s, int j, const scalar_t* image, int width, acc_t* sum) {
    const Axis& x = s.axis[NDIM - 1];
    if (!PACKS && (s.whole || is_inside(s, j))) {
        for (int r0 = 0; r0 < ROWS; r0 += PASS) {
            const scalar_t* tap[PASS * TAPS];
            acc_t weight[PASS * TAPS];
            UNROLL for (int k = 0; k < PASS * TAPS; ++k) {
                const int r = r0 + k / TAPS, t = k % TAPS;
                tap[k] = image + row_at(s, r, j) + x.at[t][j];
                weight[k] = row_weight(s, r, j) * weight_along(s, t, j);
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
    if constexpr (PACKS) {
        UNROLL_ROWS for (int r0 = 0; r0 < ROWS; r0 += PASS) {
            Words pixel[PASS * TAPS];
            load_taps(s, r0, image, pixel);
            UNROLL for (int k = 0; k < PASS * TAPS; ++k) {
                const int r = r0 + k / TAPS, t = k % TAPS;
                if (!tap_inside(s, r, t, j)) continue;  // its weight may be a NaN
                add_words(row_weight(s, r, j) * weight_along(s, t, j), pixel[k], sum);
            }
        }
    } else {
        UNROLL_ROWS for (int r = 0; r < ROWS; ++r) {
            UNROLL for (int t = 0; t < TAPS; ++t) {
                if (!tap_inside(s, r, t, j)) continue;
                acc_t value[VEC];
                load_channels(image + row_at(s, r, j) + x.at[t][j], width, value);
                const acc_t weight = row_weight(s, r, j) * weight_along(s, t, j);
                SIMD for (int v = 0; v < width; ++v) sum[v] = fused(weight, value[v], sum[v]);
            }
        }
    }
}

// Where taps are side by side in memory, a sum over channels is kept as SUMS of them until the end: compilers add up
// the lanes of a SIMD reduction one after the other.
DEVICE constexpr int sums_for(int width, int sums) {
    return width && width <= sums / 2 ? sums_for(width, sums / 2) : sums;
}
constexpr int SUMS = TILE > 1 ? sums_for(WIDTH, 64 / (int)sizeof(acc_t)) : 1;

// Calls visit(v, l) for each channel v, which is to be added to sum l.
template <typename F> DEVICE void for_channels(int width, F visit) {
    int v = 0;
    for (; v + SUMS <= width; v += SUMS) {
        SIMD for (int l = 0; l < SUMS; ++l) visit(v + l, l);
    }
    if constexpr (SUMS > 1) {
        SIMD for (int l = 0; l < width - v; ++l) visit(v + l, l);
    }
}

// Of such sums PARTS are left, which are added up in the end for many samples side by side.
constexpr int PARTS = SUMS < 4 ? SUMS : 4;

// to[k * step] += sum[k].
template <int count> DEVICE void add_parts(const acc_t sum[][SUMS], acc_t (*to)[PARTS], int step) {
    UNROLL for (int k = 0; k < count; ++k) {
        SIMD for (int l = 0; l < PARTS; ++l) {
            acc_t part = sum[k][l];
            UNROLL for (int i = PARTS; i < SUMS; i += PARTS) part += sum[k][i + l];
            to[k * step][l] += part;
        }
    }
}

DEVICE acc_t whole_of(const acc_t* parts) {
    acc_t sum = parts[0];
    UNROLL for (int l = 1; l < PARTS; ++l) sum += parts[l];
    return sum;
}

// A sample's slopes in one channel: `slope2` along the last dimension, `slope0` along the first one of several,
// `slope1` along the middle one of three.
struct Derivative {
    acc_t slope0, slope1, slope2;
};

// What the rows r0 ... r0 + PASS - 1 of sample j contribute in channel v.
DEVICE Derivative derivative(const Samples& s, int j, int r0, const scalar_t* const* tap, int v) {
    const Axis& x = s.axis[NDIM - 1];
    Derivative sum = {};
    UNROLL for (int r = 0; r < PASS; ++r) {
        acc_t value = 0, slope = 0;
        UNROLL for (int t = 0; t < TAPS; ++t) {
            const acc_t pixel = widen(tap[r * TAPS + t][v]);
            value = fused(x.weight[t][j], pixel, value);
            slope = fused(x.slope[t][j], pixel, slope);
        }
        if (NDIM > 1) sum.slope0 = fused(row_slope(s, 0, r0 + r, j), value, sum.slope0);
        if (NDIM > 2) sum.slope1 = fused(row_slope(s, MIDDLE, r0 + r, j), value, sum.slope1);
        sum.slope2 = fused(row_weight(s, r0 + r, j), slope, sum.slope2);
    }
    return sum;
}

// sum[d][l] += factor * slopes.
DEVICE void add_slopes(acc_t factor, const Derivative& by, int l, acc_t sum[][SUMS]) {
    if (NDIM > 1) sum[0][l] += factor * by.slope0;
    if (NDIM > 2) sum[MIDDLE][l] += factor * by.slope1;
    sum[NDIM - 1][l] += factor * by.slope2;
}

// What a row's sums over its taps, times their weights and their slopes, add to grad.
DEVICE void add_row(const Samples& s, int r, int j, acc_t value, acc_t slope, acc_t grad[][TILE][PARTS]) {
    UNROLL for (int d = 0; d < NDIM - 1; ++d) grad[d][j][0] = fused(row_slope(s, d, r, j), value, grad[d][j][0]);
    grad[NDIM - 1][j][0] = fused(row_weight(s, r, j), slope, grad[NDIM - 1][j][0]);
}

// The same, of a GPU's sample.
DEVICE void add_row_slopes(const Samples& s, int r, const acc_t* out_grad, const Words* pixel,
                           acc_t grad[][TILE][PARTS]) {
    const Axis& x = s.axis[NDIM - 1];
    acc_t value = 0, slope = 0;
    UNROLL for (int t = 0; t < TAPS; ++t) {
        if (!tap_inside(s, r, t, 0)) continue;  // its weight may be a NaN
        const acc_t dot = add_dot(out_grad, pixel[t], acc_t(0));
        value = fused(x.weight[t][0], dot, value);
        slope = fused(x.slope[t][0], dot, slope);
    }
    add_row(s, r, 0, value, slope, grad);
}

// The parts of grad[d][j] += sum over channels of out_grad * d(sample j) / d(coordinate d). Where everything is inside,
// the slopes of all taps are combined for each channel first, so that there is one sum over channels for each d and not
// for each tap.
DEVICE void coordinate_gradient(const Samples& s, int j, const scalar_t* image, int width, const acc_t* out_grad,
                                acc_t grad[][TILE][PARTS]) {
    const Axis& x = s.axis[NDIM - 1];
    if (!PACKS && (s.whole || is_inside(s, j))) {
        acc_t sum[NDIM][SUMS] = {};
        for (int r0 = 0; r0 < ROWS; r0 += PASS) {
            const scalar_t* tap[PASS * TAPS];
            UNROLL for (int k = 0; k < PASS * TAPS; ++k) {
                tap[k] = image + row_at(s, r0 + k / TAPS, j) + x.at[k % TAPS][j];
            }
            for_channels(width, [&](int v, int l) { add_slopes(out_grad[v], derivative(s, j, r0, tap, v), l, sum); });
        }
        add_parts<NDIM>(sum, grad[0] + j, TILE);
        return;
    }
    if constexpr (PACKS) {
        UNROLL_ROWS for (int r0 = 0; r0 < ROWS; r0 += PASS) {
            Words pixel[PASS * TAPS];
            load_taps(s, r0, image, pixel);
            UNROLL for (int r = 0; r < PASS; ++r) add_row_slopes(s, r0 + r, out_grad, pixel + r * TAPS, grad);
        }
    } else {
        UNROLL_ROWS for (int r = 0; r < ROWS; ++r) {
            acc_t value = 0, slope = 0;
            UNROLL for (int t = 0; t < TAPS; ++t) {
                if (!tap_inside(s, r, t, j)) continue;
                acc_t channel[VEC], dot = 0;
                load_channels(image + row_at(s, r, j) + x.at[t][j], width, channel);
                SIMD_SUM(dot) for (int v = 0; v < width; ++v) dot += out_grad[v] * channel[v];
                value = fused(x.weight[t][j], dot, value);
                slope = fused(x.slope[t][j], dot, slope);
            }
            add_row(s, r, j, value, slope, grad);
        }
    }
}

// The adjoint of sample_channels.
DEVICE void scatter_channels(const Samples& s, int j, const Sums& image, int width, const acc_t* out_grad) {
    const Axis& x = s.axis[NDIM - 1];
    UNROLL_ROWS for (int r = 0; r < ROWS; ++r) {
        UNROLL for (int t = 0; t < TAPS; ++t) {
            if (!tap_inside(s, r, t, j)) continue;
            const Sums target = image + row_at(s, r, j) + x.at[t][j];
            const acc_t weight = row_weight(s, r, j) * weight_along(s, t, j);
            add_channels(target, weight, out_grad, width);
        }
    }
}
