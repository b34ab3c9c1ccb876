// Rows of taps as planar kernels read them: one short load for each sample and channel.
//
// WINDOW says what makes a row one contiguous load: nothing (0), neighbouring pixels of a channel (1), or pixels whose
// GROUP channels are all there is, interleaved (2). NEAR says that images are small, and only sampled.

constexpr int ROW_LENGTH = WINDOW == 2 ? TAPS * GROUP : TAPS, LINES = WINDOW == 2 ? 1 : GROUP;
struct Row {  // of one channel, or of all with WINDOW == 2
    scalar_t tap[ROW_LENGTH];
};
constexpr int ROW_SPACE = WINDOW != 2 ? TAPS : ROW_LENGTH <= 2 ? 2 : ROW_LENGTH <= 4 ? 4 : ROW_LENGTH <= 8 ? 8 : 16;

constexpr int FLIGHT = !STORED ? 1 : ROWS < 4 ? ROWS : 4;  // rows worked on together

// What those before `first` and those from there on make together.
DEVICE acc_t joined(int first, acc_t before, acc_t part) { return first == 0 ? part : before + part; }

// Rows that are as large as a word: gathered, or put together in registers for a few samples at a time, where what
// these read is in the nearest cache for their next row, even if rows of the image are a power of two of bytes apart.
constexpr bool WORDS = TILE > 1 && WINDOW != 0 && ROW_SPACE == ROW_LENGTH &&
                       (sizeof(Row) == sizeof(unsigned) || sizeof(Row) == sizeof(long long));
constexpr bool SHORT = WORDS && sizeof(Row) == sizeof(long long) && TILE % 16 == 0 && ROWS * TILE <= 128;
constexpr bool GATHERED = WORDS && (GATHERS == 2 || (GATHERS == 1 && SHORT && (GROUP == 1 || NEAR)));
constexpr bool COPIED = MODE == NEAREST && !GATHERED;  // a sample is an element as it is
constexpr bool BUILT = SHORT && !GATHERED;

// Words of two numbers are put together so that their firsts and seconds come apart in one shuffle each. In vectors of
// 64 bytes one permutation does likewise.
#if defined(__AVX__) && !defined(__AVX512F__)
constexpr bool APART = BUILT && ROW_LENGTH == 2;
#else
constexpr bool APART = false;
#endif

// Rows of a sample that are as far from its first one as those of any other: where it begins is one number for all rows
// and planes.
constexpr bool LEVEL = BUILT && WINDOW == 1 && MODE == LINEAR && NDIM > 1;

// Samples that are loaded together: of level rows as many as there are registers for such numbers.
constexpr int PART = APART && LEVEL ? 8 : BUILT || (SHORT && GATHERS == 1 && GROUP == 1) ? 16 : TILE;

// One row of such samples.
template <int lines> struct Window {
    scalar_t value[lines][APART ? ROW_LENGTH : PART][APART ? PART : ROW_SPACE];
};

template <int lines> DEVICE const scalar_t& tap_of(const Window<lines>& w, int c, int t, int j) {
    const int line = WINDOW == 2 ? 0 : c, place = WINDOW == 2 ? t * GROUP + c : t;
    return APART ? w.value[line][place][j] : w.value[line][j][place];
}

// Samples in one round of a loop over a tile: of a single plane each does less than the loop itself. Of pixels it does
// more, and what GCC keeps for so many at a time goes to memory.
constexpr int BURST = LINES == 1 && WINDOW != 2 && TILE % 16 == 0 ? 8 : 1;

// Ask for the lines of the cache that each sample of a tile will begin at.
template <typename P> DEVICE void fetch(const index_t* at, const P* plane) {
    RELOAD(at);  // else all are widened and stored before the loop over channels, even if it has one round
    for (int j = 0; j < TILE; j += EACH * BURST) {
        UNROLL for (int i = j; i < j + EACH * BURST; i += EACH) {
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
typedef long long octet_t __attribute__((vector_size(64)));

DEVICE void build(const scalar_t* plane, const index_t* at, scalar_t* row) {
    constexpr int size = 8;
    UNROLL for (int j = 0; j < PART; j += size, at += size, row += size * ROW_LENGTH) {
        const auto word = [&](int i) { return word_at<long long>(plane + at[i]); };
        const octet_t words = {word(0), word(1), word(2), word(3), word(4), word(5), word(6), word(7)};
        __builtin_memcpy(row, &words, sizeof words);
    }
}

typedef long long pairs_t __attribute__((vector_size(32)));
typedef float firsts_t __attribute__((vector_size(32)));

// The same, apart. Shuffles stay within 16 bytes, so each 16 bytes of either vector get two of four neighbours.
DEVICE void build_apart(const scalar_t* plane, const index_t* at, scalar_t* first, scalar_t* second) {
    constexpr int size = 8;
    UNROLL for (int j = 0; j < PART; j += size, at += size) {
        const auto word = [&](int i) { return word_at<long long>(plane + (uindex_t)at[i]); };  // none is negative
        const pairs_t a = {word(0), word(1), word(4), word(5)}, b = {word(2), word(3), word(6), word(7)};
#ifdef __clang__
        const firsts_t even = __builtin_shufflevector((firsts_t)a, (firsts_t)b, 0, 2, 8, 10, 4, 6, 12, 14);
        const firsts_t odd = __builtin_shufflevector((firsts_t)a, (firsts_t)b, 1, 3, 9, 11, 5, 7, 13, 15);
#else
        typedef int order_t __attribute__((vector_size(32)));
        const firsts_t even = __builtin_shuffle((firsts_t)a, (firsts_t)b, order_t{0, 2, 8, 10, 4, 6, 12, 14});
        const firsts_t odd = __builtin_shuffle((firsts_t)a, (firsts_t)b, order_t{1, 3, 9, 11, 5, 7, 13, 15});
#endif
        __builtin_memcpy(first + j, &even, sizeof even);
        __builtin_memcpy(second + j, &odd, sizeof odd);
    }
}
#endif

// Where row r of the samples from `first` on begins.
DEVICE void find_row(const Samples& s, int r, int first, index_t* start) {
    SIMD for (int j = 0; j < PART; ++j) {
        start[j] = row_at(s, r, first + j) + (WINDOW ? s.axis[NDIM - 1].at[0][first + j] : index_t(0));
    }
}

// What `start` counts from in row r.
DEVICE const scalar_t* level_row(const Samples& s, const scalar_t* plane, int r) {
    return LEVEL ? plane + (row_at(s, r, 0) - row_at(s, 0, 0)) : plane;
}

// Row r of the samples from `first` on, which begins at `start`, as the first row does where LEVEL.
template <bool CHECKED, int lines> DEVICE void load_row(const Samples& s, const scalar_t* const* plane, int r,
                                                        int first, const index_t* start, Window<lines>& window) {
    const Axis& x = s.axis[NDIM - 1];
#ifdef CUDAKIT_HOST
    if constexpr (GATHERED || BUILT) {
        UNROLL for (int c = 0; c < lines; ++c) {
            if constexpr (APART) {
                build_apart(level_row(s, plane[c], r), start, window.value[c][0], window.value[c][1]);
            } else if (BUILT) {
                build(level_row(s, plane[c], r), start, window.value[c][0]);
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
            UNROLL for (int c = 0; c < lines; ++c) {
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
template <bool CHECKED, int lines>
DEVICE acc_t tap_value(const Samples& s, const Window<lines>& window, int r, int c, int t, int first, int j) {
    const acc_t value = widen(tap_of(window, c, t, j));
    return CHECKED ? keep(value, row_inside(s, r, first + j) & s.axis[NDIM - 1].inside[t][first + j]) : value;
}
