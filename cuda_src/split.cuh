// Float32 numbers as sums of bfloat16 ones, which tile registers multiply: of two up to 2^-16 of x, which is exact for
// binary16 numbers, or of three, which is exact for all. bfloat16 numbers are one part. The products x_i y_j of parts that
// together are as small as what is missing after the last are left out: with two parts, 2^-18 of x y at most, with three
// 2^-25, less than the sums of a float32 product lose.
//
// Operands lie as tiles, one after the other, whose words hold the numbers k and k + 16 of a step of STEP in the sum:
//
//     left   [block of 16 rows][step][part][row][word]      right   [panel of 32 columns][step][part][2][word][column]
#include "tiles.cuh"

constexpr int STEP = DEPTH_STEP, TILE_WORDS = 256;

typedef float floats_t __attribute__((vector_size(64)));
typedef float loose_floats_t __attribute__((vector_size(64), aligned(4), may_alias));
typedef unsigned words_t __attribute__((vector_size(64), may_alias));

constexpr int DATA_PARTS = AMX;                // of a number that is stored
constexpr int VALUE_PARTS = AMX == 3 ? 3 : 2;  // of one that was worked out

DEVICE index_t steps_of(index_t depth) { return (depth + STEP - 1) / STEP; }

// What is split fits if the largest number of every row of a left operand, and of every column of a right one, does:
// products neither overflow nor, but for those of far smaller numbers, lose parts to underflow, which tile registers make
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
        const bool last = part == parts - 1;
        const floats_t a = last ? x : rounded(x), b = last ? y : rounded(y);
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

// One block of 16 rows times one panel. Few tile registers are written, and rarely: with more of them a processor whose
// power is limited or shared (Emerald Rapids in a virtual machine) takes up to four times as long. Parts of `a` go to and
// fro, so that the last one stays for the next part of `b`.
template <int left, int right> DEVICE void multiply_step(Tiles& tiles, const unsigned* a, const unsigned* b) {
    constexpr int parts = left > right ? left : right;
    int loaded = -1;
    UNROLL for (int j = 0; j < right; ++j, b += 2 * TILE_WORDS) {
        tiles.load<3>(b, 64);
        tiles.load<4>(b + TILE_WORDS, 64);
        UNROLL for (int n = 0; n < left; ++n) {
            const int i = j % 2 ? n : left - 1 - n;
            if (i + j >= parts) continue;
            if (i != loaded) tiles.load<2>(a + i * TILE_WORDS, 64);
            loaded = i;
            tiles.multiply_add<0, 2, 3>();
            tiles.multiply_add<1, 2, 4>();
        }
    }
}

// to[m][n] (+)= sum over k of a[m][k] b[k][n] for blocks of 16 rows and panels of 32 columns.
template <int left, int right, bool ADD> DEVICE void multiply_split(index_t rows, index_t columns, index_t depth,
                                                                    const unsigned* a, const unsigned* b, float* to,
                                                                    index_t to_row) {
    const index_t steps = steps_of(depth);
    Tiles tiles;
    for (index_t n = 0; n < columns; n += 32, b += steps * right * 2 * TILE_WORDS) {
        for (index_t m = 0; m < rows; m += 16) {
            float* sums = to + m * to_row + n;
            if (ADD) {
                tiles.load<0>(sums, to_row * 4);
                tiles.load<1>(sums + 16, to_row * 4);
            } else {
                tiles.clear<0>();
                tiles.clear<1>();
            }
            const unsigned* block = a + m / 16 * steps * left * TILE_WORDS;
            for (index_t step = 0; step < steps; ++step) {
                multiply_step<left, right>(tiles, block + step * left * TILE_WORDS, b + step * right * 2 * TILE_WORDS);
            }
            tiles.store<0>(sums, to_row * 4);
            tiles.store<1>(sums + 16, to_row * 4);
        }
    }
}
