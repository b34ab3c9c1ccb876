// grid_sample: output[n, c, o] = sum over taps of weights(grid[n, o]) * input[n, c, taps]       (arXiv 1506.02025, eq. 3)
//
// Two forms of each pass. `planar` (few channels, or channels far apart): one item = a tile of output pixels, the
// channels one after the other. `channels` (channels next to each other in memory): one item = a tile of pixels,
// shared by LANES lanes, each of which takes VEC channels at a time.
#include "core.cuh"
#include "interpolate.cuh"
#include "samples.cuh"
#include "planar.cuh"
#include "channels.cuh"

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

// The tile's coordinates as the grid has them, slowest dimension first.
DEVICE void load_coordinates(const coord_t* grid, int count, acc_t coordinate[][TILE]) {
    if (count == TILE) {
        prefetch_line<TILE * NDIM>(grid + TILE * NDIM);
        SIMD for (int j = 0; j < TILE; ++j) {
            UNROLL for (int d = 0; d < NDIM; ++d) coordinate[d][j] = widen(grid[j * NDIM + NDIM - 1 - d]);
        }
    } else {
        for (int j = 0; j < TILE; ++j) {  // samples that do not exist look outside
            UNROLL for (int d = 0; d < NDIM; ++d) {
                coordinate[d][j] = j < count ? widen(grid[j * NDIM + NDIM - 1 - d]) : acc_t(-4);
            }
        }
    }
}

// Most tiles lie in the interior of an image, where no tap needs a padding: those are spared it.
DEVICE void plan(const GridSampleParams& p, const long long* stride, const Item& it, Samples& s) {
    acc_t coordinate[NDIM][TILE];
    load_coordinates(p.grid + (it.n * (index_t)p.pixels + it.first) * NDIM, it.count, coordinate);
    const acc_t shift = p.align_corners ? acc_t(0) : acc_t(0.5);
    int interior = 1;
    UNROLL for (int d = 0; d < NDIM; ++d) {
        const acc_t scale = grid_scale(p, d);
        SIMD for (int j = 0; j < TILE; ++j) {
            // Infinity times the scale of a single pixel, 0, would be a NaN.
            const acc_t far = acc_t(1e30), g = coordinate[d][j];
            const acc_t finite = PADDING == ZEROS ? g : smaller(larger(g, -far), far);
            coordinate[d][j] = fused(finite + 1, scale, -shift);
            interior &= is_interior(coordinate[d][j], (index_t)p.size[d]);
        }
    }
    UNROLL for (int d = 0; d < NDIM; ++d) {
        const index_t size = (index_t)p.size[d], step = (index_t)stride[d];
        if (TILE > 1 && interior) {
            SIMD for (int j = 0; j < TILE; ++j) locate_interior(s.axis[d], j, coordinate[d][j], step);
            continue;
        }
        const bool align_corners = p.align_corners;
        SIMD for (int j = 0; j < TILE; ++j) { locate(s.axis[d], j, coordinate[d][j], size, step, align_corners); }
        if (WINDOW && d == NDIM - 1) {
            SIMD for (int j = 0; j < TILE; ++j) make_window(s.axis[d], j, size, step);
        }
    }
    make_rows(s);
}

// ---------------------------------------------------------------------------------------------------------------------
// Planar: one channel after the other.

// The channels that a group starts at; beyond the last one it repeats it, and nobody stores what comes of that.
template <typename T> DEVICE void group_planes(T* image, index_t channel, index_t end, index_t stride, T** plane) {
    UNROLL for (int c = 0; c < GROUP; ++c) plane[c] = image + smaller(channel + c, end - 1) * stride;
}

// The tile in `channels` of the group's channels.
DEVICE void store_group(const acc_t sum[][TILE], scalar_t* to, index_t channel_stride, index_t pixel_stride, int count,
                        int channels) {
    if (TILE > 1 && channel_stride == 1 && pixel_stride == GROUP && count == TILE) {
        SIMD for (int j = 0; j < TILE; ++j) {
            UNROLL for (int c = 0; c < GROUP; ++c) narrow(sum[c][j], to[j * GROUP + c]);
        }
        return;
    }
    UNROLL for (int c = 0; c < GROUP; ++c) {
        if (c < channels) store_line<TILE>(sum[c], to + c * channel_stride, pixel_stride, count);
    }
}

KERNEL(grid_sample_planar, GridSampleParams) {
    FOR_EACH(i, p.items) {
        const Item it = item_of(p, i);
        Samples s;
        plan(p, p.input_stride + 2, it, s);
        const scalar_t* image = p.input + it.n * (index_t)p.input_stride[0];
        const index_t channel_stride = (index_t)p.output_stride[1], pixel_stride = (index_t)p.output_stride[2];
        scalar_t* output = p.output + it.n * (index_t)p.output_stride[0] + it.first * pixel_stride;
        for (index_t first = it.channel; first < it.channel_end; first += GROUP) {
            const scalar_t* plane[GROUP];
            group_planes(image, first, it.channel_end, (index_t)p.input_stride[1], plane);
            fetch_row(s, plane);
            acc_t sum[GROUP][TILE];
            if (WINDOW == 2 && s.whole && has_room(s, (index_t)(p.size[NDIM - 1] - 1) * GROUP)) {
                sample_pixels(s, plane[0], sum);
            } else if (TILE > 1 && s.whole) {
                sample_planes<false>(s, plane, sum);
            } else {
                sample_planes<true>(s, plane, sum);
            }
            store_group(sum, output + first * channel_stride, channel_stride, pixel_stride, it.count,
                        (int)smaller(index_t(GROUP), it.channel_end - first));
        }
    }
}

DEVICE void store_grid_gradient(const GridSampleParams& p, const Item& it, const acc_t grad[][TILE]) {
    coord_t* out = p.grad_grid + (it.n * (index_t)p.pixels + it.first) * NDIM;
    acc_t scale[NDIM];
    UNROLL for (int d = 0; d < NDIM; ++d) scale[d] = grid_scale(p, d);
    if (it.count == TILE) {
        prefetch_line<TILE * NDIM>(out + TILE * NDIM);
        SIMD for (int j = 0; j < TILE; ++j) {
            UNROLL for (int d = 0; d < NDIM; ++d) narrow(grad[d][j] * scale[d], out[j * NDIM + NDIM - 1 - d]);
        }
    } else {
        for (int j = 0; j < it.count; ++j) {
            UNROLL for (int d = 0; d < NDIM; ++d) narrow(grad[d][j] * scale[d], out[j * NDIM + NDIM - 1 - d]);
        }
    }
}

// The group's gradients by the output, zero where there is no pixel or no channel.
DEVICE void load_group(const GridSampleParams& p, const Item& it, index_t first, acc_t out_grad[][TILE]) {
    const index_t pixel_stride = (index_t)p.output_stride[2];
    const scalar_t* from = p.grad_output + it.n * (index_t)p.output_stride[0] + it.first * pixel_stride;
    UNROLL for (int c = 0; c < GROUP; ++c) {
        const scalar_t* line = from + smaller(first + c, it.channel_end - 1) * (index_t)p.output_stride[1];
        const int count = first + c < it.channel_end ? it.count : 0;
        if (count < TILE) {
            for (int j = 0; j < TILE; ++j) out_grad[c][j] = 0;
        }
        load_line<TILE>(line, pixel_stride, count, out_grad[c]);
    }
}

// Both gradients of a tile in the group of channels that begins at `first`.
DEVICE void group_gradients(const GridSampleParams& p, const Samples& s, const Item& it, index_t first,
                            acc_t grad[][TILE]) {
    const scalar_t* plane[GROUP];
    acc_t* target[GROUP];
    if (p.grad_grid) {
        const scalar_t* image = p.input + it.n * (index_t)p.input_stride[0];
        group_planes(image, first, it.channel_end, (index_t)p.input_stride[1], plane);
        fetch_row(s, plane);
    }
    if (p.grad_input) {
        acc_t* image = p.grad_input + it.n * (index_t)p.grad_stride[0];
        group_planes(image, first, it.channel_end, (index_t)p.grad_stride[1], target);
        fetch_row(s, target);
    }
    acc_t out_grad[GROUP][TILE];
    load_group(p, it, first, out_grad);
    if (p.grad_grid) {
        if (WINDOW == 2 && s.whole && has_room(s, (index_t)(p.size[NDIM - 1] - 1) * GROUP)) {
            pixel_gradients(s, plane[0], out_grad, grad);
        } else if (TILE > 1 && s.whole) {
            plane_gradients<false>(s, plane, out_grad, grad);
        } else {
            plane_gradients<true>(s, plane, out_grad, grad);
        }
    }
    if (p.grad_input) {
        const int count = (int)smaller(index_t(GROUP), it.channel_end - first);
        if (TILE > 1 && s.whole) {
            scatter_planes<false>(s, out_grad, target, count);
        } else {
            scatter_planes<true>(s, out_grad, target, count);
        }
    }
}

KERNEL(grid_sample_planar_backward, GridSampleParams) {
    FOR_EACH(i, p.items) {
        const Item it = item_of(p, i);
        Samples s;
        plan(p, p.input_stride + 2, it, s);
        acc_t grad[NDIM][TILE] = {};
        for (index_t first = it.channel; first < it.channel_end; first += GROUP) {
            group_gradients(p, s, it, first, grad);
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
            if (width == VEC) {  // a constant, for straight SIMD code
                for (int j = 0; j < it.count; ++j) sample_channels(s, j, image + c, VEC, sum[j]);
            } else {
                for (int j = 0; j < it.count; ++j) sample_channels(s, j, image + c, width, sum[j]);
            }
            store_tile(output + c * (index_t)p.output_stride[1], (index_t)p.output_stride[1],
                       (index_t)p.output_stride[2], it.count, width, sum);
        }
    }
}

// Both gradients of a tile in the channels c ... c + width - 1.
DEVICE void channel_gradients(const GridSampleParams& p, const Samples& s, const Item& it, index_t c, int width,
                              const acc_t* out_grad, acc_t grad[][TILE]) {
    if (p.grad_grid) {
        const scalar_t* image = p.input + it.n * (index_t)p.input_stride[0] + c;
        for (int j = 0; j < it.count; ++j) coordinate_gradient(s, j, image, width, out_grad + j * VEC, grad);
    }
    if (p.grad_input) {
        acc_t* image = p.grad_input + it.n * (index_t)p.grad_stride[0] + c;
        for (int j = 0; j < it.count; ++j) scatter_channels(s, j, image, width, out_grad + j * VEC);
    }
}

KERNEL(grid_sample_channels_backward, GridSampleParams) {
    FOR_EACH(i, p.items) {
        const Item it = item_of(p, i);
        Samples s;
        plan(p, p.input_stride + 2, it, s);
        const scalar_t* grad_output =
            p.grad_output + it.n * (index_t)p.output_stride[0] + it.first * (index_t)p.output_stride[2];
        acc_t grad[NDIM][TILE] = {};
        for (index_t c = it.channel + LANE * VEC; c < it.channel_end; c += LANES * VEC) {
            const int width = LANES > 1 ? VEC : (int)smaller(index_t(VEC), it.channel_end - c);
            acc_t tile[TILE][VEC], other[TILE * VEC];
            const acc_t* out_grad =
                load_tile(grad_output + c * (index_t)p.output_stride[1], (index_t)p.output_stride[1],
                          (index_t)p.output_stride[2], it.count, width, tile, other);
            if (width == VEC) {
                channel_gradients(p, s, it, c, VEC, out_grad, grad);
            } else {
                channel_gradients(p, s, it, c, width, out_grad, grad);
            }
        }
        if (!p.grad_grid) continue;
        UNROLL for (int d = 0; d < NDIM; ++d) {
            for (int j = 0; j < TILE; ++j) grad[d][j] = lane_sum(grad[d][j]);
        }
        if (LANE == 0) store_grid_gradient(p, it, grad);
    }
}
