// The gradients of grid_sample's gradients (duals.cuh).
//
// Two forms. `planar`, on a CPU: one item = a tile of output pixels, GROUP channels at a time. `channels` (next to each
// other in memory): one item = one output pixel, shared by LANES lanes, each of which takes VEC channels at a time.
#define DUAL 1
#include "grid_sample.cuh"
#include "planar.cuh"
#include "groups.cuh"
#include "channels.cuh"
#include "duals.cuh"

struct GridSampleDoubleParams {
    const scalar_t* input_tangent;  // as the input; null: 0
    const coord_t* grid_tangent;    // as the grid; null: 0
    GridSampleParams call;          // output and gradients are tangents, and null where they are not needed
};

DEVICE void load_velocity(const GridSampleDoubleParams& p, const Item& it, acc_t velocity[][TILE]) {
    const index_t pixel = it.n * (index_t)p.call.pixels + it.first;
    UNROLL for (int d = 0; d < NDIM; ++d) {
        const acc_t scale = grid_scale(p.call, d);
        for (int j = 0; j < TILE; ++j) {
            const bool some = p.grid_tangent && j < it.count;
            velocity[d][j] = some ? widen(p.grid_tangent[(pixel + j) * NDIM + NDIM - 1 - d]) * scale : acc_t(0);
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Planar: one tap of a tile of samples after the other.

// Make a tap that lies outside count for nothing.
DEVICE void leave_out(DualTaps& taps) {
    SIMD for (int j = 0; j < TILE; ++j) {
        const int inside = taps.inside[j];
        taps.weight[j] = keep(taps.weight[j], inside);
        taps.weight_tangent[j] = keep(taps.weight_tangent[j], inside);
        UNROLL for (int d = 0; d < NDIM; ++d) {
            taps.slope[d][j] = keep(taps.slope[d][j], inside);
            taps.slope_tangent[d][j] = keep(taps.slope_tangent[d][j], inside);
        }
    }
}

// Null: 0.
DEVICE void load_taps(const scalar_t* plane, const DualTaps& taps, acc_t* to) {
    if (!plane) {
        SIMD for (int j = 0; j < TILE; ++j) to[j] = 0;
        return;
    }
    for (int j = 0; j < TILE; ++j) {
        to[j] = widen(plane[taps.at[j]]);
        SCALAR_LOOP;
    }
}

// What a group of channels has: null where it is not there, or not needed.
struct DualGroup {
    const scalar_t *plane[GROUP], *tangent[GROUP];
    sum_t* target[GROUP];
    acc_t out_grad[GROUP][TILE], sample[GROUP][TILE];
    int count;
};

// What one tap of each sample contributes to its channels, and to the gradients by coordinates.
DEVICE void add_taps(const DualTaps& taps, DualGroup& group, acc_t coordinate[][TILE]) {
    acc_t value[TILE] = {}, tangent[TILE] = {};  // of the sum over channels of the gradient times the image
    UNROLL for (int c = 0; c < GROUP; ++c) {
        if (c >= group.count) break;
        acc_t x[TILE], along[TILE];
        load_taps(group.plane[c], taps, x);
        load_taps(group.tangent[c], taps, along);
        SIMD for (int j = 0; j < TILE; ++j) {
            const acc_t moved = add_product(taps.weight_tangent[j], x[j], group.sample[c][j]);
            group.sample[c][j] = add_product(taps.weight[j], along[j], moved);
            const acc_t grad = group.out_grad[c][j];
            value[j] = fused(grad, keep(x[j], taps.inside[j]), value[j]);
            tangent[j] = fused(grad, keep(along[j], taps.inside[j]), tangent[j]);
        }
        if (!group.target[c]) continue;
        acc_t share[TILE];
        SIMD for (int j = 0; j < TILE; ++j) {
            share[j] = keep(group.out_grad[c][j] * taps.weight_tangent[j], taps.inside[j]);
        }
        for (int k = 0; k < TILE / STREAMS; ++k) {
            UNROLL for (int stream = 0; stream < STREAMS; ++stream) {
                const int j = k + stream * (TILE / STREAMS);
                group.target[c][taps.at[j]] += share[j];
            }
            SCALAR_LOOP;
        }
    }
    UNROLL for (int d = 0; d < NDIM; ++d) {
        SIMD for (int j = 0; j < TILE; ++j) {
            const acc_t moved = add_product(taps.slope_tangent[d][j], value[j], coordinate[d][j]);
            coordinate[d][j] = add_product(taps.slope[d][j], tangent[j], moved);
        }
    }
}

// The group's planes of an image; null where that is.
template <typename T>
DEVICE void planes_of(const GridSampleParams& call, T* image, const Item& it, index_t first, T** plane) {
    UNROLL for (int c = 0; c < GROUP; ++c) plane[c] = nullptr;
    if (!image) return;
    image += it.n * (index_t)call.input_stride[0];
    group_planes(image, first, it.channel_end, (index_t)call.input_stride[1], plane);
}

DEVICE void begin_group(const GridSampleDoubleParams& p, const Item& it, index_t first, DualGroup& group) {
    planes_of(p.call, p.call.input, it, first, group.plane);
    planes_of(p.call, p.input_tangent, it, first, group.tangent);
    planes_of(p.call, p.call.grad_input, it, first, group.target);
    UNROLL for (int c = 0; c < GROUP; ++c) {
        SIMD for (int j = 0; j < TILE; ++j) group.out_grad[c][j] = group.sample[c][j] = 0;
    }
    if (p.call.grad_output) load_group(p.call, it, first, group.out_grad);
    group.count = (int)smaller(index_t(GROUP), it.channel_end - first);
}

KERNEL(grid_sample_planar_double_backward, GridSampleDoubleParams) {
    const GridSampleParams& call = p.call;
    const index_t channel_stride = (index_t)call.output_stride[1], pixel_stride = (index_t)call.output_stride[2];
    FOR_EACH(i, call.items) {
        const Item it = item_of(call, i);
        Samples s;
        plan(call, call.input_stride + 2, it, s);
        acc_t velocity[NDIM][TILE], coordinate[NDIM][TILE] = {};
        load_velocity(p, it, velocity);
        const index_t at = it.n * (index_t)call.output_stride[0] + it.first * pixel_stride;
        for (index_t first = it.channel; first < it.channel_end; first += GROUP) {
            DualGroup group;
            begin_group(p, it, first, group);
            for (int k = 0; k < ROWS * TAPS; ++k) {
                DualTaps taps;
                make_taps(s, velocity, k, taps);
                if (!s.whole) leave_out(taps);
                add_taps(taps, group, coordinate);
            }
            if (!call.output) continue;
            scalar_t* output = call.output + at + first * channel_stride;
            store_group(group.sample, output, channel_stride, pixel_stride, it.count, group.count);
        }
        if (call.grad_grid) store_grid_gradient(call, it, coordinate);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Channels next to each other: VEC at a time.

KERNEL(grid_sample_double_backward, GridSampleDoubleParams) {
    const GridSampleParams& call = p.call;
    const Sums grad_input = sums_in(call, call.grad_input);
    FOR_EACH(i, call.items) {
        const Item it = item_of(call, i);
        Samples s;
        plan(call, call.input_stride + 2, it, s);
        acc_t velocity[NDIM][TILE];
        load_velocity(p, it, velocity);
        DualSums sums = {};
        const index_t image = it.n * (index_t)call.input_stride[0];
        const index_t pixel = it.n * (index_t)call.output_stride[0] + it.first * (index_t)call.output_stride[2];
        for (index_t c = LANE * VEC; c < it.channel_end; c += LANES * VEC) {
            const int width = PACKS || VEC == 1 ? VEC : (int)smaller(index_t(VEC), it.channel_end - c);
            const DualChannels grad = load_dual(call.grad_output, nullptr, pixel + c, width);
            const DualImage x = {call.input, p.input_tangent, call.grad_input != nullptr, grad_input, image + c};
            const DualChannels sample = dual_sample(s, velocity, {1, 0}, x, width, grad, false, sums);
            if (call.output) store_channels(sample.tangent, width, call.output + pixel + c);
        }
        if (!call.grad_grid) continue;
        acc_t grad[NDIM][TILE];
        UNROLL for (int d = 0; d < NDIM; ++d) grad[d][0] = lane_sum(sums.coordinate[d]);
        if (LANE == 0) store_grid_gradient(call, it, grad);
    }
}
