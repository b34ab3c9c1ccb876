// All gradients of the host's deformable convolution in one pass over tiles of pixels:
//
//     column[p, c, i] = sum over o of grad_output[o, p] weight[o, c, i]      becomes the gradients of deform_col2im.cu
//     grad_weight[o, c, i] += sum over p of grad_output[o, p] mask value     from the samples of the same visit
//
// One item = a chunk of channels in a span of the tiles of every `image_sets`-th image: no two items add to the same
// element. What several of them share (offsets and masks of a group's chunks, the image of several spans, weights of
// all image_sets and spans) is summed afterwards.
#include "deform_gradients.cuh"
#include "product.cuh"
#include "pieces.cuh"
#include "strips.cuh"
#include "gradient_products.cuh"

struct DeformConvBackwardParams {
    const scalar_t* grad_output;
    const image_t* input;  // channels next to each other; null: not read
    const coord_t* offset;
    const coord_t* mask;     // null: none
    const scalar_t* weight;  // (out_channels, channels / groups, taps), contiguous
    acc_t* grad_input;       // [span][channels next to each other]; null: not needed
    acc_t* part_offset;      // [chunk of the group][as offset]; null: not needed
    acc_t* part_mask;        // [chunk of the group][as mask]; null: not needed
    acc_t* packed;  // [image set][span][as packed weights, or where tiles are: piece, output, depth]; null: not needed;
                    // where weights are as given, the sums of their gradient in the same order
    scalar_t* grad_weight;  // written by deform_conv_unpack
    acc_t* scratch;
    long long items;  // image_sets * spans * chunks
    long long image_sets;
    long long spans;
    long long span_stride;       // from the image that one span adds to, to the next
    long long opens;             // whether `packed` begins with these images, rather than being added to
    long long packed_size;       // numbers of one span
    long long group_stride;      // from the channels of an offset group to those of the next, of image and gradient
    long long output_stride[3];  // of grad_output: batch, channel, pixel
    long long grad_stride[5];    // of grad_input
    Cut cut;
    Geometry geometry;
};

// What an item works on.
struct Share {
    Chunk chunk;
    index_t part;       // the chunk's number in its group
    acc_t* grad_input;  // null: not needed
    acc_t* packed;      // likewise
};

// What to add to a channel's number for its place in a pixel of the image, or of its gradient.
DEVICE index_t origin_of(const DeformConvBackwardParams& p, const Chunk& chunk) {
    return chunk.group * ((index_t)p.group_stride - group_width(p.geometry));
}

// What one tap of a tile adds to every gradient but the weights'; leaves in `columns` what those are made of.
DEVICE void visit_tap(const DeformConvBackwardParams& p, const Share& share, index_t n, index_t first_tap, index_t tap,
                      const Base& base, acc_t* columns) {
    const Geometry& g = p.geometry;
    const Chunk& chunk = share.chunk;
    TapSamples samples;
    locate_tap(g, p.offset, p.mask, n, chunk.group, tap, base, samples);
    const bool slopes = p.part_offset || p.part_mask;
    Dots dots;
    if (slopes) dots = {};
    for_pieces(g, p.cut, chunk, first_tap, [&](const Piece& piece) {
        const int width = width_of(piece.end - piece.begin);
        const index_t at = origin_of(p, chunk) + piece.begin;
        const index_t image = n * (index_t)g.input_stride[0] + at;
        acc_t* column = columns + piece.column + (tap - first_tap) * width;
        for (int j = 0; j < base.count; ++j, column += COLUMNS) {
            if (share.grad_input) {
                acc_t* grad = share.grad_input + n * (index_t)p.grad_stride[0] + at;
                scatter_tap(samples, j, grad, width, column);
            }
            if (slopes) {
                differentiate_tap(samples, j, p.input + image, width, column, dots);
            } else if (share.packed) {
                sample_tap<false>(samples, j, p.input + image, width, column);
            }
        }
    });
    if (!slopes) return;
    SampleGradients grads;
    make_gradients(samples, dots, grads);
    const index_t place = share.part * (index_t)g.batch + n;
    store_gradients(g, grads, place, chunk.group, tap, base, p.part_offset, p.part_mask);
}

// Samples a tile's columns again where corners that weigh nothing made NaNs of them.
SELDOM void mend_columns(const DeformConvBackwardParams& p, const Share& share, index_t n, index_t first_tap,
                         index_t first, index_t count, acc_t* columns) {
    const Geometry& g = p.geometry;
    const Chunk& chunk = share.chunk;
    const index_t end = smaller(first_tap + taps_at_once(chunk), (index_t)g.taps);
    const image_t* image = p.input + n * (index_t)g.input_stride[0] + origin_of(p, chunk);
    for (index_t done = 0; done < count; done += TILE) {
        Base base;
        make_base(g, first + done, base);
        for (index_t tap = first_tap; tap < end; ++tap) {
            TapSamples samples;
            locate_tap(g, p.offset, p.mask, n, chunk.group, tap, base, samples);
            acc_t* to = columns + done * COLUMNS;
            sample_pieces<true>(g, p.cut, chunk, first_tap, tap, samples, base.count, image, to);
        }
    }
}

// The gradients of a piece's columns.
DEVICE void differentiate_columns(const DeformConvBackwardParams& p, index_t count, const Piece& piece,
                                  const Scratch& s, const acc_t* packed) {
#if GIVEN
    const Matrix weights = weights_of<false>(p.geometry, p.cut, piece, p.weight, s.wide);
    multiply_given_weights(p.cut, count, piece, weights, s.grads, s.weights);
    turn_columns<true>(piece, count, s.weights, s.columns);
#else
    multiply_weights(p.geometry, p.cut, count, piece, s, packed);
#endif
}

// Adds to the gradients of a piece's weights; `opens`: nothing has been added yet.
DEVICE void differentiate_weights(const DeformConvBackwardParams& p, index_t count, const Piece& piece,
                                  const Scratch& s, bool opens, acc_t* packed) {
#if GIVEN
    turn_columns<false>(piece, count, s.columns, s.weights);
    if (opens) {
        multiply_given_columns<false>(p.geometry, p.cut, count, piece, s.weights, s.grads, packed);
    } else {
        multiply_given_columns<true>(p.geometry, p.cut, count, piece, s.weights, s.grads, packed);
    }
#else
    multiply_columns(p.geometry, p.cut, count, piece, s, packed);
#endif
}

// One tile of pixels of one image; `opens`: the first.
DEVICE void visit_tile(const DeformConvBackwardParams& p, const Share& share, index_t n, index_t first, bool opens,
                       Scratch& s) {
    const Geometry& g = p.geometry;
    const Cut& cut = p.cut;
    const Chunk& chunk = share.chunk;
    const index_t count = smaller(index_t(PIXELS), (index_t)g.pixels - first);
    const bool back = share.grad_input || p.part_offset || p.part_mask;
    const scalar_t* from = p.grad_output + n * (index_t)p.output_stride[0] + first * (index_t)p.output_stride[2];
    const Groups of = groups_of(g, cut, chunk);
    move_outputs<false>(cut, of, (scalar_t*)from, (index_t)p.output_stride[1], (index_t)p.output_stride[2], count,
                        s.grads);
#if SPLIT
    split_grads(cut, of, count, s);
#endif
    const acc_t* weights = s.weights;
    for (index_t first_tap = 0; first_tap < (index_t)g.taps; first_tap += taps_at_once(chunk)) {
        const index_t end = smaller(first_tap + taps_at_once(chunk), (index_t)g.taps);
        if (back) {
            for_pieces(g, cut, chunk, first_tap, [&](const Piece& piece) {
                differentiate_columns(p, count, piece, s, weights);
                weights += packed_numbers(cut, piece);
            });
        }
        for (index_t done = 0; done < count; done += TILE) {
            Base base;
            make_base(g, first + done, base);
            for (index_t tap = first_tap; tap < end; ++tap) {
                visit_tap(p, share, n, first_tap, tap, base, s.columns + done * COLUMNS);
            }
        }
        if (!share.packed) continue;
        bool broken = false;
        for_pieces(g, cut, chunk, first_tap, [&](const Piece& piece) {
            broken = broken || any_nan(s.columns + piece.column, count, COLUMNS, piece.depth);
        });
        if (broken) mend_columns(p, share, n, first_tap, first, count, s.columns);
        for_pieces(g, cut, chunk, first_tap,
                   [&](const Piece& piece) { differentiate_weights(p, count, piece, s, opens, share.packed); });
    }
}

KERNEL(deform_conv_backward, DeformConvBackwardParams) {
    const Geometry& g = p.geometry;
    const Cut& cut = p.cut;
    const index_t chunks = (index_t)g.groups * chunks_in_group(g, cut), spans = (index_t)p.spans;
    const index_t tiles = ((index_t)g.pixels + PIXELS - 1) / PIXELS;
    Scratch s = scratch_of(cut, p.scratch + worker * (index_t)cut.scratch);
    FOR_EACH(item, p.items) {
        index_t image_set = item;
        const index_t number = take_digit(image_set, chunks), span = take_digit(image_set, spans);
        const index_t begin = span * tiles / spans, length = (span + 1) * tiles / spans - begin;
        const Share share = {chunk_of(g, cut, number), number % chunks_in_group(g, cut),
                             p.grad_input ? p.grad_input + span * p.span_stride : nullptr,
                             p.packed ? p.packed + (image_set * spans + span) * p.packed_size : nullptr};
        const Chunk& chunk = share.chunk;
#if GIVEN
        for_pieces(g, cut, chunk, 0, [&](const Piece& piece) { weights_of<true>(g, cut, piece, p.weight, s.wide); });
#else
        acc_t* end = pack_chunk(g, cut, p.weight, chunk, s.weights);
        if (share.packed && p.opens) clear_chunk(g, cut, chunk, share.packed);
#endif
#if SPLIT
        s.split_weights = (unsigned*)end;
        split_weights(g, cut, chunk, s);
#endif
        for (index_t n = image_set; n < (index_t)g.batch; n += (index_t)p.image_sets) {
            if (share.grad_input) {
                const index_t at = n * (index_t)p.grad_stride[0] + origin_of(p, chunk);
                clear(share.grad_input + at, 1, (index_t)p.grad_stride[1 + NDIM], chunk.begin, chunk.end,
                      input_pixels(g));
            }
            for (index_t tile = 0; tile < length; ++tile) {
                const index_t first = (begin + tile_of_part(tile, length, number, chunks)) * PIXELS;
                visit_tile(p, share, n, first, p.opens && n == image_set && tile == 0, s);
            }
        }
    }
}

DEVICE index_t sums_of(const DeformConvBackwardParams& p) { return (index_t)(p.image_sets * p.spans); }

DEVICE acc_t add_sums(const DeformConvBackwardParams& p, const acc_t* from) {
    acc_t sum = 0;
    for (index_t i = 0; i < sums_of(p); ++i) sum += from[i * p.packed_size];
    return sum;
}

#if JOINED
DEVICE void unpack(const DeformConvBackwardParams& p, index_t item) {
    const index_t blocks = padded_outputs(p.cut) / PANEL, first = item % blocks * PANEL;
    for_pieces_of(p.geometry, p.cut, item / blocks, [&](const Piece& piece) {
        const acc_t* sums = p.packed + sums_at(p.cut, piece);
        for_member_weights(p.geometry, p.cut, piece, first, first + PANEL,
                           [&](index_t place, index_t at) { narrow(add_sums(p, sums + place), p.grad_weight[at]); });
    });
}
#else
DEVICE void unpack(const DeformConvBackwardParams& p, index_t item) {
    for_strips<SPLIT != 0>(p.geometry, p.cut, item, [&](const Strip& s) {
        acc_t tile[STRIP * STRIP] = {}, other[STRIP * STRIP];
        for (int k = 0; k < s.count; ++k) {
            for (index_t n = 0; n < sums_of(p); ++n) {
                const acc_t* from = p.packed + n * p.packed_size + s.at[k];
                SIMD for (int i = 0; i < STRIP; ++i) tile[k * STRIP + i] += from[i * (SPLIT ? s.step[k] : 1)];
            }
        }
        const acc_t* rows = transpose<STRIP, STRIP>(tile, other);
        for (int i = 0; i < s.outputs; ++i) {
            store_line<STRIP>(rows + i * STRIP, p.grad_weight + s.user + i * s.row, 1, s.count);
        }
    });
}
#endif

// grad_weight from the sums of image_sets and spans. One item = PANEL output channels of a group.
KERNEL(deform_conv_unpack, DeformConvBackwardParams) {
    FOR_EACH(item, p.items) unpack(p, item);
}
