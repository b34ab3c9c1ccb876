// The tile registers of Intel's AMX: 8 of them, each 16 rows of 16 words. A word holds two bfloat16 numbers or, in a
// sum, one float32 number. Tests let loops stand in for them, on any machine.
#define MEMBER inline __attribute__((always_inline))

#ifndef EMULATE_AMX
struct alignas(64) TileConfig {
    unsigned char palette, start, zeros[14];
    unsigned short row_bytes[16];
    unsigned char rows[16];
};
CONSTANT TileConfig TILE_CONFIG = {1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

// A thread's tile registers, as long as this lives.
struct Tiles {
    MEMBER Tiles() { __asm__ volatile("ldtilecfg %0" ::"m"(TILE_CONFIG)); }
    MEMBER ~Tiles() { __asm__ volatile("tilerelease"); }
    Tiles(const Tiles&) = delete;

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
struct Tiles {
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
