// The host's deformable convolution, columns never leaving the cache:
//
//     output[n, o, p] = bias[o] + sum over c, i of weight[o, c, i] columns[n, c, i, p]       (see deform_im2col.cu)
//
// One item = a tile of PIXELS output pixels: a block of its columns is sampled, multiplied, and overwritten by the
// next. Where weights are as given, pixels are few, and tiles may be shared out by parts of the output channels, too.
// Else they were packed before (deform_conv_pack.cu).
#include "deform_conv.cuh"
#if GIVEN
#include "outputs_given.cuh"
#else
#include "outputs_packed.cuh"
#endif

template <bool CHECKED> DEVICE void sample_columns(const DeformConvParams& p, index_t n, const Chunk& chunk,
                                                   index_t first_tap, const Base* base, int bases, acc_t* columns) {
    const Geometry& g = p.geometry;
    const index_t end = smaller(first_tap + taps_at_once(chunk), (index_t)g.taps);
    const index_t origin = chunk.group * ((index_t)p.group_stride - group_width(g));
    const image_t* image = p.input + n * (index_t)g.input_stride[0] + origin;
    for (index_t tap = first_tap; tap < end; ++tap) {
        for (int b = 0; b < bases; ++b) {
            TapSamples samples;
            locate_tap(g, p.offset, p.mask, n, chunk.group, tap, base[b], samples);
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
