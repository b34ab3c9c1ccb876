// All gradients of the host's deformable convolution in one pass over tiles of pixels:
//
//     column[p, c, i] = sum over o of grad_output[o, p] weight[o, c, i]      becomes the gradients of deform_col2im.cu
//     grad_weight[o, c, i] += sum over p of grad_output[o, p] mask value     from the samples of the same visit
//
// One item = a chunk of channels in every `slots`-th image: no two items add to the same element. What several chunks
// share (offsets and masks of their group) and several slots share (weights) is summed by deform_conv_sum and
// deform_conv_unpack.
#include "deform_gradients.cuh"
#include "product.cuh"
#include "pieces.cuh"
#include "gradient_products.cuh"

struct DeformConvBackwardParams {
    const scalar_t* grad_output;
    const image_t* input;  // channels next to each other; null: not read
    const coord_t* offset;
    const coord_t* mask;     // null: none
    const scalar_t* weight;  // (out_channels, channels / groups, taps), contiguous
    acc_t* grad_input;       // channels next to each other; null: not needed
    acc_t* part_offset;      // [chunk of the group][as offset]; null: not needed
    acc_t* part_mask;        // [chunk of the group][as mask]; null: not needed
    acc_t* packed;           // [slot][as packed weights, or where tiles are: piece, output, depth]; null: not needed;
                             // where weights are as given, the sums of their gradient in the same order
    scalar_t* grad_weight;   // written by deform_conv_unpack
    acc_t* scratch;
    long long items;  // slots * chunks
    long long slots;
    long long opens;             // whether `packed` begins with these images, rather than being added to
    long long packed_size;       // numbers of one slot
    long long group_stride;      // from the channels of an offset group to those of the next, of image and gradient
    long long output_stride[3];  // of grad_output: batch, channel, pixel
    long long grad_stride[5];    // of grad_input
    Cut cut;
    Geometry geometry;
};

// What to add to a channel's number for its place in a pixel of the image, or of its gradient.
DEVICE index_t origin_of(const DeformConvBackwardParams& p, const Chunk& chunk) {
    return chunk.group * ((index_t)p.group_stride - (index_t)(p.geometry.channels / p.geometry.groups));
}

// The weights of some of a piece's outputs, in panels of NR columns: [panel][output channel][NR].
DEVICE void pack_piece(const DeformConvBackwardParams& p, const Piece& piece, index_t begin, index_t end, acc_t* to) {
    const index_t outputs = group_outputs(p.cut), taps = (index_t)p.geometry.taps,
                  per_group = (index_t)(p.geometry.channels / p.cut.groups), width = piece.end - piece.begin;
    for (index_t o = begin; o < end; ++o) {
        const scalar_t* row =
            p.weight + ((piece.group * outputs + o) * per_group + piece.begin % per_group) * taps + piece.tap;
        for (index_t t = 0, k = 0; t < piece.taps; ++t) {
            for (index_t c = 0; c < width; ++c, ++k)
                to[(k / NR * outputs + o) * NR + k % NR] = widen(row[c * taps + t]);
        }
    }
}

DEVICE void pack_joined(const DeformConvBackwardParams& p, const Piece& piece, acc_t* to) {
    const Geometry& g = p.geometry;
    const index_t outputs = group_outputs(p.cut), size = (piece.depth + NR - 1) / NR * NR * outputs;
    const bool depthwise = is_depthwise(g, p.cut);
    for (index_t i = 0; i < size; ++i) to[i] = 0;
    for_weights(g, p.cut, piece, [&](index_t o, index_t k, index_t at) {
        to[depthwise ? k : (k / NR * outputs + o) * NR + k % NR] = widen(p.weight[at]);
    });
}

// The chunk's weights, piece after piece. Returns their end. A few outputs go through all pieces while the cache has them.
DEVICE acc_t* pack_chunk(const DeformConvBackwardParams& p, const Chunk& chunk, acc_t* to) {
    const Geometry& g = p.geometry;
    const index_t outputs = group_outputs(p.cut), few = p.cut.joined > 1 ? outputs : 16;
    acc_t* end = to;
    for (index_t o = 0; o < outputs; o += few) {
        end = to;
        for (index_t tap = 0; tap < (index_t)g.taps; tap += taps_at_once(chunk)) {
            for_pieces(g, p.cut, chunk, tap, [&](const Piece& piece) {
                if (p.cut.joined > 1) {
                    pack_joined(p, piece, end);
                } else {
                    pack_piece(p, piece, o, smaller(o + few, outputs), end);
                }
                end += (piece.depth + NR - 1) / NR * NR * outputs;
            });
        }
    }
    return end;
}

// What one tap of a tile adds to every gradient but the weights'; leaves in `columns` what those are made of.
DEVICE void visit_tap(const DeformConvBackwardParams& p, index_t n, const Chunk& chunk, index_t chunk_in_group,
                      index_t first_tap, index_t tap, const Base& base, acc_t* columns) {
    const Geometry& g = p.geometry;
    TapSamples samples;
    look(g, p.offset, p.mask, n, chunk.group, tap, base, samples);
    const bool slopes = p.part_offset || p.part_mask;
    Dots dots;
    if (slopes) dots = {};
    for_pieces(g, p.cut, chunk, first_tap, [&](const Piece& piece) {
        const int width = width_of(piece.end - piece.begin);
        const index_t at = origin_of(p, chunk) + piece.begin;
        const index_t image = n * (index_t)g.input_stride[0] + at;
        acc_t *const begin = columns + piece.column + (tap - first_tap) * width, *column = begin;
        for (int j = 0; j < base.count; ++j, column += COLUMNS) {
            if (p.grad_input) {
                acc_t* grad = p.grad_input + n * (index_t)p.grad_stride[0] + at;
                scatter_tap(samples, j, grad, width, column);
            }
            if (slopes) {
                differentiate_tap(samples, j, p.input + image, width, column, dots);
            } else if (p.packed) {
                sample_tap(samples, j, p.input + image, width, column);
            }
        }
        if (slopes && p.packed && sees_beside(samples))
            sample_again(samples, base.count, p.input + image, width, begin, COLUMNS);
    });
    if (!slopes) return;
    SampleGradients grads;
    make_gradients(samples, dots, grads);
    const index_t part = chunk_in_group * (index_t)g.batch + n;
    store_gradients(g, grads, part, chunk.group, tap, base, p.part_offset, p.part_mask);
}

// The gradients of a piece's columns.
DEVICE void differentiate_columns(const DeformConvBackwardParams& p, index_t count, const Piece& piece,
                                  const Scratch& s, index_t panel) {
#if GIVEN
    const Matrix weights = weights_of<false>(p.geometry, p.cut, piece, p.weight, s.wide);
    multiply_given_weights(p.cut, count, piece, weights, s.grads, s.weights);
    turn_columns<true>(piece, count, s.weights, s.columns);
#else
    multiply_weights(p.geometry, p.cut, count, piece, s, panel);
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
DEVICE void visit_tile(const DeformConvBackwardParams& p, index_t n, const Chunk& chunk, index_t chunk_in_group,
                       index_t first, bool opens, acc_t* packed, Scratch& s) {
    const Geometry& g = p.geometry;
    const Cut& cut = p.cut;
    const index_t count = smaller(index_t(PIXELS), (index_t)g.pixels - first);
    const bool back = p.grad_input || p.part_offset || p.part_mask;
    const scalar_t* from = p.grad_output + n * (index_t)p.output_stride[0] + first * (index_t)p.output_stride[2];
    const Groups of = groups_of(g, cut, chunk);
    move_outputs<false>(cut, of, (scalar_t*)from, (index_t)p.output_stride[1], (index_t)p.output_stride[2], count,
                        s.grads);
    s.finite = true;
    for (index_t group = of.begin; cut.joined > 1 && group < of.end; ++group) {
        s.finite &= all_finite(s.grads + group * padded_outputs(cut), count, output_row(cut), group_outputs(cut));
    }
#if SPLIT
    split_grads(cut, of, count, s);
#endif
    index_t panel = 0;
    for (index_t first_tap = 0; first_tap < (index_t)g.taps; first_tap += taps_at_once(chunk)) {
        const index_t end = smaller(first_tap + taps_at_once(chunk), (index_t)g.taps);
        if (back) {
            for_pieces(g, cut, chunk, first_tap, [&](const Piece& piece) {
                differentiate_columns(p, count, piece, s, panel);
                panel += (piece.depth + NR - 1) / NR;
            });
        }
        for (index_t done = 0; done < count; done += TILE) {
            Base base;
            make_base(g, first + done, base);
            for (index_t tap = first_tap; tap < end; ++tap) {
                visit_tap(p, n, chunk, chunk_in_group, first_tap, tap, base, s.columns + done * COLUMNS);
            }
        }
        if (!packed) continue;
        for_pieces(g, cut, chunk, first_tap,
                   [&](const Piece& piece) { differentiate_weights(p, count, piece, s, opens, packed); });
    }
}

// Clears what the weights of a chunk add to.
DEVICE void clear_chunk(const DeformConvBackwardParams& p, const Chunk& chunk, acc_t* packed) {
    for (index_t tap = 0; tap < (index_t)p.geometry.taps; tap += taps_at_once(chunk)) {
        for_pieces(p.geometry, p.cut, chunk, tap, [&](const Piece& piece) {
            clear(packed + piece.packed, 1, padded_outputs(p.cut), 0, padded_outputs(p.cut), padded_depth(piece));
        });
    }
}

KERNEL(deform_conv_backward, DeformConvBackwardParams) {
    const Geometry& g = p.geometry;
    const Cut& cut = p.cut;
    const index_t chunks = (index_t)g.groups * chunks_in_group(g, cut);
    const index_t tiles = ((index_t)g.pixels + PIXELS - 1) / PIXELS;
    Scratch s = scratch_of(cut, p.scratch + worker * (index_t)cut.scratch);
    FOR_EACH(item, p.items) {
        const index_t slot = item / chunks, number = item - slot * chunks;
        const Chunk chunk = chunk_of(g, cut, number);
        acc_t* packed = p.packed ? p.packed + slot * (index_t)p.packed_size : nullptr;
#if GIVEN
        for_pieces(g, cut, chunk, 0, [&](const Piece& piece) { weights_of<true>(g, cut, piece, p.weight, s.wide); });
#else
        acc_t* end = pack_chunk(p, chunk, s.weights);
        if (packed && p.opens) clear_chunk(p, chunk, packed);
#endif
#if SPLIT
        s.split_weights = (unsigned*)end;
        split_weights(g, cut, chunk, s);
#endif
        for (index_t n = slot; n < (index_t)g.batch; n += (index_t)p.slots) {
            if (p.grad_input) {
                const index_t at = n * (index_t)p.grad_stride[0] + origin_of(p, chunk);
                clear(p.grad_input + at, 1, (index_t)p.grad_stride[1 + NDIM], chunk.begin, chunk.end, input_pixels(g));
            }
            for (index_t tile = 0; tile < tiles; ++tile) {
                const index_t first = tile_of_part(tile, tiles, number, chunks) * PIXELS;
                const bool opens = p.opens && n == slot && tile == 0;
                visit_tile(p, n, chunk, number % chunks_in_group(g, cut), first, opens, packed, s);
            }
        }
    }
}

DEVICE acc_t sum_of_slots(const DeformConvBackwardParams& p, const acc_t* from) {
    acc_t sum = 0;
    for (index_t slot = 0; slot < (index_t)p.slots; ++slot) sum += from[slot * (index_t)p.packed_size];
    return sum;
}

DEVICE void unpack_joined(const DeformConvBackwardParams& p, index_t item) {
    const index_t blocks = padded_outputs(p.cut) / PANEL, block = item % blocks;
    for_pieces_of(p.geometry, p.cut, item / blocks, [&](const Piece& piece) {
        for_weights(p.geometry, p.cut, piece, [&](index_t o, index_t k, index_t at) {
            if (o / PANEL != block) return;
            const index_t from =
                SPLIT ? piece.packed + o * padded_depth(piece) + k : packed_at(p.geometry, p.cut, piece, o, k);
            narrow(sum_of_slots(p, p.packed + from), p.grad_weight[at]);
        });
    });
}

DEVICE void unpack(const DeformConvBackwardParams& p, index_t item) {
    for_strips(p.geometry, p.cut, item, [&](const Strip& s) {
#if SPLIT
        for (int i = 0; i < s.outputs; ++i) {
            for (index_t c = 0; c < s.channels; ++c) {
                for (index_t t = 0; t < s.taps; ++t) {
                    const acc_t* from = p.packed + s.sums_at + i * s.sums_row + t * s.width + c;
                    narrow(sum_of_slots(p, from), p.grad_weight[s.user + i * s.row + c * s.all + t]);
                }
            }
        }
#else
        for (index_t c = 0; c < s.channels; ++c) {
            for (index_t t = 0; t < s.taps; ++t) {
                acc_t sum[STRIP] = {};
                for (index_t slot = 0; slot < (index_t)p.slots; ++slot) {
                    const acc_t* from = p.packed + slot * (index_t)p.packed_size + s.at + (t * s.width + c) * NR;
                    SIMD for (int i = 0; i < STRIP; ++i) sum[i] += from[i];
                }
                scalar_t* to = p.grad_weight + s.user + c * s.all + t;
                for (int i = 0; i < s.outputs; ++i) narrow(sum[i], to[i * s.row]);
            }
        }
#endif
    });
}

// grad_weight from the slots' sums. One item = PANEL output channels of a group.
KERNEL(deform_conv_unpack, DeformConvBackwardParams) {
    FOR_EACH(item, p.items) {
        if (p.cut.joined > 1) {
            unpack_joined(p, item);
        } else {
            unpack(p, item);
        }
    }
}
