// The host's deformable convolution, columns never leaving the cache:
//
//     output[n, o, p] = bias[o] + sum over c, i of weight[o, c, i] columns[n, c, i, p]       (see deform_im2col.cu)
//
// One item = a tile of PIXELS output pixels: a block of its columns is sampled, multiplied, and overwritten by the
// next. Where weights are as given, pixels are few, and tiles may be shared out by parts of the output channels, too.
#include "deform.cuh"
#include "product.cuh"
#include "pieces.cuh"
#include "strips.cuh"
#if GIVEN
#include "given.cuh"
#endif
#if SPLIT
#include "split.cuh"
#endif

struct DeformConvParams {
    const image_t* input;  // channels next to each other
    const coord_t* offset;
    const coord_t* mask;     // null: none
    const scalar_t* weight;  // (out_channels, channels / groups, taps), contiguous
    const scalar_t* bias;    // null: none
    acc_t* packed;           // the weights in pieces; not used where they are as given
    unsigned* split;         // the same as tiles, if SPLIT: for each panel whether it fits, then the pieces
    scalar_t* output;
    acc_t* scratch;
    long long items;             // batch * tiles * parts
    long long tiles;             // of an image
    long long parts;             // of the outputs, 1 unless weights are as given
    long long group_stride;      // from an offset group's channels in an image to those of the next
    long long output_stride[3];  // batch, channel, pixel
    Cut cut;
    Geometry geometry;
};

#if SPLIT
DEVICE index_t panels_of(const Cut& cut) { return (index_t)cut.groups * padded_outputs(cut) / PANEL; }

// Where the tiles of a piece's panel are: numbers take DATA_PARTS halves of a word.
DEVICE unsigned* split_at(const DeformConvParams& p, const Piece& piece, index_t o) {
    const index_t before = (panels_of(p.cut) + LINE - 1) / LINE * LINE;
    return p.split + before + (piece.packed + o * padded_depth(piece)) / 2 * DATA_PARTS;
}

DEVICE void split_item(const DeformConvParams& p, index_t item) {
    const Geometry& g = p.geometry;
    const index_t blocks = padded_outputs(p.cut) / PANEL, o = item % blocks * PANEL;
    bool fits = true;
    for_pieces_of(g, p.cut, item / blocks, [&](const Piece& piece) {
        const acc_t* panel = p.packed + piece.packed + o * piece.depth;
        fits &= split_panel<DATA_PARTS>(piece.depth, NR, panel, NR, split_at(p, piece, o));
    });
    p.split[item] = fits;
}

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

constexpr int PAST_CACHE = 1 << 19;  // bytes of packed weights

DEVICE void pack_joined(const DeformConvParams& p, index_t item) {
    const index_t blocks = padded_outputs(p.cut) / PANEL, first = item % blocks * PANEL;
    for_pieces_of(p.geometry, p.cut, item / blocks, [&](const Piece& piece) {
        acc_t* to = p.packed + piece.packed + first * piece.depth;
        for (index_t i = 0; i < PANEL * piece.depth; ++i) to[i] = 0;
        for_weights(p.geometry, p.cut, piece, [&](index_t o, index_t k, index_t at) {
            if (o / PANEL == first / PANEL) p.packed[packed_at(p.geometry, p.cut, piece, o, k)] = widen(p.weight[at]);
        });
    });
}

// Many weights go past the caches, which other cores would have to give up their copies in; they are read panel by
// panel, the next one asked for in time. Where they are split, they are read again at once.
DEVICE void pack(const DeformConvParams& p, index_t item) {
    const long long numbers = padded_outputs(p.cut) * p.geometry.channels * p.geometry.taps;
    const bool past = !SPLIT && numbers * (int)sizeof(acc_t) >= PAST_CACHE && STRIP == LINE;
    for_strips<false>(p.geometry, p.cut, item, [&](const Strip& s) {
        alignas(64) acc_t tile[STRIP * STRIP] = {}, other[STRIP * STRIP];
        for (int i = 0; i < s.outputs; ++i) {
            load_line<STRIP>(p.weight + s.user + i * s.row, 1, s.count, tile + i * STRIP);
        }
        const acc_t* lines = transpose<STRIP, STRIP>(tile, other);
        for (int k = 0; k < s.count; ++k) {
            acc_t* to = p.packed + s.at[k];
            if (past) {
                store_bytes<STRIP*(int)sizeof(acc_t)>(lines + k * STRIP, to);
            } else {
                SIMD for (int i = 0; i < STRIP; ++i) to[i] = lines[k * STRIP + i];
            }
        }
    });
}

// One item = PANEL output channels of a group.
KERNEL(deform_conv_pack, DeformConvParams) {
    FOR_EACH(item, p.items) {
        if (JOINED) {
            pack_joined(p, item);
        } else {
            pack(p, item);
        }
#if SPLIT
        split_item(p, item);
#endif
    }
}

template <bool CHECKED> DEVICE void sample_columns(const DeformConvParams& p, index_t n, const Chunk& chunk,
                                                   index_t first_tap, const Base* base, int bases, acc_t* columns) {
    const Geometry& g = p.geometry;
    const index_t end = smaller(first_tap + taps_at_once(chunk), (index_t)g.taps);
    const index_t origin = chunk.group * ((index_t)p.group_stride - group_width(g));
    const image_t* image = p.input + n * (index_t)g.input_stride[0] + origin;
    for (index_t tap = first_tap; tap < end; ++tap) {
        for (int b = 0; b < bases; ++b) {
            TapSamples samples;
            look(g, p.offset, p.mask, n, chunk.group, tap, base[b], samples);
            acc_t* to = columns + b * TILE * COLUMNS;
            sample_pieces<CHECKED>(g, p.cut, chunk, first_tap, tap, samples, base[b].count, image, to);
        }
    }
}

// Where a tile begins. Tiles are full, or where there are more than need be, of about the same size, in steps of the
// rows that a product takes.
DEVICE index_t tile_begin(const DeformConvParams& p, index_t tile) {
    const index_t pixels = (index_t)p.geometry.pixels, least = (pixels + PIXELS - 1) / PIXELS;
    const index_t unit = GIVEN ? LINE : SPLIT ? 16 : MR / 3, rows = !GIVEN && p.tiles == least ? PIXELS : unit;
    const index_t blocks = (pixels + rows - 1) / rows;
    return smaller((index_t)(tile * (long long)blocks / p.tiles) * rows, pixels);
}

#if GIVEN
// An item's outputs; a tile of them is [output][pixel of PIXELS].
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
#else
// All; a tile of them is [pixel][group][padded channel].
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
#endif

// Samples of few channels take longer to leave corners out than to read them, and to look for NaNs in the end.
constexpr bool READS_ALL = WIDTH > 0;

// A tile of outputs, of the `count` pixels of image n that `base` has.
template <bool CHECKED> DEVICE void fill_outputs(const DeformConvParams& p, Outputs of, index_t n, index_t count,
                                                 const Base* base, acc_t* columns, acc_t* total) {
    const Geometry& g = p.geometry;
    const int bases = (int)((count + TILE - 1) / TILE);
    begin_outputs(p, of, count, total);
    for (index_t number = 0; number < (index_t)g.groups * chunks_in_group(g, p.cut); ++number) {
        const Chunk chunk = chunk_of(g, p.cut, number);
        for (index_t tap = 0; tap < (index_t)g.taps; tap += taps_at_once(chunk)) {
            sample_columns<CHECKED>(p, n, chunk, tap, base, bases, columns);
            for_pieces(g, p.cut, chunk, tap,
                       [&](const Piece& piece) { multiply_piece(p, of, count, piece, columns, total); });
        }
    }
}

SELDOM void fill_again(const DeformConvParams& p, Outputs of, index_t n, index_t count, const Base* base,
                       acc_t* columns, acc_t* total) {
    fill_outputs<true>(p, of, n, count, base, columns, total);
}

KERNEL(deform_conv, DeformConvParams) {
    const Geometry& g = p.geometry;
    const Cut& cut = p.cut;
    const index_t tiles = (index_t)p.tiles;
    acc_t* columns = p.scratch + worker * (index_t)cut.scratch;
    acc_t* total = columns + PIXELS * COLUMNS;
    FOR_EACH(item, p.items) {
        index_t n = item;
        const Outputs of = outputs_of(p, take_digit(n, (index_t)p.parts));
        const index_t tile = take_digit(n, tiles), first = tile_begin(p, tile);
        const index_t count = tile_begin(p, tile + 1) - first;
        const int bases = (int)((count + TILE - 1) / TILE);
        Base base[PIXELS / TILE];
        for (int b = 0; b < bases; ++b) make_base(g, first + b * TILE, base[b]);
        fill_outputs<!READS_ALL>(p, of, n, count, base, columns, total);
        if (READS_ALL && has_nan(p, of, count, total)) fill_again(p, of, n, count, base, columns, total);
        scalar_t* output = p.output + n * (index_t)p.output_stride[0] + first * (index_t)p.output_stride[2];
        end_outputs(p, of, count, total, output);
    }
}
