// The gradients of grid_sample's gradients (duals.cuh), on arrays whose channels lie next to each other.
//
// One item = one output pixel, shared by LANES lanes, each of which takes VEC channels at a time.
#define DUAL 1
#include "grid_sample.cuh"
#include "channels.cuh"
#include "duals.cuh"

struct GridSampleDoubleParams {
    const scalar_t* input_tangent;  // as the input; null: 0
    const coord_t* grid_tangent;    // as the grid; null: 0
    GridSampleParams call;          // output and gradients are tangents, and null where they are not needed
};

DEVICE void load_velocity(const GridSampleDoubleParams& p, const Item& it, acc_t* velocity) {
    const index_t pixel = it.n * (index_t)p.call.pixels + it.first;
    UNROLL for (int d = 0; d < NDIM; ++d) {
        const acc_t along = p.grid_tangent ? widen(p.grid_tangent[pixel * NDIM + NDIM - 1 - d]) : acc_t(0);
        velocity[d] = along * grid_scale(p.call, d);
    }
}

KERNEL(grid_sample_double_backward, GridSampleDoubleParams) {
    const GridSampleParams& call = p.call;
    FOR_EACH(i, call.items) {
        const Item it = item_of(call, i);
        Samples s;
        plan(call, call.input_stride + 2, it, s);
        acc_t velocity[NDIM];
        load_velocity(p, it, velocity);
        DualSums sums = {};
        const index_t image = it.n * (index_t)call.input_stride[0];
        const index_t pixel = it.n * (index_t)call.output_stride[0] + it.first * (index_t)call.output_stride[2];
        for (index_t c = LANE * VEC; c < it.channel_end; c += LANES * VEC) {
            const int width = LANES > 1 ? VEC : (int)smaller(index_t(VEC), it.channel_end - c);
            const DualChannels grad = load_dual(call.grad_output, nullptr, pixel + c, width);
            const DualImage x = {call.input, p.input_tangent, call.grad_input, image + c};
            const DualChannels sample = dual_sample(s, velocity, {1, 0}, x, width, grad, false, sums);
            if (call.output) store_channels(sample.tangent, width, call.output + pixel + c);
        }
        if (!call.grad_grid) continue;
        acc_t grad[NDIM][TILE];
        UNROLL for (int d = 0; d < NDIM; ++d) grad[d][0] = lane_sum(sums.coordinate[d]);
        if (LANE == 0) store_grid_gradient(call, it, grad);
    }
}
