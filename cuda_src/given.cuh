// Products with weights as users give them, [output][channel][tap], for images of few pixels: to pack weights that so few
// columns meet would take as long as to multiply them. Instead columns, which are fewer, go into the weights' order.
//
// A piece has all taps, and its depth is a multiple of PANEL.

// Where a piece's weights begin. They are a matrix of outputs by `given_row`, of which the piece has `depth` columns.
DEVICE index_t given_row(const Geometry& g, const Cut& cut) {
    return (index_t)(g.channels / cut.groups) * (index_t)g.taps;
}
DEVICE index_t given_at(const Geometry& g, const Cut& cut, const Piece& piece) {
    const index_t row = given_row(g, cut), per_group = (index_t)(g.channels / cut.groups);
    return piece.group * group_outputs(cut) * row + piece.begin % per_group * (index_t)g.taps;
}

// panels[j / NR][c * taps + t][j % NR] = column t * width + c of pixel j
DEVICE void make_panels(const Piece& piece, index_t count, const acc_t* columns, acc_t* panels) {
    const index_t width = piece.end - piece.begin;
    acc_t tile[TILE * TILE], other[TILE * TILE];
    for (index_t j = 0; j < count; j += TILE) {
        for (index_t t = 0; t < piece.taps; ++t) {
            for (index_t c = 0; c < width; c += TILE) {
                const acc_t* from = columns + j * COLUMNS + piece.column + t * width + c;
                for (int i = 0; i < TILE; ++i) load_line<TILE>(from + i * COLUMNS, 1, TILE, tile + i * TILE);
                const acc_t* turned = transpose<TILE, TILE>(tile, other);
                for (int i = 0; i < TILE * TILE; i += NR) {
                    const index_t k = (c + i / TILE) * piece.taps + t, panel = (j + i % TILE) / NR;
                    store_line<NR>(turned + i, panels + (panel * piece.depth + k) * NR, 1, NR);
                }
            }
        }
    }
}

// Adds the product of a piece's weights and columns to a tile of outputs, [output][pixel of PIXELS].
DEVICE void multiply_given(const Geometry& g, const Cut& cut, index_t count, const Piece& piece,
                           const scalar_t* weights, const acc_t* panels, acc_t* total) {
    const index_t outputs = group_outputs(cut), row = given_row(g, cut);
    const Matrix left = {(acc_t*)weights + given_at(g, cut, piece), row, 1};
    for (index_t j = 0; j < count; j += NR) {
        multiply_rows<true>(outputs, piece.depth, left, panels + j * piece.depth, NR,
                            total + piece.group * outputs * PIXELS + j, PIXELS);
    }
}

// to[j][c * taps + t] = from[j][t * width + c], or with BACK the other way round, for all pixels j of a tile.
template <bool BACK> DEVICE void turn_columns(const Piece& piece, index_t count, const acc_t* from, acc_t* to) {
    const index_t width = piece.end - piece.begin;
    for (index_t j = 0; j < count; ++j) {
        const acc_t* line = from + j * COLUMNS + piece.column;
        acc_t* turned = to + j * COLUMNS + piece.column;
        for (index_t t = 0; t < piece.taps; ++t) {
            for (index_t c = 0; c < width; ++c) {
                const index_t tap_first = t * width + c, channel_first = c * piece.taps + t;
                turned[BACK ? tap_first : channel_first] = line[BACK ? channel_first : tap_first];
            }
        }
    }
}

// The gradients of a piece's columns, in the weights' order.
DEVICE void multiply_given_weights(const Geometry& g, const Cut& cut, index_t count, const Piece& piece,
                                   const scalar_t* weights, const acc_t* grads, acc_t* columns) {
    const index_t row = given_row(g, cut);
    const Matrix left = {(acc_t*)grads + piece.group * padded_outputs(cut), output_row(cut), 1};
    const acc_t* right = (const acc_t*)weights + given_at(g, cut, piece);
    for (index_t k = 0; k < piece.depth; k += NR) {
        multiply_rows<false>(count, group_outputs(cut), left, right + k, row, columns + piece.column + k, COLUMNS);
    }
}

// The gradients of a piece's weights, or with ADD an addition to them, by columns in the weights' order.
template <bool ADD> DEVICE void multiply_given_columns(const Geometry& g, const Cut& cut, index_t count,
                                                       const Piece& piece, const acc_t* columns, acc_t* grads,
                                                       acc_t* grad_weight) {
    const index_t outputs = group_outputs(cut), row = given_row(g, cut);
    acc_t *left = grads + piece.group * padded_outputs(cut), *to = grad_weight + given_at(g, cut, piece);
    for (index_t o = 0; o < outputs; o += MR) {
        const index_t rows = smaller(index_t(MR), outputs - o);
        for (index_t k = 0; k < piece.depth; k += NR) {
            multiply_rows<ADD>(rows, count, {left + o, 1, output_row(cut)}, columns + piece.column + k, COLUMNS,
                               to + o * row + k, row);
        }
    }
}
