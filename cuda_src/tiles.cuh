// The tile registers of Intel's AMX: 8 of them, each 16 rows of 16 words. A word holds two bfloat16 numbers or, in a
// sum, one float32 number. Tests let loops stand in for them, on any machine.

#ifndef EMULATE_UNITS
struct alignas(64) TileConfig {
    unsigned char palette, start, zeros[14];
    unsigned short row_bytes[16];
    unsigned char rows[16];
};
CONSTANT TileConfig TILE_CONFIG = {1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

// A thread's tile registers, as long as this lives.
struct Unit {
    MEMBER Unit() { __asm__ volatile("ldtilecfg %0" ::"m"(TILE_CONFIG)); }
    MEMBER ~Unit() { __asm__ volatile("tilerelease"); }
    Unit(const Unit&) = delete;

    template <int tile> MEMBER void load(const void* from, long long row_bytes) {
        __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(row_bytes), "i"(tile) : "memory");
    }
    template <int tile> MEMBER void store(void* to, long long row_bytes) {
        __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(row_bytes), "i"(tile) : "memory");
    }
    template <int tile> MEMBER void clear() { __asm__ volatile("tilezero %%tmm%c0" ::"i"(tile)); }
    // sum[m][n] += left[m][k].low right[k][n].low + left[m][k].high right[k][n].high, for all k
    template <int sum, int left, int right> MEMBER void multiply_add() {
        __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(sum), "i"(left), "i"(right));
    }
};
#else
struct Unit {
    unsigned word[8][16][16];

    template <int tile> MEMBER void load(const void* from, long long row_bytes) {
        for (int m = 0; m < 16; ++m) __builtin_memcpy(word[tile][m], (const char*)from + m * row_bytes, 64);
    }
    template <int tile> MEMBER void store(void* to, long long row_bytes) {
        for (int m = 0; m < 16; ++m) __builtin_memcpy((char*)to + m * row_bytes, word[tile][m], 64);
    }
    template <int tile> MEMBER void clear() { __builtin_memset(word[tile], 0, sizeof word[tile]); }
    template <int sum, int left, int right> MEMBER void multiply_add() {
        for (int m = 0; m < 16; ++m) {
            for (int k = 0; k < 16; ++k) {
                const unsigned a = word[left][m][k];
                SIMD for (int n = 0; n < 16; ++n) {
                    const unsigned b = word[right][k][n];
                    const float low = as_float(a << 16) * as_float(b << 16);
                    const float high = as_float(a & 0xffff0000u) * as_float(b & 0xffff0000u);
                    word[sum][m][n] = as_bits(as_float(word[sum][m][n]) + low + high);
                }
            }
        }
    }
};
#endif

// One block of 16 rows times one panel. Few tile registers are written, and rarely: with more of them a processor whose
// power is limited or shared (Emerald Rapids in a virtual machine) takes up to four times as long. Parts of `a` go to
// and fro, so that the last one stays for the next part of `b`.
template <int left, int right> DEVICE void multiply_step(Unit& tiles, const unsigned* a, const unsigned* b) {
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

template <int left, int right, bool ADD> DEVICE void multiply_panel(Unit& tiles, index_t steps, const unsigned* a,
                                                                    const unsigned* b, float* to, index_t to_row) {
    if (ADD) {
        tiles.load<0>(to, to_row * 4);
        tiles.load<1>(to + 16, to_row * 4);
    } else {
        tiles.clear<0>();
        tiles.clear<1>();
    }
    for (index_t step = 0; step < steps; ++step) {
        multiply_step<left, right>(tiles, a + step * left * TILE_WORDS, b + step * right * 2 * TILE_WORDS);
    }
    tiles.store<0>(to, to_row * 4);
    tiles.store<1>(to + 16, to_row * 4);
}
