// The matrix products of a convolution's gradients, and the memory that they need.
#if SPLIT
#include "split.cuh"
#endif
#if GIVEN
#include "given.cuh"
#endif
#if JOINED
#include "small_groups.cuh"
#endif

// A worker's memory.
struct Scratch {
    acc_t *columns, *grads;
    acc_t* weights;  // packed; or where they are as given, columns in their order
#if GIVEN
    acc_t* wide;  // weights as given, widened
#endif
#if SPLIT
    unsigned *split_weights, *split_columns;  // right operands
    unsigned *rows, *turned;                  // left ones: the output's gradients by pixel, and by channel
    bool weights_fit, grads_fit;
#endif
};

// All but the split weights, which come last.
DEVICE Scratch scratch_of(const Cut& cut, acc_t* memory) {
    Scratch s;
    s.columns = memory;
    s.grads = s.columns + PIXELS * COLUMNS;
    s.weights = s.grads + PIXELS * output_row(cut);
#if GIVEN
    s.wide = s.weights + PIXELS * COLUMNS;
#endif
#if SPLIT
    const index_t size = PIXELS * (index_t)cut.groups * padded_outputs(cut) * DATA_PARTS / 2;
    s.split_columns = (unsigned*)s.weights;
    s.rows = s.split_columns + PIXELS * BLOCK * VALUE_PARTS / 2;
    s.turned = s.rows + size;
    s.weights = (acc_t*)(s.turned + size);
#endif
    return s;
}

// What a piece's weights and the sums of their gradients take, and where the sums are among those of all pieces.
#if JOINED
DEVICE index_t packed_numbers(const Cut& cut, const Piece& piece) { return piece.depth * member_outputs(cut); }
DEVICE index_t sums_numbers(const Cut& cut, const Piece& piece) { return piece.depth * member_outputs(cut); }
DEVICE index_t sums_at(const Cut& cut, const Piece& piece) { return member_at(cut, piece); }
#else
DEVICE index_t packed_numbers(const Cut& cut, const Piece& piece) {
    return (piece.depth + NR - 1) / NR * NR * group_outputs(cut);
}
DEVICE index_t sums_numbers(const Cut& cut, const Piece& piece) { return padded_depth(piece) * padded_outputs(cut); }
DEVICE index_t sums_at(const Cut&, const Piece& piece) { return piece.packed; }
#endif

// The weights of some of a piece's outputs, in panels of NR columns: [panel][output channel][NR].
DEVICE void pack_piece(const Geometry& g, const Cut& cut, const scalar_t* weight, const Piece& piece, index_t begin,
                       index_t end, acc_t* to) {
    const index_t outputs = group_outputs(cut), taps = (index_t)g.taps, per_group = (index_t)(g.channels / cut.groups),
                  width = piece.end - piece.begin;
    for (index_t o = begin; o < end; ++o) {
        const scalar_t* row =
            weight + ((piece.group * outputs + o) * per_group + piece.begin % per_group) * taps + piece.tap;
        for (index_t t = 0, k = 0, count = 0; t < piece.taps; ++t) {
            for (index_t c = 0; c < width; c += count, k += count) {
                acc_t* line = to + (k / NR * outputs + o) * NR + k % NR;
                count = smaller(width - c, NR - k % NR);
                for (index_t i = 0; i < count; ++i) line[i] = widen(row[(c + i) * taps + t]);
            }
        }
    }
}

// The chunk's weights, piece after piece. Returns their end. A few outputs go through all pieces while the cache has
// them.
DEVICE acc_t* pack_chunk(const Geometry& g, const Cut& cut, const scalar_t* weight, const Chunk& chunk, acc_t* to) {
    const index_t outputs = group_outputs(cut), few = JOINED ? outputs : 16;
    acc_t* end = to;
    for (index_t o = 0; o < outputs; o += few) {
        end = to;
        for (index_t tap = 0; tap < (index_t)g.taps; tap += taps_at_once(chunk)) {
            for_pieces(g, cut, chunk, tap, [&](const Piece& piece) {
#if JOINED
                pack_members(g, cut, weight, piece, end);
#else
                pack_piece(g, cut, weight, piece, o, smaller(o + few, outputs), end);
#endif
                end += packed_numbers(cut, piece);
            });
        }
    }
    return end;
}

// Clears what the weights of a chunk add to.
DEVICE void clear_chunk(const Geometry& g, const Cut& cut, const Chunk& chunk, acc_t* packed) {
    for (index_t tap = 0; tap < (index_t)g.taps; tap += taps_at_once(chunk)) {
        for_pieces(g, cut, chunk, tap, [&](const Piece& piece) {
            const index_t numbers = sums_numbers(cut, piece);
            clear(packed + sums_at(cut, piece), 1, numbers, 0, numbers, 1);
        });
    }
}

#if SPLIT
DEVICE void split_weights(const Geometry& g, const Cut& cut, const Chunk& chunk, Scratch& s) {
    const index_t outputs = group_outputs(cut), taps = (index_t)g.taps;
    const acc_t* from = s.weights;
    unsigned* to = s.split_weights;
    s.weights_fit = true;
    for (index_t tap = 0; tap < taps; tap += taps_at_once(chunk)) {
        for_pieces(g, cut, chunk, tap, [&](const Piece& piece) {
            for (index_t k = 0; k < piece.depth; k += NR, from += NR * outputs) {
                s.weights_fit &= split_panel<DATA_PARTS>(outputs, piece.depth - k, from, NR, to);
                to += steps_of(outputs) * STEP * NR / 2 * DATA_PARTS;
            }
        });
    }
}

// Left operands, group after group. The turned ones go through the memory of the columns'.
DEVICE void split_grads(const Cut& cut, Groups of, index_t count, Scratch& s) {
    const index_t outputs = group_outputs(cut), padded = padded_outputs(cut), row = output_row(cut);
    const index_t block = steps_of(count) * DATA_PARTS * TILE_WORDS;  // of 16 channels
    s.grads_fit = true;
    for (index_t group = of.begin; group < of.end; ++group) {
        const acc_t* grads = s.grads + group * padded;
        unsigned* rows = s.rows + group * PIXELS * padded * DATA_PARTS / 2;
        s.grads_fit &= split_rows<DATA_PARTS>(count, outputs, grads, row, rows);
        for (index_t o = 0; o < outputs; o += NR) {
            s.grads_fit &= split_panel<DATA_PARTS>(count, outputs - o, grads + o, row, s.split_columns);
            turn_panel<DATA_PARTS>(count, s.split_columns, s.turned + (group * padded + o) / 16 * block);
        }
    }
}
#endif

// The gradients of a piece's columns.
DEVICE void multiply_weights(const Geometry& g, const Cut& cut, index_t count, const Piece& piece, const Scratch& s,
                             const acc_t* weights) {
    const index_t outputs = group_outputs(cut), padded = padded_outputs(cut), row = output_row(cut);
    const acc_t* grads = s.grads + piece.group * padded;
    acc_t* to = s.columns + piece.column;
#if JOINED
    multiply_members(g, cut, piece, {grads, row, count}, weights, to);
#else
#if SPLIT
    if (s.weights_fit && s.grads_fit) {
        const unsigned* rows = s.rows + piece.group * PIXELS * padded * DATA_PARTS / 2;
        multiply_split<DATA_PARTS, DATA_PARTS, false>(
            count, piece.depth, outputs, rows,
            s.split_weights + (weights - s.weights) / outputs / NR * steps_of(outputs) * STEP * NR / 2 * DATA_PARTS, to,
            COLUMNS);
        return;
    }
#endif
    for (index_t k = 0; k < piece.depth; k += NR, weights += NR * outputs) {
        multiply_rows<false>(count, outputs, {(acc_t*)grads, row, 1}, weights, NR, to + k, COLUMNS);
    }
#endif
}

// Adds to the gradients of a piece's weights.
DEVICE void multiply_columns(const Geometry& g, const Cut& cut, index_t count, const Piece& piece, const Scratch& s,
                             acc_t* packed) {
    const index_t outputs = group_outputs(cut), padded = padded_outputs(cut), row = output_row(cut);
    const acc_t* columns = s.columns + piece.column;
    acc_t *grads = s.grads + piece.group * padded, *to = packed + sums_at(cut, piece);
#if JOINED
    sum_members(g, cut, piece, {grads, row, count}, columns, to);
#elif SPLIT
    const index_t deep = padded_depth(piece), panel = steps_of(count) * STEP * NR / 2 * VALUE_PARTS;
    bool fits = s.grads_fit;
    for (index_t k = 0; fits && k < piece.depth; k += NR) {
        fits = split_panel<VALUE_PARTS>(count, piece.depth - k, columns + k, COLUMNS, s.split_columns + k / NR * panel);
    }
    if (fits) {
        const unsigned* turned = s.turned + piece.group * padded / 16 * steps_of(count) * DATA_PARTS * TILE_WORDS;
        multiply_split<DATA_PARTS, VALUE_PARTS, true>(outputs, piece.depth, count, turned, s.split_columns, to, deep);
        return;
    }
    for (index_t k = 0; k < piece.depth; k += NR) {
        multiply_rows<true>(outputs, count, {grads, 1, row}, columns + k, COLUMNS, to + k, deep);
    }
#else
    for (index_t o = 0; o < outputs; o += NR) {
        multiply_rows<true>(piece.depth, count, {(acc_t*)columns, 1, COLUMNS}, grads + o, row, to + o * piece.depth,
                            NR);
    }
#endif
}
