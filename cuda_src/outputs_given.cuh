// A tile of outputs where weights are as given: [output][pixel of PIXELS].
#include "given.cuh"

// The output channels of an item.
DEVICE Outputs outputs_of(const DeformConvParams& p, index_t part) {
    const index_t all = (index_t)p.cut.out_channels, blocks = (all + MR - 1) / MR, parts = (index_t)p.parts;
    return {part * blocks / parts * MR, smaller((part + 1) * blocks / parts * MR, all)};
}

DEVICE void begin_outputs(const DeformConvParams& p, Outputs of, index_t, acc_t* total) {
    for (index_t o = of.begin; o < of.end; ++o) {
        const acc_t bias = p.bias ? widen(p.bias[o]) : acc_t(0);
        SIMD for (int j = 0; j < PIXELS; ++j) total[o * PIXELS + j] = bias;
    }
}

DEVICE bool has_nan(const DeformConvParams&, Outputs of, index_t count, const acc_t* total) {
    return any_nan(total + of.begin * PIXELS, of.end - of.begin, PIXELS, count);
}

DEVICE void multiply_piece(const DeformConvParams& p, Outputs of, index_t count, const Piece& piece,
                           const acc_t* columns, acc_t* total) {
    acc_t* panels = total + PIXELS * output_row(p.cut);
    make_panels(piece, count, columns, panels);
    multiply_given(p.geometry, p.cut, of, count, piece, p.weight, panels, total);
}

DEVICE void end_outputs(const DeformConvParams& p, Outputs of, index_t count, acc_t* total, scalar_t* output) {
    for (index_t o = of.begin; o < of.end; ++o) {
        store_line<PIXELS>(total + o * PIXELS, output + o * (index_t)p.output_stride[1], (index_t)p.output_stride[2],
                           (int)count);
    }
}
