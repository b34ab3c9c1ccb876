// The products of a convolution's gradients where groups are joined (pieces.cuh), without the zeros between them.
// Vectors are of channels, which meet the outputs of their own group, one after the other:
//
//     column[p, t, c] = sum over r of grad[p, group(c), r] weight[r, t, c]
//     grad_weight[r, t, c] += sum over p of grad[p, group(c), r] column[p, t, c]
//
// so gradients of the output are spread from groups to channels. Weights of a piece, and sums of their gradients, lie
// as [r][tap][channel].

DEVICE index_t member_outputs(const Cut& cut) { return (index_t)(cut.out_channels / (cut.groups * cut.joined)); }

// Where a piece's numbers are among those of all pieces.
DEVICE index_t member_at(const Cut& cut, const Piece& piece) {
    return piece.packed / padded_outputs(cut) * member_outputs(cut);
}

// Calls f(place, at) for the weights of a piece's outputs `first` ... `end` - 1, counted in the joined group: the place
// among those of the piece, and where users have them.
template <typename F>
DEVICE void for_member_weights(const Geometry& g, const Cut& cut, const Piece& piece, index_t first, index_t end, F f) {
    const index_t channels = (index_t)(g.channels / (cut.groups * cut.joined)), outputs = member_outputs(cut);
    const index_t width = piece.end - piece.begin, first_member = piece.group * (index_t)cut.joined;
    for (index_t c = piece.begin; c < piece.end; ++c) {
        const index_t member = c / channels, before = (member - first_member) * outputs;
        for (index_t r = larger(index_t(0), first - before); r < smaller(outputs, end - before); ++r) {
            const index_t place = r * piece.depth + c - piece.begin;
            const index_t at = ((member * outputs + r) * channels + c % channels) * (index_t)g.taps + piece.tap;
            for (index_t t = 0; t < piece.taps; ++t) f(place + t * width, at + t);
        }
    }
}

DEVICE void pack_members(const Geometry& g, const Cut& cut, const scalar_t* weight, const Piece& piece, acc_t* to) {
    for_member_weights(g, cut, piece, 0, group_outputs(cut),
                       [&](index_t place, index_t at) { to[place] = widen(weight[at]); });
}

typedef decltype(vector_t() == vector_t()) lanes_t;

// A vector of a piece's channels, and where their groups have their first outputs.
struct Members {
    index_t begin;  // the first channel, counted from that of the piece
    int count;      // of the channels
    index_t first;  // of the outputs, counted from that of the joined group
    lanes_t lane;   // of each channel, counted from there
    lanes_t valid;  // whether there is such a channel
};

DEVICE Members members_of(const Geometry& g, const Cut& cut, const Piece& piece, index_t begin) {
    const index_t channels = (index_t)(g.channels / (cut.groups * cut.joined)), outputs = member_outputs(cut);
    const index_t channel = piece.begin + begin, member = channel / channels;
    Members m;
    m.begin = begin;
    m.count = (int)smaller(index_t(LENGTH), piece.end - channel);
    m.first = (member - piece.group * (index_t)cut.joined) * outputs;
    for (int i = 0; i < LENGTH; ++i) {
        m.lane[i] = ((channel + smaller(i, m.count - 1)) / channels - member) * outputs;
        m.valid[i] = i < m.count ? -1 : 0;
    }
    return m;
}

// How a vector is filled: with one number, where its channels are of one group; from a vector or two, where they hold
// all outputs of its groups, and the compiler knows how to permute them by indices; or number by number.
enum Fill { SPREAD, ONE, TWO, ANY };

DEVICE Fill fill_of(const Cut& cut, const Members& m) {
    const index_t last = (index_t)m.lane[LENGTH - 1];
#ifdef __clang__
    return last == 0 ? SPREAD : ANY;
#else
    const index_t span = last + member_outputs(cut);
    return last == 0 ? SPREAD : span <= LENGTH ? ONE : span <= 2 * LENGTH ? TWO : ANY;
#endif
}

// The gradients by the outputs of a tile: of `count` pixels, `row` apart.
struct Grads {
    const acc_t* at;
    index_t row, count;
};

constexpr int MOST_OUTPUTS = 8;  // at a time

// Gradients that are spread number by number, well before they are loaded as vectors.
struct Spread {
    acc_t value[PIXELS][MOST_OUTPUTS][LENGTH];
};

template <Fill fill>
DEVICE void spread_outputs(const Members& m, const Grads& grads, index_t r, int outputs, Spread& to) {
    if (fill != ANY) return;
    for (index_t j = 0; j < grads.count; ++j) {
        const acc_t* from = grads.at + j * grads.row + m.first + r;
        for (int i = 0; i < LENGTH; ++i) {
            for (int o = 0; o < outputs; ++o) to.value[j][o][i] = from[m.lane[i] + o];
        }
    }
}

// Output r + i of each channel's group at pixel j.
template <Fill fill>
DEVICE vector_t spread_to(const Members& m, const Grads& grads, index_t j, index_t r, int i, const Spread& made) {
    const acc_t* from = grads.at + j * grads.row + m.first;
    if (fill == SPREAD) return spread(from[r + i]);
#ifndef __clang__
    if (fill == ONE) return __builtin_shuffle(*(const loose_vector_t*)from, m.lane + (int)(r + i));
    if (fill == TWO) {
        const vector_t low = *(const loose_vector_t*)from, high = *(const loose_vector_t*)(from + LENGTH);
        return __builtin_shuffle(low, high, m.lane + (int)(r + i));
    }
#endif
    return *(const loose_vector_t*)made.value[j][i];
}

DEVICE vector_t load_lanes(const acc_t* from) { return *(const loose_vector_t*)from; }

// Leaves what is behind a vector that is not full as it was: numbers of the same worker.
DEVICE void store_lanes(const Members& m, vector_t value, acc_t* to) {
    *(loose_vector_t*)to = m.count < LENGTH ? (m.valid ? value : load_lanes(to)) : value;
}

// Sums, between which and those of other workers nothing is.
DEVICE vector_t load_sums(const Members& m, const acc_t* from) {
    if (m.count == LENGTH) return load_lanes(from);
    vector_t value = {};
    for (int i = 0; i < m.count; ++i) value[i] = from[i];
    return value;
}
DEVICE void store_sums(const Members& m, vector_t value, acc_t* to) {
    if (m.count == LENGTH) {
        *(loose_vector_t*)to = value;
    } else {
        for (int i = 0; i < m.count; ++i) to[i] = value[i];
    }
}

// Adds products with R outputs from `r` on to the gradients of columns; the first ones begin them.
template <Fill fill, int R> DEVICE void add_outputs(const Members& m, const Piece& piece, index_t r, const Grads& grads,
                                                    const acc_t* weights, acc_t* column, Spread& made) {
    spread_outputs<fill>(m, grads, r, R, made);
    weights += r * piece.depth;
    for (index_t j = 0; j < grads.count; ++j, column += COLUMNS) {
        vector_t grad[R];
        UNROLL for (int i = 0; i < R; ++i) grad[i] = spread_to<fill>(m, grads, j, r, i, made);
        for (index_t k = m.begin; k < piece.depth; k += piece.end - piece.begin) {
            vector_t sum = r == 0 ? vector_t{} : load_lanes(column + k);
            UNROLL for (int i = 0; i < R; ++i) {
                sum = multiply_add(grad[i], load_lanes(weights + i * piece.depth + k), sum);
            }
            store_lanes(m, sum, column + k);
        }
    }
}

// Adds products with R outputs and T taps, the first of which is at k, to sums over pixels.
template <Fill fill, int R, int T> DEVICE void add_pixels(const Members& m, const Piece& piece, index_t r, index_t k,
                                                          const Grads& grads, const acc_t* columns, acc_t* sums,
                                                          const Spread& made) {
    const index_t width = piece.end - piece.begin;
    vector_t sum[R][T];
    sums += r * piece.depth + k;
    columns += k;
    UNROLL for (int i = 0; i < R; ++i) {
        UNROLL for (int t = 0; t < T; ++t) sum[i][t] = load_sums(m, sums + i * piece.depth + t * width);
    }
    for (index_t j = 0; j < grads.count; ++j, columns += COLUMNS) {
        vector_t column[T];
        UNROLL for (int t = 0; t < T; ++t) column[t] = load_lanes(columns + t * width);
        UNROLL for (int i = 0; i < R; ++i) {
            const vector_t grad = spread_to<fill>(m, grads, j, r, i, made);
            UNROLL for (int t = 0; t < T; ++t) sum[i][t] = multiply_add(grad, column[t], sum[i][t]);
        }
    }
    UNROLL for (int i = 0; i < R; ++i) {
        UNROLL for (int t = 0; t < T; ++t) store_sums(m, sum[i][t], sums + i * piece.depth + t * width);
    }
}

template <Fill fill, int R> DEVICE void add_taps(const Members& m, const Piece& piece, index_t r, const Grads& grads,
                                                 const acc_t* columns, acc_t* sums, Spread& made) {
    const index_t width = piece.end - piece.begin;
    spread_outputs<fill>(m, grads, r, R, made);
    for (index_t t = 0; t < piece.taps;) {  // one alone would wait for each sum
        const index_t k = t * width + m.begin, left = piece.taps - t, some = left == 4 ? 2 : smaller(left, index_t(3));
        if (some == 1) add_pixels<fill, R, 1>(m, piece, r, k, grads, columns, sums, made);
        if (some == 2) add_pixels<fill, R, 2>(m, piece, r, k, grads, columns, sums, made);
        if (some == 3) add_pixels<fill, R, 3>(m, piece, r, k, grads, columns, sums, made);
        t += some;
    }
}

template <Fill fill> struct Constant {
    static constexpr Fill value = fill;
};

// Calls f(members, fill) for the vectors of a piece, with a constant fill.
template <typename F> DEVICE void for_members(const Geometry& g, const Cut& cut, const Piece& piece, F f) {
    for (index_t begin = 0; begin < piece.end - piece.begin; begin += LENGTH) {
        const Members m = members_of(g, cut, piece, begin);
        const Fill fill = fill_of(cut, m);
        if (fill == SPREAD) f(m, Constant<SPREAD>());
        if (fill == ONE) f(m, Constant<ONE>());
        if (fill == TWO) f(m, Constant<TWO>());
        if (fill == ANY) f(m, Constant<ANY>());
    }
}

// The gradients of a piece's columns.
DEVICE void multiply_members(const Geometry& g, const Cut& cut, const Piece& piece, const Grads& grads,
                             const acc_t* weights, acc_t* columns) {
    const index_t outputs = member_outputs(cut);
    Spread made;
    for_members(g, cut, piece, [&](const Members& m, auto fill) {
        constexpr Fill known = decltype(fill)::value;
        index_t r = 0;
        for (; r + 8 <= outputs; r += 8) add_outputs<known, 8>(m, piece, r, grads, weights, columns, made);
        for (; r + 4 <= outputs; r += 4) add_outputs<known, 4>(m, piece, r, grads, weights, columns, made);
        for (; r < outputs; ++r) add_outputs<known, 1>(m, piece, r, grads, weights, columns, made);
    });
}

// Adds to the gradients of a piece's weights.
DEVICE void sum_members(const Geometry& g, const Cut& cut, const Piece& piece, const Grads& grads, const acc_t* columns,
                        acc_t* sums) {
    const index_t outputs = member_outputs(cut);
    Spread made;
    for_members(g, cut, piece, [&](const Members& m, auto fill) {
        constexpr Fill known = decltype(fill)::value;
        index_t r = 0;
        for (; r + 4 <= outputs; r += 4) add_taps<known, 4>(m, piece, r, grads, columns, sums, made);
        for (; r < outputs; ++r) add_taps<known, 1>(m, piece, r, grads, columns, sums, made);
    });
}
