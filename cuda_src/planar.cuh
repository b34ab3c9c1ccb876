// Planar: GROUP channels at a time, one row of taps after the other.
//
// WINDOW says what makes a row one contiguous load: nothing (0), neighbouring pixels of a channel (1), or pixels whose
// GROUP channels are all there is, interleaved (2).

constexpr int LINE = WINDOW == 2 ? TAPS * GROUP : TAPS, LINES = WINDOW == 2 ? 1 : GROUP;
struct Row {  // of one channel, or of all with WINDOW == 2
    scalar_t tap[LINE];
};
constexpr int ROW_SPACE = WINDOW != 2 ? TAPS : LINE <= 2 ? 2 : LINE <= 4 ? 4 : LINE <= 8 ? 8 : 16;

constexpr int FLIGHT = !STORED ? 1 : ROWS < 4 ? ROWS : 4;  // rows worked on together

// Rows that are as large as a word: gathered, or put together in registers for a few samples at a time, where what these
// read is in the nearest cache for their next row, even if rows of the image are a power of two of bytes apart.
constexpr bool WORDS = TILE > 1 && WINDOW != 0 && ROW_SPACE == LINE &&
                       (sizeof(Row) == sizeof(unsigned) || sizeof(Row) == sizeof(long long));
constexpr bool GATHERED = WORDS && GATHERS;
constexpr bool BUILT = WORDS && !GATHERS && sizeof(Row) == sizeof(long long) && TILE % 16 == 0 && ROWS * TILE <= 128;
constexpr int PART = BUILT ? 16 : TILE;  // samples whose rows are loaded together

// One row of such samples.
struct Window {
    scalar_t value[LINES][PART][ROW_SPACE];
};

DEVICE const scalar_t& tap_of(const Window& w, int c, int t, int j) {
    return WINDOW == 2 ? w.value[0][j][t * GROUP + c] : w.value[c][j][t];
}

// Samples in one round of a loop over a tile: of a single plane each does less than the loop itself.
constexpr int BURST = LINES == 1 && TILE % 16 == 0 ? 8 : 1;

// Ask for the lines of the cache that each sample of a tile will begin at.
template <typename T> DEVICE void fetch(const index_t* at, T* const* plane) {
    for (int j = 0; j < TILE / EACH; j += BURST) {
        UNROLL for (int i = j; i < j + BURST; ++i) {
            UNROLL for (int c = 0; c < LINES; ++c) PREFETCH_FAR(plane[c] + at[i]);
        }
    }
}

template <typename T> struct Word {
    T bits;
} __attribute__((packed, may_alias));

template <typename T> DEVICE T word_at(const scalar_t* from) { return ((const Word<T>*)from)->bits; }

template <typename T> DEVICE void gather(const scalar_t* plane, const index_t* at, scalar_t* row) {
    T word[PART];
    SIMD for (int j = 0; j < PART; ++j) word[j] = word_at<T>(plane + at[j]);
    __builtin_memcpy(row, word, sizeof word);
}

#ifdef CUDAKIT_HOST
typedef long long words_t __attribute__((vector_size(64)));

DEVICE void build(const scalar_t* plane, const index_t* at, scalar_t* row) {
    constexpr int size = 8;
    UNROLL for (int j = 0; j < PART; j += size, at += size, row += size * LINE) {
        const auto word = [&](int i) { return word_at<long long>(plane + at[i]); };
        const words_t words = {word(0), word(1), word(2), word(3), word(4), word(5), word(6), word(7)};
        __builtin_memcpy(row, &words, sizeof words);
    }
}
#endif

// Row r of the samples from `first` on.
template <bool CHECKED>
DEVICE void load_row(const Samples& s, const scalar_t* const* plane, int r, int first, Window& window) {
    const Axis& x = s.axis[NDIM - 1];
    index_t start[PART];
    SIMD for (int j = 0; j < PART; ++j) {
        start[j] = row_at(s, r, first + j) + (WINDOW ? x.at[0][first + j] : index_t(0));
    }
#ifdef CUDAKIT_HOST
    if constexpr (GATHERED || BUILT) {
        UNROLL for (int c = 0; c < LINES; ++c) {
            if (BUILT) {
                build(plane[c], start, window.value[c][0]);
            } else if (sizeof(Row) == sizeof(unsigned)) {
                gather<unsigned>(plane[c], start, window.value[c][0]);
            } else {
                gather<long long>(plane[c], start, window.value[c][0]);
            }
        }
        return;
    }
#endif
    for (int begin = 0; begin < PART; begin += BURST) {
        UNROLL for (int j = begin; j < begin + BURST; ++j) {
            const index_t at = start[j];
            UNROLL for (int c = 0; c < LINES; ++c) {
                if (WINDOW) {
                    *(Row*)window.value[c][j] = *(const Row*)(plane[c] + at);
                } else {
                    UNROLL for (int t = 0; t < TAPS; ++t) {
                        const bool inside = !CHECKED || (row_inside(s, r, first + j) & x.inside[t][first + j]);
                        window.value[c][j][t] = inside ? plane[c][at + x.at[t][first + j]] : scalar_t();
                    }
                }
            }
            SCALAR_LOOP;
        }
    }
}

// Tap t of sample `first` + j.
template <bool CHECKED>
DEVICE acc_t tap_value(const Samples& s, const Window& window, int r, int c, int t, int first, int j) {
    const acc_t value = widen(tap_of(window, c, t, j));
    return CHECKED ? keep(value, row_inside(s, r, first + j) & s.axis[NDIM - 1].inside[t][first + j]) : value;
}

// sum[c][j] = sample j in the channel plane[c].
template <bool CHECKED> DEVICE void sample_planes(const Samples& s, const scalar_t* const* plane, acc_t sum[][TILE]) {
    for (int first = 0; first < TILE; first += PART) {
        UNROLL_ROWS for (int r = 0; r < ROWS; ++r) {
            Window window;
            load_row<CHECKED>(s, plane, r, first, window);
            SIMD for (int k = 0; k < PART; ++k) {
                const int j = first + k;
                UNROLL for (int c = 0; c < GROUP; ++c) {
                    acc_t value = 0;
                    UNROLL for (int t = 0; t < TAPS; ++t) {
                        value = fused(weight_along(s, t, j), tap_value<CHECKED>(s, window, r, c, t, first, k), value);
                    }
                    sum[c][j] = fused(row_weight(s, r, j), value, r == 0 ? acc_t(0) : sum[c][j]);
                }
            }
        }
    }
}

// Whether a pixel's channels may be read as a vector of PIXEL: they are neighbours, and behind every tap another pixel
// follows in its row. Numbers of 16 bits take widening, which is cheaper for a vector of samples.
constexpr int PIXEL = 4;
DEVICE bool fits_pixels(const Samples& s, long long width) {
    if (WINDOW != 2 || sizeof(scalar_t) < 4 || !s.whole) return false;
    const index_t last = (index_t)(width - 1) * GROUP;
    int room = 1;
    SIMD for (int j = 0; j < TILE; ++j) room &= s.axis[NDIM - 1].at[TAPS - 1][j] < last;
    return room;
}

// sample_planes<false> to the same bits, by pixels.
DEVICE void sample_pixels(const Samples& s, const scalar_t* image, acc_t sum[][TILE]) {
    const Axis& x = s.axis[NDIM - 1];
    acc_t pixel[TILE][PIXEL];
    for (int j = 0; j < TILE; ++j) {
        for (int first = 0; first < ROWS; first += FLIGHT) {
            SIMD for (int v = 0; v < PIXEL; ++v) {
                acc_t total = first == 0 ? acc_t(0) : pixel[j][v];
                UNROLL for (int r = first; r < first + FLIGHT; ++r) {
                    const scalar_t* row = image + row_at(s, r, j) + x.at[0][j];
                    acc_t value = 0;
                    UNROLL for (int t = 0; t < TAPS; ++t) {
                        value = fused(weight_along(s, t, j), widen(row[t * GROUP + v]), value);
                    }
                    total = fused(row_weight(s, r, j), value, total);
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
    for (int first = 0; first < TILE; first += PART) {
        UNROLL_ROWS for (int r = 0; r < ROWS; ++r) {
            Window window;
            load_row<CHECKED>(s, plane, r, first, window);
            SIMD for (int k = 0; k < PART; ++k) {
                const int j = first + k;
                acc_t value = 0, slope = 0;
                UNROLL for (int t = 0; t < TAPS; ++t) {
                    acc_t dot = 0;
                    UNROLL for (int c = 0; c < GROUP; ++c) {
                        dot = fused(out_grad[c][j], tap_value<CHECKED>(s, window, r, c, t, first, k), dot);
                    }
                    value = fused(x.weight[t][j], dot, value);
                    slope = fused(x.slope[t][j], dot, slope);
                }
                UNROLL for (int d = 0; d < NDIM - 1; ++d) grad[d][j] = fused(row_slope(s, d, r, j), value, grad[d][j]);
                grad[NDIM - 1][j] = fused(row_weight(s, r, j), slope, grad[NDIM - 1][j]);
            }
        }
    }
}

// plane_gradients<false>, likewise: the slopes of a pixel's channels are vectors.
DEVICE void pixel_gradients(const Samples& s, const scalar_t* image, const acc_t out_grad[][TILE], acc_t grad[][TILE]) {
    const Axis& x = s.axis[NDIM - 1];
    acc_t slopes[NDIM][TILE][PIXEL];
    for (int j = 0; j < TILE; ++j) {
        for (int first = 0; first < ROWS; first += FLIGHT) {
            SIMD for (int v = 0; v < PIXEL; ++v) {
                acc_t slope0 = 0, slope1 = 0, slope2 = 0;
                UNROLL for (int r = first; r < first + FLIGHT; ++r) {
                    const scalar_t* row = image + row_at(s, r, j) + x.at[0][j];
                    acc_t value = 0, slope = 0;
                    UNROLL for (int t = 0; t < TAPS; ++t) {
                        const acc_t tap = widen(row[t * GROUP + v]);
                        value = fused(x.weight[t][j], tap, value);
                        slope = fused(x.slope[t][j], tap, slope);
                    }
                    if (NDIM > 1) slope0 = fused(row_slope(s, 0, r, j), value, slope0);
                    if (NDIM > 2) slope1 = fused(row_slope(s, NDIM > 2, r, j), value, slope1);
                    slope2 = fused(row_weight(s, r, j), slope, slope2);
                }
                if (NDIM > 1) slopes[0][j][v] = first == 0 ? slope0 : slopes[0][j][v] + slope0;
                if (NDIM > 2) slopes[NDIM > 2][j][v] = first == 0 ? slope1 : slopes[NDIM > 2][j][v] + slope1;
                slopes[NDIM - 1][j][v] = first == 0 ? slope2 : slopes[NDIM - 1][j][v] + slope2;
            }
        }
        SCALAR_LOOP;
    }
    UNROLL for (int d = 0; d < NDIM; ++d) {
        SIMD for (int j = 0; j < TILE; ++j) {
            UNROLL for (int c = 0; c < GROUP; ++c) grad[d][j] = fused(out_grad[c][j], slopes[d][j][c], grad[d][j]);
        }
    }
}

// The adjoint of sample_planes. `count` channels of the group exist; what the others would add is zero.
//
// Neighbouring samples add to the same elements, and each addition waits for the one before: samples of STREAMS distant
// parts of the tile take turns, with several rows of each together. Planes do not: they often are a multiple of 4096
// bytes apart, where processors take addresses of one for those of another.
constexpr int STREAMS = TILE > 16 ? 16 / FLIGHT : 1;

struct Line {  // as `Row`, of sums
    acc_t tap[LINE];
};

DEVICE void add_line(acc_t* to, const acc_t* share) {
    Line line = *(const Line*)to;
    UNROLL for (int t = 0; t < LINE; ++t) line.tap[t] += share[t];
    *(Line*)to = line;
}

template <bool CHECKED>
DEVICE void scatter_planes(const Samples& s, const acc_t out_grad[][TILE], acc_t* const* plane, int count) {
    const Axis& x = s.axis[NDIM - 1];
    UNROLL_ROWS for (int first = 0; first < ROWS; first += FLIGHT) {
        acc_t share[FLIGHT][LINES][TILE][LINE];
        UNROLL for (int r = 0; r < FLIGHT; ++r) {
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
        UNROLL for (int c = 0; c < LINES; ++c) {
            if (TILE == 1 && c >= count) break;
            for (int k = 0; k < TILE / STREAMS; ++k) {
                UNROLL for (int stream = 0; stream < STREAMS; ++stream) {
                    const int j = k + stream * (TILE / STREAMS);
                    UNROLL for (int r = 0; r < FLIGHT; ++r) {
                        acc_t* row = plane[c] + row_at(s, first + r, j);
                        if (WINDOW) {
                            add_line(row + x.at[0][j], share[r][c][j]);
                            continue;
                        }
                        UNROLL for (int t = 0; t < TAPS; ++t) {
                            if (TILE == 1 && !(row_inside(s, first + r, j) & x.inside[t][j])) continue;
                            add_to(row + x.at[t][j], share[r][c][j][t]);
                        }
                    }
                }
                SCALAR_LOOP;
            }
        }
    }
}
