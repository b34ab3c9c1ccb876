// Products with weights as users give them, [output][channel][tap]: for images of few pixels, as to pack weights that
// so few columns meet would take as long as to multiply them, and forwards for groups of few channels, whose outputs
// would not fill vectors. Instead columns go into the weights' order, and vectors are of pixels.
//
// A piece has all taps, and its depth is a multiple of PANEL.

// Where a piece's weights begin. They are a matrix of outputs by `given_row`, of which the piece has `depth` columns.
DEVICE index_t given_row(const Geometry& g, const Cut& cut) {
    return (index_t)(g.channels / (cut.groups * cut.joined)) * (index_t)g.taps;
}
DEVICE index_t given_at(const Geometry& g, const Cut& cut, const Piece& piece) {
    const index_t row = given_row(g, cut), per_group = (index_t)(g.channels / cut.groups);
    return piece.group * group_outputs(cut) * row + piece.begin % per_group * (index_t)g.taps;
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

// How a tile's columns meet weights: vectors of pixels in pairs, the last perhaps without another, and a few pixels
// alone.
constexpr int FEW_PIXELS = 4;

struct Lanes {
    index_t vectors, alone;
};

DEVICE Lanes lanes_of(index_t count) {
    const index_t rest = count % LENGTH;
    return rest > FEW_PIXELS ? Lanes{count / LENGTH + 1, 0} : Lanes{count / LENGTH, rest};
}

// A pair's columns are a panel [c * taps + t][pixel], those of a vector without another, too; after them come pixels
// alone.
DEVICE void make_panels(const Piece& piece, index_t count, const acc_t* columns, acc_t* panels) {
    const Lanes lanes = lanes_of(count);
    const index_t width = piece.end - piece.begin;
    acc_t tile[TILE * TILE], other[TILE * TILE];
    for (index_t j = 0; j < lanes.vectors * LENGTH; j += TILE) {
        for (index_t t = 0; t < piece.taps; ++t) {
            for (index_t c = 0; c < width; c += TILE) {
                const acc_t* from = columns + j * COLUMNS + piece.column + t * width + c;
                for (int i = 0; i < TILE; ++i) load_line<TILE>(from + i * COLUMNS, 1, TILE, tile + i * TILE);
                const acc_t* turned = transpose<TILE, TILE>(tile, other);
                const index_t end = smaller(j / LENGTH + TILE / LENGTH, lanes.vectors);
                for (index_t v = j / LENGTH; v < end; ++v, turned += LENGTH) {
                    const index_t row = v / 2 * 2 + 1 < lanes.vectors ? NR : LENGTH;
                    acc_t* to = panels + v / 2 * NR * piece.depth + v % 2 * LENGTH;
                    for (int i = 0; i < TILE; ++i) {
                        *(loose_vector_t*)(to + ((c + i) * piece.taps + t) * row) =
                            *(const loose_vector_t*)(turned + i * TILE);
                    }
                }
            }
        }
    }
    const index_t paired = lanes.vectors * LENGTH;
    turn_columns<false>(piece, lanes.alone, columns + paired * COLUMNS, panels + paired * piece.depth);
}

constexpr bool WIDENS = sizeof(scalar_t) < sizeof(acc_t);

// Rows of weights, `row` apart, as numbers that can be multiplied: where they are, or widened, or where a product takes
// more rows than there are (`multiply_last`), where something follows them.
DEVICE Matrix widened(const scalar_t* weights, index_t rows, index_t row, index_t depth, acc_t* wide) {
    if (!WIDENS && (rows >= MR || rows % (MR / 3) == 0)) return {(acc_t*)weights, row, 1};
    for (index_t o = 0; o < rows; ++o) {
        SIMD for (index_t k = 0; k < depth; ++k) wide[o * depth + k] = widen(weights[o * row + k]);
    }
    return {wide, depth, 1};
}

// Adds products of rows of weights with one column to outputs, PIXELS apart.
DEVICE void multiply_alone(index_t outputs, index_t depth, Matrix weights, const acc_t* column, acc_t* to) {
    constexpr int TOGETHER = 4;  // sums, or each addition would wait for the one before
    for (index_t o = 0; o < outputs; o += TOGETHER) {
        const acc_t* from[TOGETHER];
        UNROLL for (int i = 0; i < TOGETHER; ++i) from[i] = weights.at + smaller(o + i, outputs - 1) * weights.row;
        acc_t sum0 = 0, sum1 = 0, sum2 = 0, sum3 = 0;
        SIMD_SUM(sum0, sum1, sum2, sum3) for (index_t k = 0; k < depth; ++k) {
            sum0 = fused(from[0][k], column[k], sum0);
            sum1 = fused(from[1][k], column[k], sum1);
            sum2 = fused(from[2][k], column[k], sum2);
            sum3 = fused(from[3][k], column[k], sum3);
        }
        const acc_t sum[TOGETHER] = {sum0, sum1, sum2, sum3};
        for (index_t i = 0; i < smaller(index_t(TOGETHER), outputs - o); ++i) to[(o + i) * PIXELS] += sum[i];
    }
}

// Adds the product of a piece's weights and columns to a tile of outputs, [output][pixel of PIXELS]. Joined groups meet
// their own columns alone.
DEVICE void multiply_given(const Geometry& g, const Cut& cut, Outputs of, index_t count, const Piece& piece,
                           const scalar_t* weights, const acc_t* panels, acc_t* total) {
    const Lanes lanes = lanes_of(count);
    const index_t row = given_row(g, cut), taps = (index_t)g.taps, paired = lanes.vectors * LENGTH;
    const index_t members = (index_t)(cut.groups * cut.joined), outputs = (index_t)cut.out_channels / members;
    const index_t channels = (index_t)g.channels / members;
    acc_t wide[2 * MR * BLOCK];
    for (index_t first = piece.begin; first < piece.end;) {
        const index_t member = first / channels, last = smaller(piece.end, (member + 1) * channels);
        const index_t begin = larger(of.begin, member * outputs), end = smaller(of.end, (member + 1) * outputs);
        const index_t before = (first - piece.begin) * taps, depth = (last - first) * taps;
        const scalar_t* from = weights + begin * row + first % channels * taps;
        acc_t* to = total + begin * PIXELS;
        // A few rows of weights meet all pixels while they are in the nearest cache. The last are no fewer than MR, or
        // all.
        for (index_t o = begin, rows = MR; o < end; o += rows, from += rows * row, to += rows * PIXELS) {
            if (end - o < 2 * MR) rows = end - o;
            const Matrix left = widened(from, rows, row, depth, wide);
            index_t v = 0;
            for (; v + 1 < lanes.vectors; v += 2) {
                const acc_t* right = panels + v * LENGTH * piece.depth + before * NR;
                multiply_rows<true>(rows, depth, left, right, NR, to + v * LENGTH, PIXELS);
            }
            if (v < lanes.vectors) {
                const acc_t* right = panels + v * LENGTH * piece.depth + before * LENGTH;
                multiply_rows<true, 1>(rows, depth, left, right, LENGTH, to + v * LENGTH, PIXELS);
            }
            for (index_t j = 0; j < lanes.alone; ++j) {
                const acc_t* column = panels + paired * piece.depth + j * COLUMNS + piece.column + before;
                multiply_alone(rows, depth, left, column, to + paired + j);
            }
        }
        first = last;
    }
}

// The weights of a chunk's piece; `wide` keeps those of all its pieces. With WIDEN they are put there.
template <bool WIDEN>
DEVICE Matrix weights_of(const Geometry& g, const Cut& cut, const Piece& piece, const scalar_t* weights, acc_t* wide) {
    const index_t outputs = group_outputs(cut);
    return widened(weights + given_at(g, cut, piece), WIDEN ? outputs : index_t(0), given_row(g, cut), piece.depth,
                   wide + piece.column * outputs);
}

// The gradients of a piece's columns, in the weights' order.
DEVICE void multiply_given_weights(const Cut& cut, index_t count, const Piece& piece, Matrix right, const acc_t* grads,
                                   acc_t* columns) {
    const index_t outputs = group_outputs(cut);
    const Matrix left = {(acc_t*)grads + piece.group * padded_outputs(cut), output_row(cut), 1};
    for (index_t k = 0; k < piece.depth; k += NR) {
        multiply_rows<false>(count, outputs, left, right.at + k, right.row, columns + piece.column + k, COLUMNS);
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
