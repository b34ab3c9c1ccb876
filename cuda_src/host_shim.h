// Stands in for a CUDA compiler: the same kernel text, compiled by the host's C++ compiler.
//
// A kernel becomes `name(params, begin, end, worker)`, which does the work items begin <= i < end in order. Who calls
// it from several threads gives each its own range and its own number (host_pool.cpp). No header is included, so that a
// compile takes a fraction of a second and needs no standard library.
#define CUDAKIT_HOST 1

// For a processor newer than itself GCC knows no timings, and keeps to code that no processor is slow at, without
// gathers.
#if defined(__AMX_TILE__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC target("tune=sapphirerapids")
#endif

struct half_t {
    unsigned short bits;
};
struct bfloat16_t {
    unsigned short bits;
};
typedef INDEX index_t;
typedef unsigned INDEX uindex_t;

#define DEVICE static inline __attribute__((always_inline))
#define CONSTANT static const
#define SELDOM static __attribute__((noinline, cold))  // what is called so seldom that its code should lie elsewhere
#define KERNEL(name, Params)                                                                                           \
    template <int> static void name##_items(const Params& p, index_t begin, index_t end, index_t worker)
#define ENTRY(name, Params)                                                                                            \
    extern "C" __attribute__((visibility("default"))) void name(const Params* p, long long begin, long long end,       \
                                                                long long worker) {                                    \
        name##_items<0>(*p, (index_t)begin, (index_t)end, (index_t)worker);                                            \
        finish_stores();                                                                                               \
    }
#define FOR_EACH(i, count) for (index_t i = begin; i < end; ++i)
#define LANE 0
#define SIMD _Pragma("omp simd")
#define PRAGMA(text) _Pragma(#text)
#define SIMD_SUM(...) PRAGMA(omp simd reduction(+ : __VA_ARGS__))
#ifdef __clang__
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 64")
#endif
#define PREFETCH(address) __builtin_prefetch(address)
#define PREFETCH_FAR(address) __builtin_prefetch(address, 0, 2)  // to the second level of the cache
#define UNROLL_ROWS                                              // up to 16 rows of a cubic volume, each a page of code
#define SCALAR_LOOP __asm__ volatile("")  // in a loop body: many short loads beat a gather instruction, keep them so
#define RELOAD(pointer) __asm__ volatile("" : "+r"(pointer))  // what it points to is not kept from before
// Where gather instructions beat many short loads: nowhere (0, in core.cuh); with AVX-512 where addresses serve for one
// plane alone or images are small (1); everywhere on Intel's processors with AMX, which gather words of eight bytes
// twice as fast (2).
#if defined(__AMX_TILE__) && !defined(GATHERS)
#define GATHERS 2
#elif defined(__AVX512F__) && !defined(GATHERS)
#define GATHERS 1
#endif

// Results too large for the caches (LARGE) go past them to memory, rather than being read before they are written.
#if defined(__AVX512F__)
#define PAST_BYTES 64
#define STORE_PAST(to, value) __builtin_ia32_movntps512((float*)(to), value)
#elif defined(__AVX__)
#define PAST_BYTES 32
#define STORE_PAST(to, value) __builtin_ia32_movntps256((float*)(to), value)
#elif defined(__SSE2__)
#define PAST_BYTES 16
#define STORE_PAST(to, value) __builtin_ia32_movntps((float*)(to), value)
#else
#define PAST_BYTES 16
#define STORE_PAST(to, value) (*(past_t*)(to) = (value))
#endif
#ifdef __clang__
#undef STORE_PAST
#define STORE_PAST(to, value) __builtin_nontemporal_store(value, (past_t*)(to))
#endif
typedef float past_t __attribute__((vector_size(PAST_BYTES), may_alias));

template <int bytes> DEVICE void store_bytes(const void* from, void* to) {
    UNROLL for (int i = 0; i < bytes; i += PAST_BYTES) {
        past_t part;
        __builtin_memcpy(&part, (const char*)from + i, PAST_BYTES);
        STORE_PAST((char*)to + i, part);
    }
}

// Before other threads may read them.
DEVICE void finish_stores() {
#if defined(__SSE2__)
    __builtin_ia32_sfence();
#endif
}

DEVICE float as_float(unsigned bits) {
    float value;
    __builtin_memcpy(&value, &bits, 4);
    return value;
}
DEVICE unsigned as_bits(float value) {
    unsigned bits;
    __builtin_memcpy(&bits, &value, 4);
    return bits;
}

DEVICE unsigned exponent_of(double value) {
    unsigned long long bits;
    __builtin_memcpy(&bits, &value, 8);
    return (unsigned)(bits >> 52) & 2047u;
}
DEVICE double power_of_two(int exponent) { return __builtin_ldexp(1.0, exponent); }
DEVICE void raise_to(unsigned* target, unsigned value) { *target = value > *target ? value : *target; }

// The value, or zero where the flag (0 or 1) is 0: by a mask, because compilers make a branch of a condition.
DEVICE float keep(float value, int flag) { return as_float(as_bits(value) & -(unsigned)flag); }
DEVICE double keep(double value, int flag) {
    unsigned long long bits;
    __builtin_memcpy(&bits, &value, 8);
    bits &= -(unsigned long long)flag;
    __builtin_memcpy(&value, &bits, 8);
    return value;
}

// binary16 by its bits, which compilers turn into SIMD code where they would call a function for _Float16.
DEVICE float widen(half_t value) {
    const unsigned magnitude = value.bits & 0x7fffu;
    const float scaled = as_float(magnitude << 13) * 0x1p112f;  // rebias the exponent; exact for subnormals too
    const unsigned bits = as_bits(scaled) | (magnitude >= 0x7c00u ? 0x7f800000u : 0u);
    return as_float(bits | (unsigned)(value.bits & 0x8000u) << 16);
}
DEVICE void narrow(float value, half_t& out) {
    const unsigned magnitude = as_bits(value) & 0x7fffffffu;
    const unsigned odd = (magnitude >> 13) & 1u;
    const unsigned normal = (magnitude + 0xc8000fffu + odd) >> 13;                 // round half to even
    const unsigned subnormal = as_bits(as_float(magnitude) + 0.5f) - 0x3f000000u;  // the addition rounds
    const unsigned overflow = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;         // NaN, or infinity
    const unsigned rounded = magnitude < 0x38800000u ? subnormal : normal;
    const unsigned bits = magnitude >= 0x47800000u ? overflow : rounded;
    out.bits = (unsigned short)(bits | (as_bits(value) >> 16 & 0x8000u));
}

// Contracted only where this is called, so that two compilers and two machines give the same bits.
#if defined(__FMA__) || defined(__aarch64__)
#define FUSES 1
DEVICE float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
DEVICE double fused(double a, double b, double c) { return __builtin_fma(a, b, c); }
#else
DEVICE float fused(float a, float b, float c) { return a * b + c; }
DEVICE double fused(double a, double b, double c) { return a * b + c; }
#endif
DEVICE float round_even(float x) { return __builtin_rintf(x); }
DEVICE double round_even(double x) { return __builtin_rint(x); }
DEVICE float round_down(float x) { return __builtin_floorf(x); }
DEVICE double round_down(double x) { return __builtin_floor(x); }
template <typename T> DEVICE void add_to(T* target, T value) { *target += value; }
template <typename T> DEVICE T lane_sum(T value) { return value; }
