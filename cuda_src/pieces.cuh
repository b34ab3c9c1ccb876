// How a host's convolution is cut so that everything it works on stays in cache.
//
// Output pixels go in tiles of PIXELS. The sum over (channel, tap) goes in *chunks* of channels, each of one offset
// group and at most `channel_block`, times blocks of taps, so that a pixel's columns are at most BLOCK numbers. The
// part of such a block that belongs to one group of the convolution is a *piece*: one matrix product with depth (end -
// begin) * taps, the channel fastest.
//
// Packed weights hold piece after piece, each as panels of NR output channels: [panel][depth][NR]. Where sums go in
// steps (split.cuh), a piece has room for a whole number of them.
//
// Groups with few channels are joined: several make one piece. Gradients keep them apart (small_groups.cuh), and so do
// forward passes that use weights as given (given.cuh). Else they are multiplied as one group, whose weights from the
// channels of a member to the outputs of another are zeros. Full vectors of zeros are faster than short ones of
// numbers; but as 0 * inf is NaN, tiles with numbers that are not finite take each weight by itself. Where every
// channel is a group with one output, a product is that of vectors: weight k of the sum belongs to channel k % width,
// and is packed at k.

constexpr int LINE = 64 / (int)sizeof(acc_t);  // numbers in a line of the cache
constexpr int PANEL = 2 * LINE;                // output channels of a group are padded to a multiple: NR at the widest
constexpr int COLUMNS = BLOCK + 3 * LINE;      // row of the columns' tile: room for a panel, and an odd number of lines
constexpr int DEPTH_STEP = SPLIT ? 32 : 1;

struct Cut {
    long long groups;         // of the convolution, or joined ones
    long long joined;         // the convolution's groups in each of these
    long long out_channels;   // of all groups
    long long channel_block;  // most channels of a chunk
    long long scratch;        // numbers that one worker may use
};

struct Chunk {
    index_t begin, end, group;  // channels, of that offset group
    index_t number;
};

// Of the convolution.
struct Groups {
    index_t begin, end;
};
struct Outputs {
    index_t begin, end;  // of all groups
};

struct Piece {
    index_t begin, end, group;  // channels, of that group of the convolution
    index_t tap, taps;
    index_t column;  // where its columns begin in a row of the tile
    index_t packed;  // where its weights begin
    index_t depth;   // (end - begin) * taps
};

// Its depth as a whole number of steps, in sums that go so.
DEVICE index_t padded_depth(const Piece& piece) { return (piece.depth + DEPTH_STEP - 1) / DEPTH_STEP * DEPTH_STEP; }

DEVICE index_t group_outputs(const Cut& cut) { return (index_t)(cut.out_channels / cut.groups); }
DEVICE index_t padded_outputs(const Cut& cut) { return (group_outputs(cut) + PANEL - 1) / PANEL * PANEL; }
// Row of a tile of outputs: an odd number of lines, so that a column of it does not fall on a few sets of the cache.
DEVICE index_t output_row(const Cut& cut) { return (index_t)cut.groups * padded_outputs(cut) + LINE; }

DEVICE index_t chunks_in_group(const Geometry& g, const Cut& cut) {
    return (group_width(g) + (index_t)cut.channel_block - 1) / (index_t)cut.channel_block;
}

DEVICE Chunk chunk_of(const Geometry& g, const Cut& cut, index_t number) {
    const index_t count = group_width(g), group = number / chunks_in_group(g, cut);
    const index_t begin = (number - group * chunks_in_group(g, cut)) * (index_t)cut.channel_block;
    return {group * count + begin, group * count + smaller(begin + (index_t)cut.channel_block, count), group, number};
}

DEVICE Groups groups_of(const Geometry& g, const Cut& cut, const Chunk& chunk) {
    const index_t per_group = (index_t)(g.channels / cut.groups);
    return {chunk.begin / per_group, (chunk.end - 1) / per_group + 1};
}

DEVICE index_t taps_at_once(const Chunk& chunk) { return larger(index_t(1), BLOCK / (chunk.end - chunk.begin)); }

// Numbers between the packed pieces of a chunk and of the same at other taps, for each padded output.
DEVICE index_t gap_of(const Geometry& g, const Cut& cut, const Chunk& chunk, index_t tap) {
    const index_t block = (index_t)cut.channel_block, per_group = (index_t)(g.channels / cut.groups);
    const index_t rounds = ((index_t)g.taps + BLOCK / block - 1) / (BLOCK / block);
    const index_t pieces = (block + per_group - 2) / per_group + 1;  // at most
    return (chunk.number * rounds + tap / taps_at_once(chunk)) * pieces * (DEPTH_STEP - 1);
}

// Calls f(piece) for the pieces of a chunk at the taps from `tap` on.
template <typename F> DEVICE void for_pieces(const Geometry& g, const Cut& cut, const Chunk& chunk, index_t tap, F f) {
    const index_t per_group = (index_t)(g.channels / cut.groups), taps_in_all = (index_t)g.taps;
    const index_t taps = smaller(taps_at_once(chunk), taps_in_all - tap);
    index_t before = chunk.begin * taps_in_all + tap * (chunk.end - chunk.begin) + gap_of(g, cut, chunk, tap);
    for (index_t begin = chunk.begin; begin < chunk.end;) {
        const index_t group = begin / per_group, end = smaller(chunk.end, (group + 1) * per_group);
        const index_t column = (begin - chunk.begin) * taps;
        f(Piece{begin, end, group, tap, taps, column, (before + column) * padded_outputs(cut), (end - begin) * taps});
        begin = end;
        before += DEPTH_STEP - 1;
    }
}

// Sample a tile at one tap of a chunk into rows of columns; a piece's channels begin at image + piece.begin.
template <bool CHECKED> DEVICE void sample_pieces(const Geometry& g, const Cut& cut, const Chunk& chunk,
                                                  index_t first_tap, index_t tap, const TapSamples& samples, int count,
                                                  const image_t* image, acc_t* columns) {
    for_pieces(g, cut, chunk, first_tap, [&](const Piece& piece) {
        const int width = width_of(piece.end - piece.begin);
        const image_t* from = image + piece.begin;
        acc_t* to = columns + piece.column + (tap - first_tap) * width;
        for (int j = 0; j < count; ++j) sample_tap<CHECKED>(samples, j, from, width, to + j * COLUMNS);
    });
}

DEVICE bool is_depthwise(const Geometry& g, const Cut& cut) {
    return JOINED && cut.out_channels == g.channels && g.channels == cut.groups * cut.joined;
}

// Of a depthwise piece and `count` pixels: calls f(j, k, c) where number k of pixel j meets channel c of the group.
template <typename F>
DEVICE void for_vectors(const Geometry& g, const Cut& cut, const Piece& piece, index_t count, F f) {
    const index_t first = piece.begin - piece.group * (index_t)(g.channels / cut.groups);
    const index_t width = piece.end - piece.begin;
    for (index_t j = 0; j < count; ++j) {
        for (index_t k = 0; k < piece.depth; k += width) {
            SIMD for (index_t c = 0; c < width; ++c) f(j, k + c, first + c);
        }
    }
}

// Calls f(piece) for all pieces of a group.
template <typename F> DEVICE void for_pieces_of(const Geometry& g, const Cut& cut, index_t group, F f) {
    for (index_t number = 0; number < (index_t)g.groups * chunks_in_group(g, cut); ++number) {
        const Chunk chunk = chunk_of(g, cut, number);
        for (index_t tap = 0; tap < (index_t)g.taps; tap += taps_at_once(chunk)) {
            for_pieces(g, cut, chunk, tap, [&](const Piece& piece) {
                if (piece.group == group) f(piece);
            });
        }
    }
}

// Calls f(o, k, at) for each weight of a piece, zeros between joined groups left out: at output o of the group and
// number k of the sum is the user's weight `at`.
template <typename F> DEVICE void for_weights(const Geometry& g, const Cut& cut, const Piece& piece, F f) {
    const index_t outputs = group_outputs(cut) / (index_t)cut.joined;
    const index_t channels = (index_t)(g.channels / (cut.groups * cut.joined)), width = piece.end - piece.begin;
    for (index_t c = piece.begin; c < piece.end; ++c) {
        const index_t member = c / channels;
        for (index_t o = member * outputs; o < (member + 1) * outputs; ++o) {
            for (index_t t = 0; t < piece.taps; ++t) {
                f(o - piece.group * group_outputs(cut), t * width + c - piece.begin,
                  (o * channels + c % channels) * (index_t)g.taps + piece.tap + t);
            }
        }
    }
}

// Whether a product with zeros is zero.
DEVICE bool all_finite(const acc_t* from, index_t rows, index_t row, index_t width) {
    acc_t sum = 0;
    for (index_t j = 0; j < rows; ++j) {
        SIMD_SUM(sum) for (index_t i = 0; i < width; ++i) sum += from[j * row + i] * acc_t(0);
    }
    return sum == 0;
}

// Where output o at number k of the sum is among a piece's packed weights.
DEVICE index_t packed_at(const Geometry& g, const Cut& cut, const Piece& piece, index_t o, index_t k) {
    return piece.packed + (is_depthwise(g, cut) ? k : o / NR * NR * piece.depth + k * NR + o % NR);
}

// At most TILE pixels x TILE outputs, to or from memory in either layout.
template <bool STORE, typename T> DEVICE void move_block(T* memory, index_t channel_stride, index_t pixel_stride,
                                                         int pixels, int outputs, acc_t* rows, index_t row) {
    acc_t tile[TILE * TILE], other[TILE * TILE];
    if (channel_stride == 1) {
        for (int j = 0; j < pixels; ++j) {
            if (STORE) {
                store_line<TILE>(rows + j * row, memory + j * pixel_stride, 1, outputs);
            } else {
                load_line<TILE>(memory + j * pixel_stride, 1, outputs, rows + j * row);
            }
        }
    } else if (STORE) {
        for (int j = 0; j < pixels; ++j) load_line<TILE>(rows + j * row, 1, outputs, tile + j * TILE);
        const acc_t* turned = transpose<TILE, TILE>(tile, other);
        for (int i = 0; i < outputs; ++i) {
            store_line<TILE>(turned + i * TILE, memory + i * channel_stride, pixel_stride, pixels);
        }
    } else {
        for (int i = 0; i < outputs; ++i) {
            load_line<TILE>(memory + i * channel_stride, pixel_stride, pixels, tile + i * TILE);
        }
        const acc_t* turned = transpose<TILE, TILE>(tile, other);
        for (int j = 0; j < pixels; ++j) store_line<TILE>(turned + j * TILE, rows + j * row, 1, outputs);
    }
}

// The groups' part of a tile of outputs, [pixel][group][padded channel], likewise.
template <bool STORE, typename T> DEVICE void move_outputs(const Cut& cut, Groups of, T* memory, index_t channel_stride,
                                                           index_t pixel_stride, index_t count, acc_t* rows) {
    const index_t outputs = group_outputs(cut), row = output_row(cut);
    for (index_t group = of.begin; group < of.end; ++group) {
        for (index_t o = 0; o < outputs; o += TILE) {
            const int width = (int)smaller(index_t(TILE), outputs - o);
            for (index_t j = 0; j < count; j += TILE) {
                T* corner = memory + (group * outputs + o) * channel_stride + j * pixel_stride;
                acc_t* line = rows + group * padded_outputs(cut) + o + j * row;
                const int height = (int)smaller(index_t(TILE), count - j);
                move_block<STORE>(corner, channel_stride, pixel_stride, height, width, line, row);
            }
        }
    }
}
