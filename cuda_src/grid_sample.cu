// grid_sample: output[n, c, o] = sum over taps of weights(grid[n, o]) * input[n, c, taps]       (arXiv 1506.02025, eq. 3)
//
// Two forms of each pass. `planar` (few channels, or channels far apart): one item = a tile of output pixels, the
// channels one after the other. `channels` (channels next to each other in memory): one item = a tile of pixels,
// shared by LANES lanes, each of which takes VEC channels at a time.
#include "core.cuh"
#include "interpolate.cuh"
#include "samples.cuh"

struct GridSampleParams {
    const scalar_t* input;        // any strides
    const coord_t* grid;          // (N, L, NDIM), contiguous, x first
    scalar_t* output;             // forward: written
    const scalar_t* grad_output;  // backward: read; strides as output's
    acc_t* grad_input;            // backward: added to; null: not needed
    coord_t* grad_grid;           // backward: written, (N, L, NDIM); null: not needed
    long long items;              // work items: channel blocks * batch * tiles
    long long batch;
    long long channels;
    long long channel_block;  // channels of one item
    long long pixels;         // L
    long long align_corners;
    long long size[3];           // of input, slowest dimension first
    long long input_stride[5];   // batch, channel, dimensions
    long long output_stride[3];  // batch, channel, pixel
    long long grad_stride[5];    // of grad_input
};

struct Item {
    index_t n, first, channel, channel_end;
    int count;  // pixels of the tile that exist
};

DEVICE Item item_of(const GridSampleParams& p, index_t item) {
    const index_t tiles = ((index_t)p.pixels + TILE - 1) / TILE;
    const index_t image = item / tiles;
    Item it;
    it.first = (item - image * tiles) * TILE;
    it.n = image % (index_t)p.batch;
    it.channel = image / (index_t)p.batch * (index_t)p.channel_block;
    it.channel_end = smaller(it.channel + (index_t)p.channel_block, (index_t)p.channels);
    it.count = TILE == 1 ? 1 : (int)smaller(index_t(TILE), (index_t)p.pixels - it.first);
    return it;
}

// d(pixel coordinate) / d(grid coordinate): unnormalised = (grid + 1) * scale - 1/2 (or - 0 with align_corners).
DEVICE acc_t grid_scale(const GridSampleParams& p, int d) {
    return (acc_t(p.size[d]) - (p.align_corners ? acc_t(1) : acc_t(0))) / 2;
}

DEVICE void plan(const GridSampleParams& p, const long long* stride, const Item& it, Samples& s) {
    const coord_t* grid = p.grid + (it.n * (index_t)p.pixels + it.first) * NDIM;
    coord_t padded[TILE * NDIM];
    if (it.count < TILE) {  // samples that do not exist look outside
        for (int i = 0; i < TILE * NDIM; ++i) narrow(acc_t(-4), padded[i]);
        for (int i = 0; i < it.count * NDIM; ++i) padded[i] = grid[i];
        grid = padded;
    }
    const acc_t shift = p.align_corners ? acc_t(0) : acc_t(0.5);
    UNROLL for (int d = 0; d < NDIM; ++d) {
        const index_t size = (index_t)p.size[d], step = (index_t)stride[d];
        const acc_t scale = grid_scale(p, d);
        const bool align_corners = p.align_corners;
        SIMD for (int j = 0; j < TILE; ++j) {
            const acc_t g = widen(grid[j * NDIM + NDIM - 1 - d]);
            locate(s.axis[d], j, fused(g + 1, scale, -shift), size, step, align_corners);
        }
        if (WINDOW && d == NDIM - 1) {
            SIMD for (int j = 0; j < TILE; ++j) make_window(s.axis[d], j, size);
        }
    }
    make_rows(s);
}

// ---------------------------------------------------------------------------------------------------------------------
// Planar: one channel after the other.

template <bool CHECKED>
DEVICE void sample_plane(const Samples& s, const scalar_t* plane, scalar_t* output, index_t pixel_stride, int count) {
    acc_t sum[TILE] = {};
    UNROLL for (int r = 0; r < ROWS; ++r) {
        scalar_t window[TILE][TAPS];
        load_row<CHECKED>(s, plane, r, window);
        SIMD for (int j = 0; j < TILE; ++j) {
            acc_t value = 0;
            UNROLL for (int t = 0; t < TAPS; ++t) {
                value = fused(s.axis[NDIM - 1].weight[t][j], tap_value<CHECKED>(s, window, r, t, j), value);
            }
            sum[j] = fused(s.row_weight[r][j], value, sum[j]);
        }
    }
    if (pixel_stride == 1 && count == TILE) {
        SIMD for (int j = 0; j < TILE; ++j) narrow(sum[j], output[j]);
    } else {
        for (int j = 0; j < count; ++j) narrow(sum[j], output[j * pixel_stride]);
    }
}

KERNEL(grid_sample_planar, GridSampleParams) {
    FOR_EACH(i, p.items) {
        const Item it = item_of(p, i);
        Samples s;
        plan(p, p.input_stride + 2, it, s);
        const scalar_t* image = p.input + it.n * (index_t)p.input_stride[0];
        scalar_t* output = p.output + it.n * (index_t)p.output_stride[0] + it.first * (index_t)p.output_stride[2];
        for (index_t c = it.channel; c < it.channel_end; ++c) {
            const scalar_t* plane = image + c * (index_t)p.input_stride[1];
            scalar_t* out = output + c * (index_t)p.output_stride[1];
            if (TILE > 1 && s.whole) {
                sample_plane<false>(s, plane, out, (index_t)p.output_stride[2], it.count);
            } else {
                sample_plane<true>(s, plane, out, (index_t)p.output_stride[2], it.count);
            }
        }
    }
}

// grad[d][j] += grad_output * d(sample) / d(coordinate d), in one channel.
template <bool CHECKED>
DEVICE void grid_gradient_plane(const Samples& s, const scalar_t* plane, const acc_t* out_grad, acc_t grad[][TILE]) {
    const Axis& x = s.axis[NDIM - 1];
    UNROLL for (int r = 0; r < ROWS; ++r) {
        scalar_t window[TILE][TAPS];
        load_row<CHECKED>(s, plane, r, window);
        SIMD for (int j = 0; j < TILE; ++j) {
            acc_t value = 0, slope = 0;
            UNROLL for (int t = 0; t < TAPS; ++t) {
                const acc_t tap = tap_value<CHECKED>(s, window, r, t, j);
                value = fused(x.weight[t][j], tap, value);
                slope = fused(x.slope[t][j], tap, slope);
            }
            UNROLL for (int d = 0; d < NDIM - 1; ++d) grad[d][j] += out_grad[j] * s.row_slope[d][r][j] * value;
            grad[NDIM - 1][j] += out_grad[j] * s.row_weight[r][j] * slope;
        }
    }
}

// The adjoint of sample_plane.
template <bool CHECKED> DEVICE void scatter_plane(const Samples& s, const acc_t* out_grad, acc_t* plane, int count) {
    const Axis& x = s.axis[NDIM - 1];
    for (int j = 0; j < count; ++j) {
        UNROLL for (int r = 0; r < ROWS; ++r) {
            const acc_t share = out_grad[j] * s.row_weight[r][j];
            UNROLL for (int t = 0; t < TAPS; ++t) {
                if (CHECKED && !(s.row_inside[r][j] & x.inside[t][j])) continue;
                add_to(plane + s.row_at[r][j] + x.at[t][j], share * x.weight[t][j]);
            }
        }
    }
}

DEVICE void store_grid_gradient(const GridSampleParams& p, const Item& it, const acc_t grad[][TILE]) {
    coord_t* out = p.grad_grid + (it.n * (index_t)p.pixels + it.first) * NDIM;
    UNROLL for (int d = 0; d < NDIM; ++d) {
        const acc_t scale = grid_scale(p, d);
        for (int j = 0; j < it.count; ++j) narrow(grad[d][j] * scale, out[j * NDIM + NDIM - 1 - d]);
    }
}

KERNEL(grid_sample_planar_backward, GridSampleParams) {
    FOR_EACH(i, p.items) {
        const Item it = item_of(p, i);
        Samples s;
        plan(p, p.input_stride + 2, it, s);
        const index_t pixel_stride = (index_t)p.output_stride[2];
        const scalar_t* grad_output = p.grad_output + it.n * (index_t)p.output_stride[0] + it.first * pixel_stride;
        acc_t grad[NDIM][TILE] = {};
        for (index_t c = it.channel; c < it.channel_end; ++c) {
            const scalar_t* from = grad_output + c * (index_t)p.output_stride[1];
            acc_t out_grad[TILE] = {};
            for (int j = 0; j < it.count; ++j) out_grad[j] = widen(from[j * pixel_stride]);
            if (p.grad_grid) {
                const scalar_t* plane =
                    p.input + it.n * (index_t)p.input_stride[0] + c * (index_t)p.input_stride[1];
                if (TILE > 1 && s.whole) {
                    grid_gradient_plane<false>(s, plane, out_grad, grad);
                } else {
                    grid_gradient_plane<true>(s, plane, out_grad, grad);
                }
            }
            if (p.grad_input) {
                acc_t* plane = p.grad_input + it.n * (index_t)p.grad_stride[0] + c * (index_t)p.grad_stride[1];
                if (TILE > 1 && s.whole) {
                    scatter_plane<false>(s, out_grad, plane, it.count);
                } else {
                    scatter_plane<true>(s, out_grad, plane, it.count);
                }
            }
        }
        if (p.grad_grid) store_grid_gradient(p, it, grad);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Channels next to each other: VEC at a time.

KERNEL(grid_sample_channels, GridSampleParams) {
    FOR_EACH(i, p.items) {
        const Item it = item_of(p, i);
        Samples s;
        plan(p, p.input_stride + 2, it, s);
        const scalar_t* image = p.input + it.n * (index_t)p.input_stride[0];
        scalar_t* output = p.output + it.n * (index_t)p.output_stride[0] + it.first * (index_t)p.output_stride[2];
        for (index_t c = it.channel + LANE * VEC; c < it.channel_end; c += LANES * VEC) {
            const int width = LANES > 1 ? VEC : (int)smaller(index_t(VEC), it.channel_end - c);
            acc_t sum[TILE][VEC];
            for (int j = 0; j < it.count; ++j) sample_channels(s, j, image + c, width, sum[j]);
            store_tile(output + c * (index_t)p.output_stride[1], (index_t)p.output_stride[1],
                       (index_t)p.output_stride[2], it.count, width, sum);
        }
    }
}

KERNEL(grid_sample_channels_backward, GridSampleParams) {
    FOR_EACH(i, p.items) {
        const Item it = item_of(p, i);
        Samples s;
        plan(p, p.input_stride + 2, it, s);
        const scalar_t* grad_output =
            p.grad_output + it.n * (index_t)p.output_stride[0] + it.first * (index_t)p.output_stride[2];
        const scalar_t* image = p.grad_grid ? p.input + it.n * (index_t)p.input_stride[0] : 0;
        acc_t* grad_image = p.grad_input ? p.grad_input + it.n * (index_t)p.grad_stride[0] : 0;
        acc_t grad[NDIM][TILE] = {};
        for (index_t c = it.channel + LANE * VEC; c < it.channel_end; c += LANES * VEC) {
            const int width = LANES > 1 ? VEC : (int)smaller(index_t(VEC), it.channel_end - c);
            acc_t out_grad[TILE][VEC];
            load_tile(grad_output + c * (index_t)p.output_stride[1], (index_t)p.output_stride[1],
                      (index_t)p.output_stride[2], it.count, width, out_grad);
            for (int j = 0; j < it.count; ++j) {
                if (image) coordinate_gradient(s, j, image + c, width, out_grad[j], grad);
                if (grad_image) scatter_channels(s, j, grad_image + c, width, out_grad[j]);
            }
        }
        if (!p.grad_grid) continue;
        UNROLL for (int d = 0; d < NDIM; ++d) {
            for (int j = 0; j < TILE; ++j) grad[d][j] = lane_sum(grad[d][j]);
        }
        if (LANE == 0) store_grid_gradient(p, it, grad);
    }
}
