// What kernels call by one name on a GPU and on a host, in the terms of a GPU's compiler; host_shim.h is its twin.

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
