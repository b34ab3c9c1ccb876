// A tile of outputs where weights are packed: [pixel][group][padded channel].

#if SPLIT
// Adds the product of a piece's columns and weights, if they fit.
DEVICE bool multiply_tiles(const DeformConvParams& p, index_t count, const Piece& piece, const acc_t* columns,
                           unsigned* left, acc_t* total) {
    const index_t outputs = group_outputs(p.cut), padded = padded_outputs(p.cut);
    for (index_t o = 0; o < padded; o += PANEL) {
        if (!p.split[(piece.group * padded + o) / PANEL]) return false;
    }
    if (!split_rows<VALUE_PARTS>(count, piece.depth, columns + piece.column, COLUMNS, left)) return false;
    multiply_split<VALUE_PARTS, DATA_PARTS, true>(count, outputs, piece.depth, left, split_at(p, piece, 0),
                                                  total + piece.group * padded, output_row(p.cut));
    return true;
}
#endif

// The output channels of an item: all.
DEVICE Outputs outputs_of(const DeformConvParams& p, index_t) { return {0, (index_t)p.cut.out_channels}; }

DEVICE void begin_outputs(const DeformConvParams& p, Outputs of, index_t count, acc_t* total) {
    const index_t outputs = group_outputs(p.cut), padded = padded_outputs(p.cut), row = output_row(p.cut);
    for (index_t o = of.begin; o < of.end; ++o) {
        total[o / outputs * padded + o % outputs] = p.bias ? widen(p.bias[o]) : acc_t(0);
    }
    for (index_t j = 1; j < count; ++j) {
        SIMD for (index_t o = 0; o < row; ++o) total[j * row + o] = total[o];
    }
}

DEVICE bool has_nan(const DeformConvParams& p, Outputs, index_t count, const acc_t* total) {
    bool found = false;
    for (index_t group = 0; group < (index_t)p.cut.groups && !found; ++group) {
        found = any_nan(total + group * padded_outputs(p.cut), count, output_row(p.cut), group_outputs(p.cut));
    }
    return found;
}

// Adds the product of a piece's columns and weights to a tile of outputs.
DEVICE void multiply_piece(const DeformConvParams& p, Outputs, index_t count, const Piece& piece, const acc_t* columns,
                           acc_t* total) {
    const index_t outputs = group_outputs(p.cut), padded = padded_outputs(p.cut), row = output_row(p.cut);
    acc_t* to = total + piece.group * padded;
    if (is_depthwise(p.geometry, p.cut)) {
        const acc_t *from = columns + piece.column, *weights = p.packed + piece.packed;
        for_vectors(p.geometry, p.cut, piece, count, [&](index_t j, index_t k, index_t c) {
            to[j * row + c] = fused(from[j * COLUMNS + k], weights[k], to[j * row + c]);
        });
        return;
    }
    if (JOINED && !all_finite(columns + piece.column, count, COLUMNS, piece.depth)) {
        for_weights(p.geometry, p.cut, piece, [&](index_t o, index_t k, index_t at) {
            const acc_t* column = columns + piece.column + k;
            const acc_t weight = widen(p.weight[at]);
            for (index_t j = 0; j < count; ++j) to[j * row + o] += column[j * COLUMNS] * weight;
        });
        return;
    }
#if SPLIT
    if (multiply_tiles(p, count, piece, columns, (unsigned*)(total + PIXELS * row), total)) return;
#endif
    for (index_t o = 0; o < outputs; o += NR) {
        multiply_rows<true>(count, piece.depth, {(acc_t*)columns + piece.column, COLUMNS, 1},
                            p.packed + piece.packed + o * piece.depth, NR, to + o, row);
    }
}

DEVICE void end_outputs(const DeformConvParams& p, Outputs, index_t count, acc_t* total, scalar_t* output) {
    move_outputs<true>(p.cut, {0, (index_t)p.cut.groups}, output, (index_t)p.output_stride[1],
                       (index_t)p.output_stride[2], count, total);
}
