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

// Sum of one chunk of an image's pixels: partial[e][d] = sum over pixels of grad_grid[e] * coordinate[d]. The same
// order of additions on every run.
KERNEL(affine_grid_backward_partial, AffineGridParams) {
    index_t pixels = 1;
    UNROLL for (int d = 0; d < NDIM; ++d) pixels *= (index_t)p.size[d];
    const index_t width = (index_t)p.size[NDIM - 1], rows = pixels / width;
    const index_t chunk_rows = (rows + (index_t)p.chunks - 1) / (index_t)p.chunks;
    const bool align_corners = p.align_corners;
    FOR_EACH(i, p.items) {
        const index_t n = i / (index_t)p.chunks, chunk = i - n * (index_t)p.chunks;
        const index_t end = smaller((chunk + 1) * chunk_rows, rows);
        double total[NDIM][NDIM + 1] = {};
        for (index_t row = chunk * chunk_rows; row < end; ++row) {
            const coord_t* grad = p.grad_grid + (n * pixels + row * width) * NDIM;
            acc_t sum[NDIM] = {}, sum_x[NDIM] = {};
            UNROLL for (int e = 0; e < NDIM; ++e) {
                acc_t plain = 0, along = 0;
                SIMD_SUM(plain, along) for (index_t x = LANE; x < width; x += LANES) {
                    const acc_t g = widen(grad[x * NDIM + e]);
                    plain += g;
                    along = fused(g, base(x, width, align_corners), along);
                }
                sum[e] = plain;
                sum_x[e] = along;
            }
            index_t outer = row;
            UNROLL for (int d = NDIM - 1; d >= 0; --d) {
                const index_t size = (index_t)p.size[d];
                const acc_t coordinate = d == NDIM - 1 ? acc_t(0) : base(outer % size, size, align_corners);
                if (d < NDIM - 1) outer /= size;
                UNROLL for (int e = 0; e < NDIM; ++e) {
                    total[e][NDIM - 1 - d] += d == NDIM - 1 ? sum_x[e] : sum[e] * coordinate;
                }
            }
            UNROLL for (int e = 0; e < NDIM; ++e) total[e][NDIM] += sum[e];
        }
        UNROLL for (int e = 0; e < NDIM; ++e) {
            UNROLL for (int d = 0; d <= NDIM; ++d) {
                const double sum = lane_sum(total[e][d]);
                if (LANE == 0) p.partial[(i * NDIM + e) * (NDIM + 1) + d] = sum;
            }
        }
    }
}

// One item = one number of grad_theta.
KERNEL(affine_grid_backward_total, AffineGridParams) {
    constexpr int NUMBERS = NDIM * (NDIM + 1);
    FOR_EACH(i, p.items) {
        if (LANE != 0) continue;
        const index_t n = i / NUMBERS, number = i - n * NUMBERS;
        double total = 0;
        for (index_t chunk = 0; chunk < (index_t)p.chunks; ++chunk) {
            total += p.partial[(n * (index_t)p.chunks + chunk) * NUMBERS + number];
        }
        narrow((acc_t)total, p.grad_theta[i]);
    }
}
