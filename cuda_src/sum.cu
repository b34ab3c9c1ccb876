// Sums in a fixed order: to[i] = sum over a, b of from[i, a, b].
//
// One item of `sum` = TILE neighbours i, or one i shared by LANES lanes. A GPU that has few i sums chunks of all (a, b)
// first, and then the sums of these.
#include "core.cuh"

struct SumParams {
    const scalar_t* from;
    coord_t* to;      // contiguous
    double* partial;  // [i][chunk]
    long long items;
    long long count;           // of i
    long long chunks;          // of (a, b)
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
                double part = 0;
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

// One item = one chunk of one i, shared by LANES lanes. Items follow one another as what they read does.
KERNEL(sum_partial, SumParams) {
    const index_t count = (index_t)p.count, chunks = (index_t)p.chunks, length = (index_t)p.size[1];
    const index_t all = (index_t)p.size[0] * length, step = (all + chunks - 1) / chunks;
    const index_t step_b = (index_t)p.from_stride[2];
    FOR_EACH(item, p.items) {
        index_t i = item, chunk = item;
        if (LANES > 1) {
            chunk = take_digit(i, chunks);
        } else {
            i = take_digit(chunk, count);
        }
        const scalar_t* from = p.from + i * (index_t)p.from_stride[0];
        const index_t end = smaller((chunk + 1) * step, all);
        double total = 0;
        for (index_t at = chunk * step; at < end;) {  // what the chunk has of each a
            index_t a = at;
            const index_t first = take_digit(a, length), last = smaller(first + end - at, length);
            for (index_t b = first + LANE; b < last; b += LANES) {
                total += widen(from[a * (index_t)p.from_stride[1] + b * step_b]);
            }
            at += last - first;
        }
        total = lane_sum(total);
        if (LANE == 0) p.partial[i * chunks + chunk] = total;
    }
}

// One item = one i, shared by LANES lanes.
KERNEL(sum_total, SumParams) {
    FOR_EACH(i, p.items) {
        const double* partial = p.partial + i * (index_t)p.chunks;
        double total = 0;
        for (index_t chunk = LANE; chunk < (index_t)p.chunks; chunk += LANES) total += partial[chunk];
        total = lane_sum(total);
        if (LANE == 0) narrow((acc_t)total, p.to[i]);
    }
}
