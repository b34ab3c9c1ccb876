// deform_im2col: columns[n, c, i, o] = mask[n, g, i, o] * sample of input[n, c] at p(o, i, g)
//
// (arXiv 1703.06211, equation 2, with the mask of arXiv 1811.11168.)
//
// One item = a tile of output pixels at `tap_block` taps of the offset groups, shared by LANES lanes.
#include "deform.cuh"

struct DeformIm2colParams {
    const scalar_t* input;
    const coord_t* offset;
    const coord_t* mask;  // null: none
    scalar_t* columns;    // written
    long long items;      // batch * tiles * blocks of taps
    long long tap_block;  // (group, tap) pairs of one item
    ColumnLayout layout;  // of columns
    Geometry geometry;
};

template <> constexpr int RESIDENT<DeformIm2colParams> = LANES == 1 ? 0 : NDIM < 3 && sizeof(scalar_t) < 8 ? 4 : 2;

KERNEL(deform_im2col, DeformIm2colParams) {
    const Geometry& g = p.geometry;
    const index_t tiles = ((index_t)g.pixels + TILE - 1) / TILE, pairs = (index_t)(g.groups * g.taps);
    const index_t blocks = (pairs + (index_t)p.tap_block - 1) / (index_t)p.tap_block;
    const index_t count = group_width(g);
    FOR_EACH(item, p.items) {
        // In the order of memory: pixels of a tap follow one another, or taps of a pixel. On a GPU a tile is a pixel
        // and a block one pair.
        const bool pixels_first = p.layout.stride[3] == 1;
        index_t rest = item, block = pixels_first ? 0 : take_digit(rest, blocks, g.by_pairs);
        const index_t tile = take_digit(rest, tiles, g.by_pixels);
        const index_t n = pixels_first ? take_digit(rest, (index_t)g.batch, g.by_batch) : rest;
        if (pixels_first) block = rest;
        Base base;
        make_base(g, tile * TILE, base);
        const index_t end = smaller((block + 1) * (index_t)p.tap_block, pairs);
        for (index_t pair = block * (index_t)p.tap_block; pair < end; ++pair) {
            index_t group = pair;
            const index_t tap = take_digit(group, (index_t)g.taps, g.by_taps);
            TapSamples samples;
            look(g, p.offset, p.mask, n, group, tap, base, samples);
            const scalar_t* image = p.input + n * (index_t)g.input_stride[0];
            for (index_t c = LANE * VEC; c < count; c += LANES * VEC) {
                const int width = LANES > 1 ? VEC : width_of(smaller(index_t(VEC), count - c));
                const index_t channel = group * count + c, channel_stride = LANES > 1 ? 1 : (index_t)p.layout.stride[1];
                acc_t tile[TILE][VEC];
                for (int j = 0; j < base.count; ++j) {
                    sample_tap(samples, j, image + channel * (index_t)g.input_stride[1], width, tile[j]);
                }
                scalar_t* to = p.columns + column_at(p.layout, n, channel, tap, base.first - (index_t)g.first);
                store_tile(to, channel_stride, (index_t)p.layout.stride[3], base.count, width, tile);
            }
        }
    }
}
