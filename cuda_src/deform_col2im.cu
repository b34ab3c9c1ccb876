// deform_col2im and the gradients of deform_im2col. With the gradient of the columns, per sample of channel c:
//
//     grad_input[n, c, corner] += column * mask * weight(corner)
//     grad_offset_d            += column * mask * slope_d           summed over the channels of the offset group
//     grad_mask                += column * value
//
// The columns that the gradient of a convolution's weights needs, mask * value, come from the same pass. Where every
// channel is a group with one output (WEIGHTED, on a GPU), a column is the product of one weight and the output's
// gradient, which is laid out as columns without taps.
//
// One item = a tile of output pixels at one tap of an offset group, shared by LANES lanes. On a CPU the items that add
// to one target belong together: they are all taps of a span of an image's tiles, in a block of its channels.
#include "deform_gradients.cuh"

#ifndef WEIGHTED
#define WEIGHTED 0
#endif

struct DeformCol2imParams {
    const scalar_t* input;  // null: only grad_input is wanted
    const coord_t* offset;
    const coord_t* mask;       // null: none
    const scalar_t* columns;   // gradient by the columns
    const scalar_t* weight;    // [tap][channel], if WEIGHTED
    scalar_t* samples;         // written, as columns are laid out, and may be the same; null: not needed
    sum_t* grad_input;         // [span], added to; null: not needed
    coord_t* grad_offset;      // written, contiguous in the order of offset's strides; null: not needed
    coord_t* grad_mask;        // written likewise; null: not needed
    const sum_t* anchors;      // of ROUNDED sums, whose parts lie as spans do
    long long items;           // groups * blocks of a group's channels * batch * spans * taps * tiles of a span
    long long spans;           // 1 on a GPU
    long long span_stride;     // from the images that one span adds to, to the next
    long long opens;           // whether a host's items zero grad_input first
    long long channel_block;   // channels of one item; below channels / groups only where grad_input alone is wanted
    long long grad_stride[5];  // of grad_input
    ColumnLayout layout;       // of columns
    Geometry geometry;
};

struct Place {
    index_t n, group, tap, span, first, channel, channel_end;
    bool opens;  // is the first of a host's items that add to one target
};

DEVICE Place place_of(const DeformCol2imParams& p, index_t item) {
    const Geometry& g = p.geometry;
    const index_t tiles = ((index_t)g.pixels + TILE - 1) / TILE, taps = (index_t)g.taps, batch = (index_t)g.batch;
    const index_t count = group_width(g), length = (index_t)p.channel_block;
    const index_t blocks = (count + length - 1) / length;
    Place it;
    if (PACKS) {  // groups and taps of a pixel follow one another
        it.group = take_digit(item, (index_t)g.groups, g.inverse_groups);
        it.tap = take_digit(item, taps, g.inverse_taps);
        it.first = take_digit(item, tiles, g.inverse_pixels);
        it.n = item;
        it.span = it.channel = 0;
        it.opens = false;
    } else {
        const index_t spans = (index_t)p.spans, all = (tiles + spans - 1) / spans, parts = (index_t)g.groups * blocks;
        const index_t tile = take_digit(item, all);
        it.tap = take_digit(item, taps);
        it.opens = CLEARS && tile == 0 && it.tap == 0;
        it.span = take_digit(item, spans);
        it.n = take_digit(item, batch);
        it.first = (it.span * all + (TILE > 1 ? tile_of_part(tile, all, item, parts) : tile)) * TILE;
        it.channel = take_digit(item, blocks) * length;
        it.group = item;
    }
    it.channel_end = it.group * count + smaller(it.channel + length, count);
    it.channel += it.group * count;
    return it;
}

// The gradients of a sample at its tap that come from a lane's channels from c on, by lanes of a GPU. Reads begin
// together, and before atomics, behind which they would wait.
DEVICE void visit_sample(const DeformCol2imParams& p, const Place& it, const TapSamples& samples, index_t c,
                         sum_t* grad_input, Dots& dots) {
    const Geometry& g = p.geometry;
    Words pixel[CORNERS];
    load_corners(samples, p.input, it.n * (index_t)g.input_stride[0] + c * (index_t)g.input_stride[1], pixel);
    const index_t at = column_at(p.layout, it.n, c, it.tap, it.first);
    acc_t column[VEC], value[VEC];
    load_channels(p.columns + at, VEC, column);
    if (WEIGHTED) {
        acc_t weight[VEC];
        load_channels(p.weight + it.tap * (index_t)g.channels + c, VEC, weight);
        UNROLL for (int v = 0; v < VEC; ++v) column[v] *= weight[v];
    }
    if (p.input) differentiate_corners(samples, pixel, column, value, dots);
    if (p.samples) store_channels(value, VEC, p.samples + at);
    if (!grad_input) return;
    scatter_tap(samples, 0, sums_at(grad_input + c * (index_t)p.grad_stride[1], p.anchors, p.span_stride), VEC, column);
}

// The gradients of a tile at its tap that come from the `width` channels from c on; `grad_input` is the image's, or
// null.
DEVICE void visit(const DeformCol2imParams& p, const Place& it, const Base& base, const TapSamples& samples, index_t c,
                  int width, sum_t* grad_input, Dots& dots) {
    const Geometry& g = p.geometry;
    const index_t channel_stride = (index_t)p.layout.stride[1], pixel_stride = (index_t)p.layout.stride[3];
    acc_t tile[TILE][VEC], other[TILE * VEC];
    const index_t at = column_at(p.layout, it.n, c, it.tap, it.first);
    acc_t* column = load_tile(p.columns + at, channel_stride, pixel_stride, base.count, width, tile, other);
    if (WEIGHTED) {
        acc_t weight[VEC];
        load_channels(p.weight + it.tap * (index_t)g.channels + c, width, weight);
        UNROLL for (int v = 0; v < VEC; ++v) column[v] *= weight[v];
    }
    if (grad_input) {
        const Sums grad = sums_at(grad_input + c * (index_t)p.grad_stride[1], p.anchors, p.span_stride);
        for (int j = 0; j < base.count; ++j) scatter_tap(samples, j, grad, width, column + j * VEC);
    }
    if (p.input) {
        const scalar_t* image = p.input + it.n * (index_t)g.input_stride[0] + c * (index_t)g.input_stride[1];
        for (int j = 0; j < base.count; ++j) differentiate_tap(samples, j, image, width, column + j * VEC, dots);
        if (p.samples && any_nan(column, base.count, VEC, width)) {
            sample_again(samples, base.count, image, width, column, VEC);
        }
    }
    if (!p.samples) return;
    store_tile(p.samples + at, channel_stride, pixel_stride, base.count, width, (acc_t(*)[VEC])column);
}

KERNEL(deform_col2im, DeformCol2imParams) {
    const Geometry& g = p.geometry;
    FOR_EACH(item, p.items) {
        const Place it = place_of(p, item);
        sum_t* grad_input = p.grad_input ? p.grad_input + it.span * p.span_stride + it.n * p.grad_stride[0] : nullptr;
        if (it.opens && p.opens && grad_input) {
            clear(grad_input, (index_t)p.grad_stride[1], (index_t)p.grad_stride[1 + NDIM], it.channel, it.channel_end,
                  input_pixels(g));
        }
        if (TILE > 1 && it.first >= (index_t)g.pixels) continue;  // the last span may be shorter
        Base base;
        make_base(g, it.first, base);
        TapSamples samples;
        locate_tap(g, p.offset, p.mask, it.n, it.group, it.tap, base, samples);
        Dots dots = {};
        for (index_t c = it.channel + LANE * VEC; c < it.channel_end; c += LANES * VEC) {
            if constexpr (PACKS) {
                visit_sample(p, it, samples, c, grad_input, dots);
            } else {
                visit(p, it, base, samples, c, width_of(smaller(index_t(VEC), it.channel_end - c)), grad_input, dots);
            }
        }
        if (!p.grad_offset && !p.grad_mask) continue;
        SampleGradients grads;
        make_gradients(samples, dots, grads);
        for (int j = 0; j < base.count; ++j) {
            grads.mask[j] = lane_sum(grads.mask[j]);
            UNROLL for (int d = 0; d < NDIM; ++d) grads.offset[d][j] = lane_sum(grads.offset[d][j]);
        }
        if (LANE == 0) store_gradients(g, grads, it.n, it.group, it.tap, base, p.grad_offset, p.grad_mask);
    }
}
