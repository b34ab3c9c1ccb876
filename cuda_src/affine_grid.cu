// affine_grid: grid[n, o] = theta[n] @ (x_o, y_o[, z_o], 1)                             (arXiv 1506.02025, eq. 1)
//
// The base coordinates x_o of an output pixel run over [-1, 1]: from corner centre to corner centre with
// align_corners, else over the centres of pixels that fill the interval.
#include "core.cuh"

struct AffineGridParams {
    const coord_t* theta;      // (N, NDIM, NDIM + 1)
    coord_t* grid;             // forward: written, (N, O..., NDIM)
    const coord_t* grad_grid;  // backward: read
    double* partial;           // backward: (N, chunks, NDIM, NDIM + 1)
    coord_t* grad_theta;       // backward: written
    long long items;
    long long chunks;  // pieces that one image's pixels are summed in
    long long align_corners;
    long long size[3];  // O..., slowest dimension first
};

DEVICE acc_t base(index_t o, index_t size, bool align_corners) {
    if (!align_corners) return (2 * acc_t(o) + 1 - acc_t(size)) / acc_t(size);
    return size == 1 ? acc_t(0) : (2 * acc_t(o) - acc_t(size - 1)) / acc_t(size - 1);
}

// One item = one row of TILE pixels along x.
KERNEL(affine_grid, AffineGridParams) {
    const index_t width = (index_t)p.size[NDIM - 1], tiles = (width + TILE - 1) / TILE;
    const bool align_corners = p.align_corners;
    FOR_EACH(i, p.items) {
        const index_t row = i / tiles, first = (i - row * tiles) * TILE;
        const int count = (int)smaller(index_t(TILE), width - first);
        acc_t fixed[NDIM];  // what the other coordinates and the translation add
        index_t outer = row;
        acc_t coordinate[NDIM];  // x last
        UNROLL for (int d = NDIM - 2; d >= 0; --d) {
            const index_t size = (index_t)p.size[d];
            coordinate[d] = base(outer % size, size, align_corners);
            outer /= size;
        }
        const coord_t* theta = p.theta + outer * NDIM * (NDIM + 1);
        UNROLL for (int e = 0; e < NDIM; ++e) {
            fixed[e] = widen(theta[e * (NDIM + 1) + NDIM]);
            UNROLL for (int d = 0; d < NDIM - 1; ++d) {
                fixed[e] = fused(widen(theta[e * (NDIM + 1) + NDIM - 1 - d]), coordinate[d], fixed[e]);
            }
        }
        coord_t* grid = p.grid + (row * width + first) * NDIM;
        SIMD for (int j = 0; j < count; ++j) {
            const acc_t x = base(first + j, width, align_corners);
            UNROLL for (int e = 0; e < NDIM; ++e) {
                narrow(fused(widen(theta[e * (NDIM + 1)]), x, fixed[e]), grid[j * NDIM + e]);
            }
        }
    }
}

// The numbers of TILE neighbouring pixels as they lie in memory, pixel by pixel: sums over several tiles go number by
// number, which a host compiler makes SIMD code of.
constexpr int NUMBERS = TILE * NDIM;

// sum += g, sum_x += g x for `count` numbers; x of number k, times its divisor, is first + within[k].
DEVICE void add_tile(const coord_t* grad, int count, acc_t first, const acc_t* within, acc_t* sum, acc_t* sum_x) {
    SIMD for (int k = 0; k < count; ++k) {
        const acc_t g = widen(grad[k]);
        sum[k] += g;
        sum_x[k] = fused(g, first + within[k], sum_x[k]);
    }
}

// The same for a row of pixels.
DEVICE void add_row(const coord_t* grad, index_t width, const acc_t* within, acc_t* sum, acc_t* sum_x) {
    for (index_t x = LANE * TILE; x < width; x += LANES * TILE) {
        const acc_t first = 2 * acc_t(x) - acc_t(width - 1);
        if (x + TILE <= width) {  // a constant, for straight SIMD code
            add_tile(grad + x * NDIM, NUMBERS, first, within, sum, sum_x);
        } else {
            add_tile(grad + x * NDIM, (int)(width - x) * NDIM, first, within, sum, sum_x);
        }
    }
}

// Sum of one chunk of an image's pixels: partial[e][d] = sum over pixels of grad_grid[e] * coordinate[d]. The same
// order of additions on every run.
KERNEL(affine_grid_backward_partial, AffineGridParams) {
    index_t pixels = 1;
    UNROLL for (int d = 0; d < NDIM; ++d) pixels *= (index_t)p.size[d];
    const index_t width = (index_t)p.size[NDIM - 1], rows = pixels / width;
    const index_t chunk_rows = (rows + (index_t)p.chunks - 1) / (index_t)p.chunks;
    const bool align_corners = p.align_corners;
    // base(x) = (2 x - (width - 1)) / divisor: its numerators are exact, and the sum is divided once.
    const double divisor = double(align_corners ? width - 1 + (width == 1) : width);
    acc_t within[NUMBERS];
    UNROLL for (int e = 0; e < NDIM; ++e) {
        for (int j = 0; j < TILE; ++j) within[j * NDIM + e] = acc_t(2 * j);
    }
    FOR_EACH(i, p.items) {
        const index_t n = i / (index_t)p.chunks, chunk = i - n * (index_t)p.chunks;
        const index_t end = smaller((chunk + 1) * chunk_rows, rows);
        double total[NDIM + 1][NUMBERS] = {};  // by coordinate, x first, and by 1
        for (index_t row = chunk * chunk_rows; row < end; ++row) {
            acc_t sum[NUMBERS] = {}, sum_x[NUMBERS] = {};
            add_row(p.grad_grid + (n * pixels + row * width) * NDIM, width, within, sum, sum_x);
            SIMD for (int k = 0; k < NUMBERS; ++k) {
                total[0][k] += sum_x[k];
                total[NDIM][k] += sum[k];
            }
            index_t outer = row;
            UNROLL for (int d = NDIM - 2; d >= 0; --d) {
                const index_t size = (index_t)p.size[d];
                const acc_t coordinate = base(outer % size, size, align_corners);
                outer /= size;
                SIMD for (int k = 0; k < NUMBERS; ++k) total[NDIM - 1 - d][k] += sum[k] * coordinate;
            }
        }
        UNROLL for (int e = 0; e < NDIM; ++e) {
            UNROLL for (int d = 0; d <= NDIM; ++d) {
                double sum = 0;
                for (int j = 0; j < TILE; ++j) sum += total[d][j * NDIM + e];
                sum = lane_sum(sum) / (d == 0 ? divisor : 1.0);
                if (LANE == 0) p.partial[(i * NDIM + e) * (NDIM + 1) + d] = sum;
            }
        }
    }
}

// One item = one number of grad_theta, shared by LANES lanes.
KERNEL(affine_grid_backward_total, AffineGridParams) {
    constexpr int THETA = NDIM * (NDIM + 1);
    FOR_EACH(i, p.items) {
        const index_t n = i / THETA, number = i - n * THETA;
        double total = 0;
        for (index_t chunk = LANE; chunk < (index_t)p.chunks; chunk += LANES) {
            total += p.partial[(n * (index_t)p.chunks + chunk) * THETA + number];
        }
        total = lane_sum(total);
        if (LANE == 0) narrow((acc_t)total, p.grad_theta[i]);
    }
}
