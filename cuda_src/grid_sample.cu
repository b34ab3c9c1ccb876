// grid_sample: output[n, c, o] = sum over taps of weights(grid[n, o]) * input[n, c, taps]  (arXiv 1506.02025, eq. 3)
//
// Two forms of each pass. `planar` (few channels, or channels far apart): one item = a tile of output pixels, the
// channels one after the other. `channels` (channels next to each other in memory): one item = a tile of pixels,
// shared by LANES lanes, each of which takes VEC channels at a time.
#include "grid_sample.cuh"
#include "planar.cuh"
#include "cubic_rows.cuh"
#include "groups.cuh"
#include "channels.cuh"

template <> constexpr int RESIDENT<GridSampleParams> = NDIM == 3 ? 2 : !PACKS ? 0 : MODE == CUBIC ? 2 : 3;

// ---------------------------------------------------------------------------------------------------------------------
// Planar: one channel after the other.

// Where an image's last pixel lies in it.
DEVICE index_t last_pixel(const GridSampleParams& p) {
    index_t at = 0;
    UNROLL for (int d = 0; d < NDIM; ++d) at += (index_t)(p.size[d] - 1) * (index_t)p.input_stride[2 + d];
    return at;
}

// The tile in a group of channels.
template <bool CHECKED>
DEVICE void sample_group(const GridSampleParams& p, const Samples& s, const scalar_t* const* plane, acc_t sum[][TILE]) {
    if constexpr (CUBIC_ROWS) {
        sample_rows<CHECKED>(s, plane, sum);
    } else if (fits_pixels(s, last_pixel(p))) {
        sample_pixels<CHECKED>(s, plane[0], sum);
    } else {
        sample_planes<CHECKED>(s, plane, sum);
    }
}

KERNEL(grid_sample_planar, GridSampleParams) {
    FOR_EACH(i, p.items) {
        const Item it = item_of(p, i);
        Samples s;
        plan(p, p.input_stride + 2, it, s);
        fetch_next(p, it);
        const scalar_t* image = p.input + it.n * (index_t)p.input_stride[0];
        const index_t channel_stride = (index_t)p.output_stride[1], pixel_stride = (index_t)p.output_stride[2];
        scalar_t* output = p.output + it.n * (index_t)p.output_stride[0] + it.first * pixel_stride;
        index_t later[TILE];
        const bool ahead = look_ahead(p, p.input_stride + 2, it, later);
        for (index_t first = it.channel; first < it.channel_end; first += GROUP) {
            const scalar_t* plane[GROUP];
            group_planes(image, first, it.channel_end, (index_t)p.input_stride[1], plane);
            if (ahead) fetch(later, plane);
            if (COPIED) {
                scalar_t* to[GROUP];
                group_planes(output, first, it.channel_end, channel_stride, to);
                copy_nearest(s, plane, to, pixel_stride, it.count);
                continue;
            }
            acc_t sum[GROUP][TILE];
            const bool whole = TILE > 1 && s.whole;
            if (whole || WEIGHED) sample_group<false>(p, s, plane, sum);
            if (!whole && (!WEIGHED || any_nan<GROUP>(sum))) sample_group<true>(p, s, plane, sum);
            store_group(sum, output + first * channel_stride, channel_stride, pixel_stride, it.count,
                        (int)smaller(index_t(GROUP), it.channel_end - first));
        }
    }
}

// Whoever adds to a slab of an image does nothing else.
DEVICE bool wants_slopes(const GridSampleParams& p) { return !SLABS && p.grad_grid; }

// grad += out_grad * the tile's slopes in a group of channels.
template <bool CHECKED> DEVICE void add_slopes_of(const GridSampleParams& p, const Samples& s,
                                                  const scalar_t* const* plane, const acc_t out_grad[][TILE],
                                                  acc_t grad[][TILE]) {
    if constexpr (CUBIC_ROWS) {
        row_gradients<CHECKED>(s, plane, out_grad, grad);
    } else if (fits_pixels(s, last_pixel(p))) {
        pixel_gradients<CHECKED>(s, plane[0], out_grad, grad);
    } else {
        plane_gradients<CHECKED>(s, plane, out_grad, grad);
    }
}

struct Slopes {
    acc_t by[NDIM][TILE];
};

// The same, without a look at what is outside where that shows no NaN.
DEVICE void add_group_slopes(const GridSampleParams& p, const Samples& s, const scalar_t* const* plane,
                             const acc_t out_grad[][TILE], Slopes& grad) {
    if constexpr (WEIGHED) {
        Slopes sum = grad;
        add_slopes_of<false>(p, s, plane, out_grad, sum.by);
        if (s.whole || !any_nan<NDIM>(sum.by)) {
            grad = sum;
            return;
        }
    }
    add_slopes_of<true>(p, s, plane, out_grad, grad.by);
}

// Both gradients of a tile in the group of channels that begins at `first`.
DEVICE void group_gradients(const GridSampleParams& p, const Samples& s, const Item& it, index_t first,
                            const index_t* later, Slopes& grad) {
    const scalar_t* plane[GROUP];
    Sums target[GROUP];
    if (wants_slopes(p)) {
        const scalar_t* image = p.input + it.n * (index_t)p.input_stride[0];
        group_planes(image, first, it.channel_end, (index_t)p.input_stride[1], plane);
        if (later) fetch(later, plane);
    }
    if (p.grad_input) {
        const Sums image = sums_in(p, p.grad_input + it.n * (index_t)p.grad_stride[0]);
        group_planes(image, first, it.channel_end, (index_t)p.grad_stride[1], target);
        if (later) fetch(later, target);
    }
    acc_t out_grad[GROUP][TILE];
    load_group(p, it, first, out_grad);
    if (wants_slopes(p)) {
        add_group_slopes(p, s, plane, out_grad, grad);
    }
    if (p.grad_input) {
        const int count = (int)smaller(index_t(GROUP), it.channel_end - first);
        if (TILE > 1 && (s.whole || (WEIGHED && all_finite<GROUP>(out_grad)))) {
            scatter_planes<false>(s, out_grad, target, count);
        } else {
            scatter_planes<true>(s, out_grad, target, count);
        }
    }
}

KERNEL(grid_sample_planar_backward, GridSampleParams) {
    FOR_EACH(i, p.items) {
        const Item it = item_of(p, i);
        clear_target(p, it);
        Samples s;
        if (!plan(p, p.input_stride + 2, it, s)) continue;
        if (wants_slopes(p)) fetch_next(p, it);
        index_t later[TILE];
        const bool ahead = look_ahead(p, p.input_stride + 2, it, later);
        Slopes grad = {};
        for (index_t first = it.channel; first < it.channel_end; first += GROUP) {
            group_gradients(p, s, it, first, ahead ? later : nullptr, grad);
        }
        if (wants_slopes(p)) store_grid_gradient(p, it, grad.by);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Channels next to each other: VEC at a time.

KERNEL(grid_sample_channels, GridSampleParams) {
    FOR_EACH(i, p.items) {
        const Item it = item_of(p, i);
        Samples s;
        plan(p, p.input_stride + 2, it, s);
        const Frontier frontier = frontier_of(p, it.n, it.first, it.count);
        const scalar_t* image = p.input + it.n * (index_t)p.input_stride[0];
        scalar_t* output = p.output + it.n * (index_t)p.output_stride[0] + it.first * (index_t)p.output_stride[2];
        for (index_t c = it.channel + LANE * VEC; c < it.channel_end; c += LANES * VEC) {
            const int left = (int)smaller(index_t(VEC), it.channel_end - c);
            const int width = PACKS || left == VEC ? VEC : width_of(left);  // either is a constant
            acc_t sum[TILE][VEC];
            constexpr bool WIDE = VEC * (int)sizeof(scalar_t) >= 256;  // of fewer lines the hardware fetches enough
            if (width == VEC) {                                        // a constant, for straight SIMD code
                for (int j = 0; j < it.count; ++j) {
                    if (WIDE) fetch_soon<VEC>(s, frontier, j, it.count, image + c);
                    sample_channels(s, j, image + c, VEC, sum[j]);
                }
            } else {
                for (int j = 0; j < it.count; ++j) sample_channels(s, j, image + c, width, sum[j]);
            }
            store_tile(output + c * (index_t)p.output_stride[1], (index_t)p.output_stride[1],
                       (index_t)p.output_stride[2], it.count, width, sum);
        }
    }
}

// Both gradients of a tile in the channels c ... c + width - 1.
DEVICE void channel_gradients(const GridSampleParams& p, const Samples& s, const Frontier& frontier, const Item& it,
                              index_t c, int width, const acc_t* out_grad, acc_t grad[][TILE][PARTS]) {
    if (wants_slopes(p)) {
        const scalar_t* image = p.input + it.n * (index_t)p.input_stride[0] + c;
        for (int j = 0; j < it.count; ++j) {
            fetch_soon<VEC>(s, frontier, j, it.count, image);
            coordinate_gradient(s, j, image, width, out_grad + j * VEC, grad);
        }
    }
    if (p.grad_input) {
        sum_t* image = p.grad_input + it.n * (index_t)p.grad_stride[0] + c;
        const Sums sums = sums_in(p, image);
        for (int j = 0; j < it.count; ++j) {
            fetch_soon<VEC>(s, frontier, j, it.count, image);
            scatter_channels(s, j, sums, width, out_grad + j * VEC);
        }
    }
}

KERNEL(grid_sample_channels_backward, GridSampleParams) {
    FOR_EACH(i, p.items) {
        const Item it = item_of(p, i);
        clear_target(p, it);
        Samples s;
        if (!plan(p, p.input_stride + 2, it, s)) continue;
        const Frontier frontier = frontier_of(p, it.n, it.first, it.count);
        const scalar_t* grad_output =
            p.grad_output + it.n * (index_t)p.output_stride[0] + it.first * (index_t)p.output_stride[2];
        acc_t parts[NDIM][TILE][PARTS] = {};
        for (index_t c = it.channel + LANE * VEC; c < it.channel_end; c += LANES * VEC) {
            const int width = PACKS ? VEC : width_of(smaller(index_t(VEC), it.channel_end - c));
            acc_t tile[TILE][VEC], other[TILE * VEC];
            const acc_t* out_grad =
                load_tile(grad_output + c * (index_t)p.output_stride[1], (index_t)p.output_stride[1],
                          (index_t)p.output_stride[2], it.count, width, tile, other);
            if (width == VEC) {
                channel_gradients(p, s, frontier, it, c, VEC, out_grad, parts);
            } else {
                channel_gradients(p, s, frontier, it, c, width, out_grad, parts);
            }
        }
        if (!wants_slopes(p)) continue;
        acc_t grad[NDIM][TILE];
        UNROLL for (int d = 0; d < NDIM; ++d) {
            SIMD for (int j = 0; j < TILE; ++j) grad[d][j] = lane_sum(whole_of(parts[d][j]));
        }
        if (LANE == 0) store_grid_gradient(p, it, grad);
    }
}
