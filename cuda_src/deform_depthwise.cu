// A convolution in which every channel is a group with one output, on a GPU:
//
//     output[n, c, o] = bias[c] + sum over i of weight[c, i] column[n, c, i, o]              (see deform_im2col.cu)
//     grad_weight[c, i] = sum over n, o of grad_output[n, c, o] column[n, c, i, o]
//
// A product would read each column for a single multiplication. Here a thread uses its samples at once, and no column
// is written. Threads have VEC neighbouring channels of an offset group; LANES of them share an item, some channels.
#include "deform.cuh"

struct DepthwiseParams {
    const scalar_t* input;
    const coord_t* offset;
    const coord_t* mask;         // null: none
    const scalar_t* weight;      // [tap][channel]
    const scalar_t* bias;        // null: none
    scalar_t* output;            // or its gradient
    acc_t* sums;                 // [chunk][tap][channel], of grad_weight
    long long items;             // groups * blocks * batch * pixels, or groups * blocks * chunks * taps
    long long blocks;            // of a group's channels
    long long chunks;            // of the pixels of all images
    long long opens;             // whether nothing has been added to the sums yet
    long long output_stride[3];  // batch, channel, pixel
    Geometry geometry;
};

template <> constexpr int RESIDENT<DepthwiseParams> = !PACKS ? 0 : NDIM < 3 && sizeof(scalar_t) < 8 ? 4 : 2;

// A thread's channels, if it has any.
struct Own {
    index_t group, begin;
    bool some;
};

DEVICE Own own_channels(const DepthwiseParams& p, index_t block) {
    const index_t count = group_width(p.geometry);
    index_t group = block;
    const index_t within = take_digit(group, (index_t)p.blocks) * (LANES * VEC) + LANE * VEC;
    return {group, group * count + within, within < count};
}

DEVICE index_t output_at(const DepthwiseParams& p, index_t n, const Own& own, index_t pixel) {
    return n * (index_t)p.output_stride[0] + own.begin * (index_t)p.output_stride[1] +
           pixel * (index_t)p.output_stride[2];
}

DEVICE void make_column(const DepthwiseParams& p, index_t n, const Own& own, index_t tap, const Base& base,
                        acc_t* column) {
    const Geometry& g = p.geometry;
    TapSamples samples;
    locate_tap(g, p.offset, p.mask, n, own.group, tap, base, samples);
    const index_t at = n * (index_t)g.input_stride[0] + own.begin * (index_t)g.input_stride[1];
    sample_tap(samples, 0, p.input + at, VEC, column);
}

KERNEL(deform_depthwise, DepthwiseParams) {
    const Geometry& g = p.geometry;
    FOR_EACH(item, p.items) {
        index_t block = item;
        const index_t pixel = take_digit(block, (index_t)g.pixels, g.inverse_pixels);
        const index_t n = take_digit(block, (index_t)g.batch, g.inverse_batch);
        const Own own = own_channels(p, block);
        if (!own.some) continue;
        Base base;
        make_base(g, pixel, base);
        acc_t sum[VEC], column[VEC], weight[VEC];
        for (int v = 0; v < VEC; ++v) sum[v] = p.bias ? widen(p.bias[own.begin + v]) : acc_t(0);
        for (index_t tap = 0; tap < (index_t)g.taps; ++tap) {
            make_column(p, n, own, tap, base, column);
            load_channels(p.weight + tap * (index_t)g.channels + own.begin, VEC, weight);
            UNROLL for (int v = 0; v < VEC; ++v) sum[v] = fused(weight[v], column[v], sum[v]);
        }
        store_channels(sum, VEC, p.output + output_at(p, n, own, pixel));
    }
}

KERNEL(deform_depthwise_weights, DepthwiseParams) {
    const Geometry& g = p.geometry;
    const index_t pixels = (index_t)g.pixels, all = (index_t)g.batch * pixels, taps = (index_t)g.taps;
    const index_t length = (all + (index_t)p.chunks - 1) / (index_t)p.chunks;
    FOR_EACH(item, p.items) {
        index_t block = item;
        const index_t tap = take_digit(block, taps, g.inverse_taps), chunk = take_digit(block, (index_t)p.chunks);
        const Own own = own_channels(p, block);
        if (!own.some) continue;
        acc_t sum[VEC] = {}, column[VEC], grad[VEC];
        for (index_t i = chunk * length; i < smaller((chunk + 1) * length, all); ++i) {
            index_t n = i;
            const index_t pixel = take_digit(n, pixels, g.inverse_pixels);
            Base base;
            make_base(g, pixel, base);
            make_column(p, n, own, tap, base, column);
            load_channels(p.output + output_at(p, n, own, pixel), VEC, grad);
            UNROLL for (int v = 0; v < VEC; ++v) sum[v] = fused(grad[v], column[v], sum[v]);
        }
        acc_t* to = p.sums + (chunk * taps + tap) * (index_t)g.channels + own.begin;
        for (int v = 0; v < VEC; ++v) to[v] = p.opens ? sum[v] : to[v] + sum[v];
    }
}
