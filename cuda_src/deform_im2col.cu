// deform_im2col: columns[n, c, i, o] = mask[n, g, i, o] * sample of input[n, c] at p(o, i, g)
//
// (arXiv 1703.06211, equation 2, with the mask of arXiv 1811.11168.)
//
// One item = a tile of output pixels at `tap_block` taps of the offset groups, shared by LANES lanes. On a GPU a tile
// is a pixel and a block one tap, of a part of its group's channels where they are not taken in packs.
#include "deform.cuh"

struct DeformIm2colParams {
    const scalar_t* input;
    const coord_t* offset;
    const coord_t* mask;      // null: none
    scalar_t* columns;        // written
    long long items;          // batch * tiles * blocks of taps * parts of a group
    long long tap_block;      // (group, tap) pairs of one item
    long long channel_block;  // channels of a group in one item
    ColumnLayout layout;      // of columns
    Geometry geometry;
};

template <> constexpr int RESIDENT<DeformIm2colParams> = !PACKS ? 0 : NDIM < 3 && sizeof(scalar_t) < 8 ? 4 : 2;

struct Place {
    index_t n, tile, block, begin, end;  // `begin` and `end` are channels of a group
};

// In the order of memory: pixels of a tap follow one another, or channels and taps of a pixel.
DEVICE Place place_of(const DeformIm2colParams& p, index_t item) {
    const Geometry& g = p.geometry;
    const index_t tiles = ((index_t)g.pixels + TILE - 1) / TILE, pairs = (index_t)(g.groups * g.taps);
    const index_t blocks = (pairs + (index_t)p.tap_block - 1) / (index_t)p.tap_block;
    const index_t count = group_width(g), length = (index_t)p.channel_block;
    const index_t parts = TILE > 1 || PACKS ? 1 : (count + length - 1) / length;
    const bool pixels_first = p.layout.stride[3] == 1;
    Place it;
    index_t part = 0;
    if (!pixels_first) {
        if (parts > 1) part = take_digit(item, parts);
        it.block = take_digit(item, blocks, g.inverse_pairs);
    }
    it.tile = take_digit(item, tiles, g.inverse_pixels);
    it.n = take_digit(item, (index_t)g.batch, g.inverse_batch);
    if (pixels_first) {
        if (parts > 1) part = take_digit(item, parts);
        it.block = item;
    }
    it.begin = part * length;
    it.end = smaller(it.begin + length, count);
    return it;
}

// A tap of an offset group. In packs, channels of the next group follow in memory.
struct Pair {
    index_t group, tap;
};
DEVICE Pair pair_of(const Geometry& g, index_t pair) {
    Pair of = {pair, pair};
    if (PACKS) {
        of.group = take_digit(of.tap, (index_t)g.groups, g.inverse_groups);
    } else {
        of.tap = take_digit(of.group, (index_t)g.taps, g.inverse_taps);
    }
    return of;
}

KERNEL(deform_im2col, DeformIm2colParams) {
    const Geometry& g = p.geometry;
    const index_t pairs = (index_t)(g.groups * g.taps), count = group_width(g);
    FOR_EACH(item, p.items) {
        const Place it = place_of(p, item);
        Base base;
        make_base(g, it.tile * TILE, base);
        const scalar_t* image = p.input + it.n * (index_t)g.input_stride[0];
        const index_t end = smaller((it.block + 1) * (index_t)p.tap_block, pairs);
        for (index_t pair = it.block * (index_t)p.tap_block; pair < end; ++pair) {
            const Pair of = pair_of(g, pair);
            TapSamples samples;
            locate_tap(g, p.offset, p.mask, it.n, of.group, of.tap, base, samples);
            for (index_t c = it.begin + LANE * VEC; c < it.end; c += LANES * VEC) {
                const int width = PACKS ? VEC : width_of(smaller(index_t(VEC), it.end - c));
                const index_t channel = of.group * count + c, channel_stride = PACKS ? 1 : (index_t)p.layout.stride[1];
                acc_t tile[TILE][VEC];
                for (int j = 0; j < base.count; ++j) {
                    sample_tap(samples, j, image + channel * (index_t)g.input_stride[1], width, tile[j]);
                }
                scalar_t* to = p.columns + column_at(p.layout, it.n, channel, of.tap, base.first - (index_t)g.first);
                store_tile(to, channel_stride, (index_t)p.layout.stride[3], base.count, width, tile);
            }
        }
    }
}
