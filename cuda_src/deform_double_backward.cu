// The gradients of deform_im2col's gradients, and of its adjoint's (duals.cuh), on images and columns whose channels
// lie next to each other.
//
// One item = one output pixel at one tap of an offset group, shared by LANES lanes, each of which takes VEC channels at
// a time.
#define DUAL 1
#include "deform_gradients.cuh"
#include "duals.cuh"

struct DeformDoubleParams {
    const scalar_t* input;
    const coord_t* offset;
    const coord_t* mask;      // null: none
    const scalar_t* columns;  // gradient by the samples
    const scalar_t* input_tangent;
    const coord_t* offset_tangent;
    const coord_t* mask_tangent;
    const scalar_t* columns_tangent;  // each as what it is the tangent of; null: 0
    scalar_t* samples;                // written, as columns; null: not needed, as all that follow
    scalar_t* samples_tangent;        // likewise
    sum_t* grad_input;                // tangents of the gradients: as the input, added to
    coord_t* grad_offset;             // written, as the offsets
    coord_t* grad_mask;               // likewise
    const sum_t* anchors;             // of ROUNDED sums
    long long items;
    long long batch;
    ColumnLayout layout;
    Geometry geometry;
};

// The number that an array of coordinates has for a pixel in one channel; null: 0.
DEVICE acc_t load_tangent(const coord_t* from, const long long* stride, index_t n, index_t channel, index_t pixel) {
    if (!from) return 0;
    return widen(from[n * (index_t)stride[0] + channel * (index_t)stride[1] + pixel * (index_t)stride[2]]);
}

KERNEL(deform_double_backward, DeformDoubleParams) {
    const Geometry& g = p.geometry;
    const index_t count = group_width(g);
    const Sums grad_input = sums_at(p.grad_input, p.anchors, p.batch * g.input_stride[0]);
    FOR_EACH(item, p.items) {
        index_t n = item;
        const index_t pixel = take_digit(n, (index_t)g.pixels, g.inverse_pixels);
        const index_t tap = take_digit(n, (index_t)g.taps, g.inverse_taps);
        const index_t group = take_digit(n, (index_t)g.groups, g.inverse_groups), pair = group * (index_t)g.taps + tap;
        Base base;
        make_base(g, pixel, base);
        TapSamples samples;
        locate_tap(g, p.offset, p.mask, n, group, tap, base, samples);
        acc_t velocity[NDIM][TILE];
        UNROLL for (int d = 0; d < NDIM; ++d) {
            velocity[d][0] = load_tangent(p.offset_tangent, g.offset_stride, n, pair * NDIM + d, pixel);
        }
        const Dual mask = {samples.mask[0], load_tangent(p.mask_tangent, g.mask_stride, n, pair, pixel)};
        DualSums sums = {};
        for (index_t c = LANE * VEC; c < count; c += LANES * VEC) {
            const int width = PACKS || VEC == 1 ? VEC : (int)smaller(index_t(VEC), count - c);
            const index_t channel = group * count + c, at = column_at(p.layout, n, channel, tap, pixel);
            const DualChannels grad = load_dual(p.columns, p.columns_tangent, at, width);
            const DualImage x = {p.input, p.input_tangent, p.grad_input != nullptr, grad_input,
                                 n * (index_t)g.input_stride[0] + channel};
            const DualChannels sample = dual_sample(samples.s, velocity, mask, x, width, grad, p.columns_tangent, sums);
            if (p.samples) store_channels(sample.value, width, p.samples + at);
            if (p.samples_tangent) store_channels(sample.tangent, width, p.samples_tangent + at);
        }
        if (!p.grad_offset && !p.grad_mask) continue;
        SampleGradients grads;
        grads.mask[0] = lane_sum(sums.mask);
        UNROLL for (int d = 0; d < NDIM; ++d) grads.offset[d][0] = lane_sum(sums.coordinate[d]);
        if (LANE == 0) store_gradients(g, grads, n, group, tap, base, p.grad_offset, p.grad_mask);
    }
}
