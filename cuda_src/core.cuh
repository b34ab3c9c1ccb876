// What every kernel stands on: storage types, loads and stores, atomics, and the loop over work items.
//
// A prelude comes before this file and fixes the specialisation: SCALAR, COORD (storage types of data and
// coordinates), ACC (arithmetic type), INDEX, and the constants TILE, LANES, VEC. On the host, host_shim.h comes
// before it too and defines what a CUDA compiler knows by itself.

// Blocks of a kernel that a processor of a GPU should hold at a time, 0 where its compiler may decide. Left alone, that
// spares registers: it has the first reads of a sample wait before it begins the others.
template <typename Params> constexpr int RESIDENT = 0;

#ifndef CUDAKIT_HOST
struct half_t {
    unsigned short bits;
};
struct bfloat16_t {
    unsigned short bits;
};
typedef INDEX index_t;
typedef unsigned INDEX uindex_t;

#define DEVICE __device__ __forceinline__
#define CONSTANT static __device__ const
#define SELDOM DEVICE
// A kernel is a template until ENTRY names it, so that a translation unit holds code for one kernel alone.
#define KERNEL(name, Params) template <int> __device__ __forceinline__ void name##_items(const Params& p)
#define ENTRY(name, Params)                                                                                            \
    extern "C" __global__ void __launch_bounds__(256, RESIDENT<Params>) name(const __grid_constant__ Params p) {       \
        name##_items<0>(p);                                                                                            \
    }
#define FOR_EACH(i, count)                                                                                             \
    for (index_t i = ((index_t)blockIdx.x * (index_t)blockDim.x + (index_t)threadIdx.x) / LANES; i < (count);          \
         i += (index_t)gridDim.x * (index_t)blockDim.x / LANES)
#define LANE ((int)threadIdx.x % LANES)
#define SIMD
#define SIMD_SUM(...)
#define SCALAR_LOOP
#define RELOAD(pointer)
#define UNROLL _Pragma("unroll")
#define UNROLL_ROWS _Pragma("unroll (STORED ? ROWS : 1)")
#define PREFETCH(address)
#define PREFETCH_FAR(address)

DEVICE float as_float(unsigned bits) { return __uint_as_float(bits); }
DEVICE unsigned as_bits(float value) { return __float_as_uint(value); }
DEVICE unsigned exponent_of(double value) { return (unsigned)__double2hiint(value) >> 20 & 2047u; }  // biased
DEVICE double power_of_two(int exponent) { return __hiloint2double(exponent + 1023 << 20, 0); }
DEVICE float widen(half_t value) {
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value.bits));
    return wide;
}
DEVICE void narrow(float value, half_t& out) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(value)); }
DEVICE float fused(float a, float b, float c) { return __fmaf_rn(a, b, c); }
DEVICE double fused(double a, double b, double c) { return __fma_rn(a, b, c); }
DEVICE float keep(float value, int flag) { return flag ? value : 0.0f; }
DEVICE double keep(double value, int flag) { return flag ? value : 0.0; }
DEVICE float round_even(float x) { return rintf(x); }
DEVICE double round_even(double x) { return rint(x); }
DEVICE float round_down(float x) { return floorf(x); }
DEVICE double round_down(double x) { return floor(x); }
template <typename T> DEVICE void add_to(T* target, T value) { atomicAdd(target, value); }
#if __CUDA_ARCH__ >= 900 && __CUDACC_VER_MAJOR__ * 100 + __CUDACC_VER_MINOR__ >= 1201
#define ADDS_FOUR 1
// One request for four neighbours, whose address is a multiple of 16.
DEVICE void add_four(float* target, float a, float b, float c, float d) {
    asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(target), "f"(a), "f"(b), "f"(c), "f"(d)
                 : "memory");
}
#endif

// The lanes that share this one's item. A shuffle waits for all that it names, and others of the warp may have left the
// loop over items, behind which they wait in turn.
DEVICE unsigned item_lanes() { return ~0u >> (32 - LANES) << (threadIdx.x & (32 - LANES)); }

// Sum over the lanes that share one work item; every lane gets it.
template <typename T> DEVICE T lane_sum(T value) {
    const unsigned lanes = item_lanes();
    UNROLL for (int step = LANES / 2; step > 0; step /= 2) value += __shfl_xor_sync(lanes, value, step);
    return value;
}

// Raise a number to the largest that lanes have.
DEVICE void raise_to(unsigned* target, unsigned value) {
    const unsigned lanes = item_lanes();
    UNROLL for (int step = LANES / 2; step > 0; step /= 2) {
        const unsigned other = __shfl_xor_sync(lanes, value, step);
        if (other > value) value = other;
    }
    if (LANE == 0 && value > 0) atomicMax(target, value);
}
#endif

#ifndef GATHERS
#define GATHERS 0
#endif

#ifndef ADDS_FOUR
#define ADDS_FOUR 0
#endif

#ifndef LARGE
#define LARGE 0
#endif

// Channels that a host works on together, where they are few and always as many: loops of constant length have neither
// a beginning nor an end that is not SIMD code.
#ifndef WIDTH
#define WIDTH 0
#endif

// Whether channels that lie next to each other are taken VEC at a time, aligned to the size of such a pack; on a GPU.
#ifdef CUDAKIT_HOST
constexpr bool PACKS = false;
#else
constexpr bool PACKS = LANES > 1 || VEC > 1;
#endif

template <typename T> DEVICE T keep(T value, int flag) {  // of 16 bits
    value.bits &= -flag;
    return value;
}

typedef SCALAR scalar_t;
#ifdef IMAGE
typedef IMAGE image_t;  // what is sampled: a host may have it copied to a type that takes no time to widen
#else
typedef SCALAR image_t;
#endif
typedef COORD coord_t;
typedef ACC acc_t;

DEVICE float widen(float value) { return value; }
DEVICE double widen(double value) { return value; }
DEVICE float widen(bfloat16_t value) { return as_float((unsigned)value.bits << 16); }

DEVICE void narrow(float value, float& out) { out = value; }
DEVICE void narrow(float value, double& out) { out = (double)value; }
DEVICE void narrow(double value, float& out) { out = (float)value; }
DEVICE void narrow(double value, double& out) { out = value; }
DEVICE void narrow(float value, bfloat16_t& out) {
    // Round to nearest even on the upper half; a NaN keeps a set mantissa bit.
    const unsigned bits = as_bits(value);
    const unsigned rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
    out.bits = (unsigned short)((value == value ? rounded : bits | 0x00400000u) >> 16);
}

template <typename T> DEVICE T smaller(T a, T b) { return b < a ? b : a; }  // a where b is a NaN
template <typename T> DEVICE T larger(T a, T b) { return b > a ? b : a; }   // a where b is a NaN

// sum + factor * x, without x where the factor is 0: what has weight 0 does not count, whatever it is.
DEVICE acc_t add_product(acc_t factor, acc_t x, acc_t sum) {
    const int some = factor != 0;
    return fused(factor, keep(x, some), sum);
}

// Takes the last digit off a number written in that base. Unsigned, which saves a GPU a third of the instructions.
DEVICE index_t take_digit(index_t& number, index_t base) {
    const index_t rest = (index_t)((uindex_t)number / (uindex_t)base), digit = number - rest * base;
    number = rest;
    return digit;
}

// The same with floor((2^32 - 1) / base): a GPU, which has no instruction to divide, multiplies by that. As numbers are
// below 2^31, the rest is too small by 1 at most.
DEVICE index_t take_digit(index_t& number, index_t base, long long inverse) {
#ifndef CUDAKIT_HOST
    if (sizeof(index_t) == 4) {
        index_t rest = (index_t)__umulhi((unsigned)number, (unsigned)inverse), digit = number - rest * base;
        if (digit >= base) {
            digit -= base;
            rest += 1;
        }
        number = rest;
        return digit;
    }
#endif
    return take_digit(number, base);
}

DEVICE int width_of(index_t channels) { return WIDTH ? WIDTH : (int)channels; }

template <int size, typename T> DEVICE void prefetch_line(const T* from) {
    for (int j = 0; j < size; j += 64 / (int)sizeof(T)) PREFETCH(from + j);
}

// Whether `size` numbers are whole lines of the cache, which may go past it to memory, and then do.
template <int size, typename T> DEVICE bool passes_cache(const T* to) {
    return LARGE && size * (int)sizeof(T) % 64 == 0 && (unsigned long long)to % 64 == 0;
}
template <int size, typename T> DEVICE void store_past(const T* line, T* to) {
#if LARGE
    constexpr int bytes = size * (int)sizeof(T);
    store_bytes<bytes>(line, to);
#endif
}

// Up to `size` elements, `stride` apart, to and from the arithmetic type. A full line of neighbours is SIMD code, and
// what lies behind it is fetched ahead: it is the next tile's, and lines of a tile are too far apart for the hardware
// to guess that. What is read may begin anywhere in a line of the cache, and then ends in one more. What lies apart
// goes one by one: as SIMD code it would be a quarter of a kernel, and no faster.
template <int size, typename T> DEVICE void load_line(const T* from, index_t stride, int count, acc_t* to) {
    if (stride == 1 && count == size) {
        prefetch_line<size>(from + size);
        PREFETCH(from + 2 * size - 1);
        SIMD for (int j = 0; j < size; ++j) to[j] = widen(from[j]);
    } else if (stride == 1) {
        SIMD for (int j = 0; j < count; ++j) to[j] = widen(from[j]);
    } else {
        for (int j = 0; j < count; ++j) {
            SCALAR_LOOP;
            to[j] = widen(from[j * stride]);
        }
    }
}
template <int size, typename T> DEVICE void store_line(const acc_t* from, T* to, index_t stride, int count) {
    if (stride == 1 && count == size && passes_cache<size>(to)) {
        T line[size];
        SIMD for (int j = 0; j < size; ++j) narrow(from[j], line[j]);
        store_past<size>(line, to);
    } else if (stride == 1 && count == size) {
        prefetch_line<size>(to + size);
        SIMD for (int j = 0; j < size; ++j) narrow(from[j], to[j]);
    } else if (stride == 1) {
        SIMD for (int j = 0; j < count; ++j) narrow(from[j], to[j]);
    } else {
        for (int j = 0; j < count; ++j) {
            SCALAR_LOOP;
            narrow(from[j], to[j * stride]);
        }
    }
}

// What gradients by an image are added up in. Where sums must be the same in any order (ROUNDED, on a GPU), every
// number is first rounded to a multiple of a power of two that is coarse enough for a double to hold all their sums: it
// is added to an anchor, 3/2 of a larger power of two, which is taken away again (Demmel and Nguyen, "Fast reproducible
// floating-point summation", 2013). What that leaves of a number is added up likewise, `apart` sums further on, in
// ROUNDED parts in all.
#ifdef ROUNDED
typedef double sum_t;
struct Sums {
    sum_t* at;
    long long apart;
    sum_t anchor[ROUNDED];
    DEVICE Sums operator+(index_t step) const {
        Sums moved = *this;
        moved.at += step;
        return moved;
    }
};
DEVICE Sums sums_at(sum_t* at, const sum_t* anchors, long long apart) {
    Sums sums = {at, apart};
    UNROLL for (int k = 0; k < ROUNDED; ++k) sums.anchor[k] = anchors[k];
    return sums;
}
DEVICE void add_to(const Sums& sums, acc_t value) {
    sum_t rest = value;
    UNROLL for (int k = 0; k < ROUNDED; ++k) {
        const sum_t part = (rest + sums.anchor[k]) - sums.anchor[k];
        add_to(sums.at + k * sums.apart, part);
        rest = part - part == 0 ? rest - part : sum_t(0);  // of what is not finite nothing is left
    }
}
#else
typedef acc_t sum_t;
typedef acc_t* Sums;
DEVICE Sums sums_at(acc_t* at, const sum_t*, long long) { return at; }
#endif

// Zero the channels `begin` ... `end` - 1 of a gradient whose pixels or channels are neighbours, before a thread adds
// to them: they are then in its own cache. A GPU, whose threads share every target, has that done beforehand.
constexpr bool CLEARS = TILE > 1;

DEVICE void clear(sum_t* image, index_t channel_stride, index_t pixel_stride, index_t begin, index_t end,
                  index_t pixels) {
    const index_t width = end - begin;
    const bool last = channel_stride == 1, whole = last && width == pixel_stride;
    const index_t runs = whole ? 1 : last ? pixels : width, length = whole ? pixels * width : last ? width : pixels;
    for (index_t run = 0; run < runs; ++run) {
        sum_t* to = image + begin * channel_stride + run * (last ? pixel_stride : channel_stride);
        for (index_t i = 0; i < length; ++i) to[i] = 0;  // which host compilers know for memset
    }
}

constexpr int RADIX = 8;  // of what a host's registers turn at once

// Turn `radix` parts of an array, one after the other, into neighbours.
template <int radix, int size, typename T> DEVICE void interleave(const T* from, T* to) {
    SIMD for (int k = 0; k < size / radix; ++k) {
        UNROLL for (int i = 0; i < radix; ++i) to[radix * k + i] = from[i * (size / radix) + k];
    }
}

// Transpose a [rows][columns] array of powers of two: each interleaving turns the bits of the index by the logarithm of
// its radix. Loops that a host compiler makes SIMD code of. The result is in `a` or in `b`; both are overwritten.
template <int rows, int columns, typename T> DEVICE T* transpose(T* a, T* b) {
    if constexpr (rows == 1 || columns == 1) {  // the same in memory
        return a;
    } else {
        constexpr int radix = rows < RADIX ? rows : RADIX;
        interleave<radix, rows * columns>(a, b);
        return transpose<rows / radix, columns * radix>(b, a);
    }
}
