// Sums in a fixed order: to[i] = sum over a, b of from[i, a, b].
//
// One item = TILE neighbours i, or one i shared by LANES lanes.
#include "core.cuh"

struct SumParams {
    const scalar_t* from;
    coord_t* to;  // contiguous
    long long items;
    long long count;           // of i
    long long size[2];         // of a and b
    long long from_stride[3];  // of i, a and b
};

KERNEL(sum, SumParams) {
    FOR_EACH(item, p.items) {
        const index_t first = item * TILE, step = (index_t)p.from_stride[0], step_b = (index_t)p.from_stride[2];
        const int count = (int)smaller(index_t(TILE), (index_t)p.count - first);
        double total[TILE] = {};
        for (index_t a = 0; a < (index_t)p.size[0]; ++a) {
            const scalar_t* from = p.from + first * step + a * (index_t)p.from_stride[1];
            if (TILE == 1) {
                acc_t part = 0;
                SIMD_SUM(part)
                for (index_t b = LANE; b < (index_t)p.size[1]; b += LANES) part += widen(from[b * step_b]);
                total[0] += lane_sum(part);
            } else {
                for (index_t b = 0; b < (index_t)p.size[1]; ++b) {
                    SIMD for (int i = 0; i < count; ++i) total[i] += widen(from[i * step + b * step_b]);
                }
            }
        }
        if (LANE != 0) continue;
        for (int i = 0; i < count; ++i) narrow((acc_t)total[i], p.to[first + i]);
    }
}
