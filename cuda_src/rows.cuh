// Rows of taps as planar kernels read them: one short load for each sample and channel.
//
// WINDOW says what makes a row one contiguous load: nothing (0), neighbouring pixels of a channel (1), or pixels whose
// GROUP channels are all there is, interleaved (2). NEAR says that images are small, and only sampled.

// Elements of a row, and the planes that each have one: with WINDOW == 2 all channels share theirs.
constexpr int ROW_LENGTH = WINDOW == 2 ? TAPS * GROUP : TAPS, PLANES = WINDOW == 2 ? 1 : GROUP;
struct Row {
    scalar_t tap[ROW_LENGTH];
};

constexpr int PADDED_ROW_LENGTH = WINDOW == 2 ? next_power_of_two(ROW_LENGTH) : TAPS;

constexpr int ROWS_TOGETHER = !STORED ? 1 : ROWS < 4 ? ROWS : 4;  // rows worked on together

// A sum over rows, of which `part` has those from `first` on, and `before` those before.
DEVICE acc_t accumulated(int first, acc_t before, acc_t part) { return first == 0 ? part : before + part; }

// Rows that are as large as a word are gathered, or assembled in registers for a few samples at a time, where what
// these read is in the nearest cache for their next row, even if rows of the image are a power of two of bytes apart.
constexpr bool ROW_IS_WORD = TILE > 1 && WINDOW != 0 && PADDED_ROW_LENGTH == ROW_LENGTH &&
                             (sizeof(Row) == sizeof(unsigned) || sizeof(Row) == sizeof(long long));
constexpr bool FEW_WORDS = ROW_IS_WORD && sizeof(Row) == sizeof(long long) && TILE % 16 == 0 && ROWS * TILE <= 128;
constexpr bool GATHERED = ROW_IS_WORD && (GATHERS == 2 || (GATHERS == 1 && FEW_WORDS && (GROUP == 1 || NEAR)));
constexpr bool ASSEMBLED = FEW_WORDS && !GATHERED;
constexpr bool COPIED = MODE == NEAREST && !GATHERED;  // a sample is an element as it is

// Words of two numbers are assembled so that their firsts and seconds come apart in one shuffle each. In vectors of
// 64 bytes one permutation does likewise.
#if defined(__AVX__) && !defined(__AVX512F__)
constexpr bool DEINTERLEAVED = ASSEMBLED && ROW_LENGTH == 2;
#else
constexpr bool DEINTERLEAVED = false;
#endif

// A sample's rows are as far from its first one as those of any other sample: where it begins is one number for all
// rows and planes.
constexpr bool SHARED_START = ASSEMBLED && WINDOW == 1 && MODE == LINEAR && NDIM > 1;

// Samples of a tile that are loaded together: with SHARED_START as many as there are registers for such numbers.
constexpr int LOADED_WORDS = DEINTERLEAVED && SHARED_START ? 8 : 16;
constexpr int SUBTILE = ASSEMBLED || (FEW_WORDS && GATHERS == 1 && GROUP == 1) ? LOADED_WORDS : TILE;

// One row of such samples.
template <int planes> struct Window {
    scalar_t value[planes][DEINTERLEAVED ? ROW_LENGTH : SUBTILE][DEINTERLEAVED ? SUBTILE : PADDED_ROW_LENGTH];
};

template <int planes> DEVICE const scalar_t& tap_of(const Window<planes>& w, int c, int t, int j) {
    const int plane = WINDOW == 2 ? 0 : c, place = WINDOW == 2 ? t * GROUP + c : t;
    return DEINTERLEAVED ? w.value[plane][place][j] : w.value[plane][j][place];
}

// Samples in one round of a loop over a tile: of a single plane each does less than the loop itself. Of pixels it does
// more, and what GCC keeps for so many at a time goes to memory.
constexpr int UNROLLED_SAMPLES = PLANES == 1 && WINDOW != 2 && TILE % 16 == 0 ? 8 : 1;

// Ask for the lines of the cache that each sample of a tile will begin at.
template <typename P> DEVICE void fetch(const index_t* at, const P* plane) {
    RELOAD(at);  // else all are widened and stored before the loop over channels, even if it has one round
    for (int j = 0; j < TILE; j += FETCH_STRIDE * UNROLLED_SAMPLES) {
        UNROLL for (int i = j; i < j + FETCH_STRIDE * UNROLLED_SAMPLES; i += FETCH_STRIDE) {
            UNROLL for (int c = 0; c < PLANES; ++c) PREFETCH_FAR(plane[c] + at[i]);
        }
    }
}

template <typename T> struct Word {
    T bits;
} __attribute__((packed, may_alias));

template <typename T> DEVICE T word_at(const scalar_t* from) { return ((const Word<T>*)from)->bits; }

template <typename T> DEVICE void gather(const scalar_t* plane, const index_t* at, scalar_t* row) {
    T word[SUBTILE];
    SIMD for (int j = 0; j < SUBTILE; ++j) word[j] = word_at<T>(plane + at[j]);
    __builtin_memcpy(row, word, sizeof word);
}

#ifdef CUDAKIT_HOST
typedef long long eight_words_t __attribute__((vector_size(64)));

DEVICE void assemble(const scalar_t* plane, const index_t* at, scalar_t* row) {
    constexpr int size = 8;
    UNROLL for (int j = 0; j < SUBTILE; j += size, at += size, row += size * ROW_LENGTH) {
        const auto word = [&](int i) { return word_at<long long>(plane + at[i]); };
        const eight_words_t words = {word(0), word(1), word(2), word(3), word(4), word(5), word(6), word(7)};
        __builtin_memcpy(row, &words, sizeof words);
    }
}

typedef long long four_words_t __attribute__((vector_size(32)));
typedef float floats_t __attribute__((vector_size(32)));

// The same, apart. Shuffles stay within 16 bytes, so each 16 bytes of either vector get two of four neighbours.
DEVICE void assemble_deinterleaved(const scalar_t* plane, const index_t* at, scalar_t* first, scalar_t* second) {
    constexpr int size = 8;
    UNROLL for (int j = 0; j < SUBTILE; j += size, at += size) {
        const auto word = [&](int i) { return word_at<long long>(plane + (uindex_t)at[i]); };  // none is negative
        const four_words_t a = {word(0), word(1), word(4), word(5)}, b = {word(2), word(3), word(6), word(7)};
#ifdef __clang__
        const floats_t even = __builtin_shufflevector((floats_t)a, (floats_t)b, 0, 2, 8, 10, 4, 6, 12, 14);
        const floats_t odd = __builtin_shufflevector((floats_t)a, (floats_t)b, 1, 3, 9, 11, 5, 7, 13, 15);
#else
        typedef int order_t __attribute__((vector_size(32)));
        const floats_t even = __builtin_shuffle((floats_t)a, (floats_t)b, order_t{0, 2, 8, 10, 4, 6, 12, 14});
        const floats_t odd = __builtin_shuffle((floats_t)a, (floats_t)b, order_t{1, 3, 9, 11, 5, 7, 13, 15});
#endif
        __builtin_memcpy(first + j, &even, sizeof even);
        __builtin_memcpy(second + j, &odd, sizeof odd);
    }
}
#endif

// Where row r of the samples from `first` on begins.
DEVICE void find_row(const Samples& s, int r, int first, index_t* start) {
    SIMD for (int j = 0; j < SUBTILE; ++j) {
        start[j] = row_at(s, r, first + j) + (WINDOW ? s.axis[NDIM - 1].at[0][first + j] : index_t(0));
    }
}

// What `start` counts from in row r.
DEVICE const scalar_t* shared_row(const Samples& s, const scalar_t* plane, int r) {
    return SHARED_START ? plane + (row_at(s, r, 0) - row_at(s, 0, 0)) : plane;
}

// Row r of the samples from `first` on, which begins at `start`, as the first row does where SHARED_START.
template <bool CHECKED, int planes> DEVICE void load_row(const Samples& s, const scalar_t* const* plane, int r,
                                                         int first, const index_t* start, Window<planes>& window) {
    const Axis& x = s.axis[NDIM - 1];
#ifdef CUDAKIT_HOST
    if constexpr (GATHERED || ASSEMBLED) {
        UNROLL for (int c = 0; c < planes; ++c) {
            if constexpr (DEINTERLEAVED) {
                assemble_deinterleaved(shared_row(s, plane[c], r), start, window.value[c][0], window.value[c][1]);
            } else if (ASSEMBLED) {
                assemble(shared_row(s, plane[c], r), start, window.value[c][0]);
            } else if (sizeof(Row) == sizeof(unsigned)) {
                gather<unsigned>(plane[c], start, window.value[c][0]);
            } else {
                gather<long long>(plane[c], start, window.value[c][0]);
            }
        }
        return;
    }
#endif
    for (int begin = 0; begin < SUBTILE; begin += UNROLLED_SAMPLES) {
        UNROLL for (int j = begin; j < begin + UNROLLED_SAMPLES; ++j) {
            const index_t at = start[j];
            UNROLL for (int c = 0; c < planes; ++c) {
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
template <bool CHECKED, int planes>
DEVICE acc_t tap_value(const Samples& s, const Window<planes>& window, int r, int c, int t, int first, int j) {
    const acc_t value = widen(tap_of(window, c, t, j));
    return CHECKED ? keep(value, row_inside(s, r, first + j) & s.axis[NDIM - 1].inside[t][first + j]) : value;
}
