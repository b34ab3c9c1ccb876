// Float32 numbers as sums of bfloat16 ones, which a unit of the processor multiplies: of two up to 2^-16 of x, which is
// exact for binary16 numbers, or of three, which is exact for all. bfloat16 numbers are one part, and so are others
// that may be rounded to it. The products x_i y_j of parts that together are as small as what is missing after the last
// are left out: with two parts, 2^-18 of x y at most, with three 2^-25, less than the sums of a float32 product lose.
//
// Operands lie as tiles, one after the other, whose words hold the numbers k and k + 16 of a step of STEP in the sum:
//
//     left   [block of 16 rows][step][part][row][word]      right   [panel of 32 columns][step][part][2][word][column]
#define MEMBER inline __attribute__((always_inline))

constexpr int TILE_WORDS = 256;

typedef float floats_t __attribute__((vector_size(64)));
typedef float loose_floats_t __attribute__((vector_size(64), aligned(4), may_alias));
typedef unsigned words_t __attribute__((vector_size(64), may_alias));

#if TILES
#include "tiles.cuh"
#else
#include "dots.cuh"
#endif

constexpr int STEP = DEPTH_STEP;
constexpr int DATA_PARTS = SPLIT, VALUE_PARTS = SPLIT_VALUES;  // of a number that is stored, and of one worked out

DEVICE index_t steps_of(index_t depth) { return (depth + STEP - 1) / STEP; }

// What is split fits if the largest number of every row of a left operand, and of every column of a right one, does:
// products neither overflow nor, but for those of far smaller numbers, lose parts to underflow, which the units make
// zero. Infinities and NaNs don't fit.
struct Largest {
    words_t bits = {};

    MEMBER void see(floats_t x) {
        const words_t magnitude = (words_t)x & 0x7fffffffu;
        bits = magnitude > bits ? magnitude : bits;
    }
    MEMBER static bool fits(unsigned most) {
        return most == 0 || (most >= as_bits(0x1p-50f) && most < as_bits(0x1p60f));
    }
    MEMBER bool all_fit() const {
        bool all = true;
        for (int i = 0; i < 16; ++i) all &= fits(bits[i]);
        return all;
    }
    MEMBER bool largest_fits() const {
        unsigned most = 0;
        for (int i = 0; i < 16; ++i) most = bits[i] > most ? bits[i] : most;
        return fits(most);
    }
};

// x rounded to bfloat16: (2^16 + 1) x - 2^16 x, in which the lower bits are lost (Dekker, 1971).
DEVICE floats_t rounded(floats_t x) {
    const floats_t scaled = x * 65537.0f;
    return scaled - (scaled - x);
}

// Words of every part of x and y, `stride` words apart.
template <int parts> DEVICE void split(floats_t x, floats_t y, unsigned* to, int stride) {
    UNROLL for (int part = 0; part < parts; ++part, to += stride) {
        const bool rest = part > 0 && part == parts - 1;
        const floats_t a = rest ? x : rounded(x), b = rest ? y : rounded(y);
        *(words_t*)to = (words_t)a >> 16 | ((words_t)b & 0xffff0000u);
        x -= a;
        y -= b;
    }
}

// The first `count` of 16 numbers, zeros after them.
DEVICE floats_t load_some(const float* from, index_t count) {
    if (count >= 16) return *(const loose_floats_t*)from;
    floats_t some = {};
    for (index_t i = 0; i < count; ++i) some[i] = from[i];
    return some;
}

// A left operand from rows of `depth` numbers.
template <int parts> DEVICE bool split_rows(index_t rows, index_t depth, const float* from, index_t row, unsigned* to) {
    const index_t steps = steps_of(depth);
    bool fits = true;
    for (index_t m = 0; m < rows; ++m, from += row) {
        Largest largest;
        unsigned* block = to + m / 16 * steps * parts * TILE_WORDS + m % 16 * 16;
        for (index_t k = 0; k < depth; k += STEP, block += parts * TILE_WORDS) {
            const floats_t x = load_some(from + k, depth - k), y = load_some(from + k + 16, depth - k - 16);
            largest.see(x);
            largest.see(y);
            split<parts>(x, y, block, TILE_WORDS);
        }
        fits &= largest.largest_fits();
    }
    return fits;
}

// A panel of a right operand from `depth` rows of `width` <= 32 numbers.
template <int parts>
DEVICE bool split_panel(index_t depth, index_t width, const float* from, index_t row, unsigned* to) {
    Largest largest[2];
    for (index_t step = 0; step < depth; step += STEP, to += parts * 2 * TILE_WORDS) {
        for (index_t k = 0; k < 16; ++k) {
            for (int half = 0; half < 2; ++half) {
                const float* at = from + (step + k) * row + 16 * half;
                const index_t count = larger(index_t(0), width - 16 * half);
                const floats_t x = load_some(at, step + k < depth ? count : 0);
                const floats_t y = load_some(at + 16 * row, step + k + 16 < depth ? count : 0);
                largest[half].see(x);
                largest[half].see(y);
                split<parts>(x, y, to + half * TILE_WORDS + k * 16, 2 * TILE_WORDS);
            }
        }
    }
    return largest[0].all_fit() & largest[1].all_fit();
}

// A left operand of 32 rows from a right one's panel: two blocks of turned tiles.
template <int parts> DEVICE void turn_panel(index_t depth, const unsigned* panel, unsigned* to) {
    const index_t tiles = steps_of(depth) * parts;
    for (index_t tile = 0; tile < tiles; ++tile) {
        for (int half = 0; half < 2; ++half, panel += TILE_WORDS) {
            unsigned turned[TILE_WORDS], other[TILE_WORDS];
            __builtin_memcpy(turned, panel, sizeof turned);
            __builtin_memcpy(to + (half * tiles + tile) * TILE_WORDS, transpose<16, 16>(turned, other), sizeof turned);
        }
    }
}

// to[m][n] (+)= sum over k of a[m][k] b[k][n] for blocks of 16 rows and panels of 32 columns.
template <int left, int right, bool ADD> DEVICE void multiply_split(index_t rows, index_t columns, index_t depth,
                                                                    const unsigned* a, const unsigned* b, float* to,
                                                                    index_t to_row) {
    const index_t steps = steps_of(depth);
    Unit unit;
    for (index_t n = 0; n < columns; n += 32, b += steps * right * 2 * TILE_WORDS) {
        for (index_t m = 0; m < rows; m += 16) {
            const unsigned* block = a + m / 16 * steps * left * TILE_WORDS;
            multiply_panel<left, right, ADD>(unit, steps, block, b, to + m * to_row + n, to_row);
        }
    }
}
