// AVX512_BF16: vectors of sums to which products of two bfloat16 numbers each are added, twice as many per instruction
// as of float32 numbers. Tests let other instructions stand in for it, on any machine.
#ifndef EMULATE_UNITS
// sum[n] += a[n].low b[n].low + a[n].high b[n].high
DEVICE floats_t add_dots(floats_t sum, words_t a, words_t b) {
    __asm__("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
    return sum;
}
#else
DEVICE floats_t add_dots(floats_t sum, words_t a, words_t b) {
    sum += (floats_t)(a << 16) * (floats_t)(b << 16);
    return sum + (floats_t)(a & 0xffff0000u) * (floats_t)(b & 0xffff0000u);
}
#endif

struct Unit {};

constexpr int DOT_ROWS = 8;  // whose sums, and what they meet, fit into registers

template <int left, int right, bool ADD>
DEVICE void multiply_panel(Unit&, index_t steps, const unsigned* a, const unsigned* b, float* to, index_t to_row) {
    static_assert(left == 1 && right == 1, "more parts would gain nothing");
    for (int first = 0; first < 16; first += DOT_ROWS, a += DOT_ROWS * 16, to += DOT_ROWS * to_row) {
        floats_t sum[DOT_ROWS][2];
        UNROLL for (int m = 0; m < DOT_ROWS; ++m) {
            UNROLL for (int v = 0; v < 2; ++v) {
                sum[m][v] = ADD ? *(const loose_floats_t*)(to + m * to_row + 16 * v) : floats_t{};
            }
        }
        for (index_t k = 0; k < 16 * steps; ++k) {
            const unsigned* row = a + k / 16 * TILE_WORDS + k % 16;
            const unsigned* column = b + k / 16 * 2 * TILE_WORDS + k % 16 * 16;
            const words_t low = *(const words_t*)column, high = *(const words_t*)(column + TILE_WORDS);
            UNROLL for (int m = 0; m < DOT_ROWS; ++m) {
                const words_t one = row[m * 16] - words_t{};
                sum[m][0] = add_dots(sum[m][0], one, low);
                sum[m][1] = add_dots(sum[m][1], one, high);
            }
        }
        UNROLL for (int m = 0; m < DOT_ROWS; ++m) {
            UNROLL for (int v = 0; v < 2; ++v) * (loose_floats_t*)(to + m * to_row + 16 * v) = sum[m][v];
        }
    }
}
