// Stands in for a CUDA compiler: a kernel as NVRTC sees it, compiled by g++, for the GPU that processor.cpp emulates.
//
// Its loads and stores are calls of what an address sanitizer would be called, so that processor.cpp sees them. What
// CUDA has of C's library is declared here: <math.h> of C++ takes as long to read as most kernels take to compile.
extern "C" {
float floorf(float), rintf(float);
double floor(double), rint(double);
}

#define __CUDA_ARCH__ 900
#define __CUDACC_VER_MAJOR__ 12
#define __CUDACC_VER_MINOR__ 9
#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

struct Index3 {
    unsigned x, y, z;
};
extern Index3 threadIdx, blockIdx, blockDim, gridDim;
double emulated_shuffle(unsigned mask, double value, int step, const void* where);
void emulated_addition(const void* target, int size);
void emulated_grid(unsigned blocks, unsigned threads, bool shuffles, void (*kernel)());

template <typename To, typename From> static inline To same_bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    __builtin_memcpy(&to, &from, sizeof to);
    return to;
}
static inline float __uint_as_float(unsigned bits) { return same_bits<float>(bits); }
static inline unsigned __float_as_uint(float value) { return same_bits<unsigned>(value); }
static inline int __double2hiint(double value) { return (int)(same_bits<unsigned long long>(value) >> 32); }
static inline double __hiloint2double(int high, int low) {
    return same_bits<double>((unsigned long long)(unsigned)high << 32 | (unsigned)low);
}
static inline float widen_half(unsigned short bits) { return same_bits<_Float16>(bits); }
static inline unsigned short narrow_to_half(float value) { return same_bits<unsigned short>((_Float16)value); }
static inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((unsigned long long)a * b >> 32); }
static inline float __fmaf_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
static inline double __fma_rn(double a, double b, double c) { return __builtin_fma(a, b, c); }
template <typename T> __attribute__((no_sanitize("kernel-address"))) static inline T atomicAdd(T* target, T value) {
    emulated_addition(target, sizeof *target);
    const T before = *target;
    *target += value;
    return before;
}

__attribute__((no_sanitize("kernel-address"))) static inline unsigned atomicMax(unsigned* target, unsigned value) {
    emulated_addition(target, sizeof *target);
    const unsigned before = *target;
    if (value > before) *target = value;
    return before;
}

static inline void emulated_four(float* target, float a, float b, float c, float d) {
    struct alignas(16) Four {
        float value[4];
    };
    Four& four = *(Four*)target;  // so that an address that is not a multiple of 16 is seen
    atomicAdd(&four.value[0], a);
    atomicAdd(&four.value[1], b);
    atomicAdd(&four.value[2], c);
    atomicAdd(&four.value[3], d);
}

// Expanded in the function that sums over lanes: where that is called from.
#define __shfl_xor_sync(mask, value, step) emulated_shuffle(mask, value, step, __builtin_return_address(0))
#define LAUNCH(name, Params)                                                                                           \
    static Params launched_with;                                                                                       \
    static void launched() { name(launched_with); }                                                                    \
    extern "C" __attribute__((visibility("default"))) void launch(const void* params, unsigned blocks,                 \
                                                                  unsigned threads) {                                  \
        __builtin_memcpy((void*)&launched_with, params, sizeof launched_with);                                         \
        emulated_grid(blocks, threads, LANES > 1, launched);                                                           \
    }
