// What every kernel stands on: storage types, loads and stores, atomics, and the loop over work items.
//
// A prelude comes before this file and fixes the specialisation. Every kernel has
//
//     SCALAR, COORD, ACC  the storage types of data and of coordinates, and the arithmetic type
//     INDEX               int, or long long where offsets need 64 bits
//     TILE, LANES, VEC    pixels of an item, threads that share it, channels that a thread takes at once
//
// and some kernels
//
//     NDIM, MODE, PADDING           of samples (interpolate.cuh)
//     LARGE, WIDTH, IMAGE, ROUNDED  below
//     GROUP, WINDOW, NEAR, SLABS    how a grid samples (grid_sample.cuh, rows.cuh)
//     WEIGHTED                      columns are weight * grad_output (deform_col2im.cu)
//     PIXELS, BLOCK, GIVEN, JOINED, SPLIT, SPLIT_VALUES, TILES  of the host's convolution (pieces.cuh, product.cuh)
//
// cuda_shim.cuh and, before this file, host_shim.h give one name to what the two compilers name differently.

// Blocks of a kernel that a processor of a GPU should hold at a time, 0 where its compiler may decide. Left alone, that
// spares registers: it has the first reads of a sample wait before it begins the others.
template <typename Params> constexpr int RESIDENT = 0;

#include "cuda_shim.cuh"

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

DEVICE constexpr int next_power_of_two(int n) { return n > 1 ? 2 * next_power_of_two((n + 1) / 2) : 1; }

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
