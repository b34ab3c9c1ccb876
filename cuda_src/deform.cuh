// Deformable convolution's way to look: for output pixel o and kernel tap i, along dimension d,
//
//     p_d = o_d stride_d - pad_d + i_d dilation_d + offset_d                               (arXiv 1703.06211, eq. 2)
//
// and a sample is linear, with zeros outside. Here: a tile's positions and the value of a sample. A mask
// (arXiv 1811.11168, eq. 1) multiplies it.
#include "core.cuh"
#include "interpolate.cuh"
#include "samples.cuh"
#include "channels.cuh"

struct Geometry {
    long long batch;
    long long channels;
    long long groups;   // of offsets
    long long pixels;   // of the output that are visited
    long long first;    // of these
    long long taps;     // of the kernel
    long long size[3];  // of the input, slowest dimension first, as all of these
    long long out[3];
    long long kernel[3];
    long long stride[3];
    long long pad[3];  // at the beginning
    long long dilation[3];
    long long input_stride[5];   // batch, channel, dimensions
    long long offset_stride[3];  // batch, channel, pixel
    long long mask_stride[3];
    // What `take_digit` wants; pairs: groups * taps.
    long long inverse_batch, inverse_groups, inverse_pixels, inverse_taps, inverse_pairs;
    long long inverse_out[3];
    long long inverse_kernel[3];
};

// Channels of an offset group. A GPU has no instructions to divide numbers of 64 bits.
DEVICE index_t group_width(const Geometry& g) { return (index_t)((uindex_t)g.channels / (uindex_t)g.groups); }

// Where columns lie: channels in blocks of `block`, which a product with several groups wants apart. A block's stride
// of 0 says that there is one.
struct ColumnLayout {
    long long stride[4];  // batch, channel, tap, pixel
    long long block;
    long long block_stride;
};

// `pixel` counts from the first pixel that is visited.
DEVICE index_t column_at(const ColumnLayout& l, index_t n, index_t channel, index_t tap, index_t pixel) {
    index_t block = 0, within = channel;
    if (l.block_stride) {
        block = channel;
        within = take_digit(block, (index_t)l.block);
    }
    return n * (index_t)l.stride[0] + block * (index_t)l.block_stride + within * (index_t)l.stride[1] +
           tap * (index_t)l.stride[2] + pixel * (index_t)l.stride[3];
}

DEVICE index_t input_pixels(const Geometry& g) {
    index_t pixels = 1;
    UNROLL for (int d = 0; d < NDIM; ++d) pixels *= (index_t)g.size[d];
    return pixels;
}

constexpr int CORNERS = ROWS * TAPS;

// p_d of a tile's pixels, without kernel and offset.
struct Base {
    index_t at[NDIM][TILE];
    index_t first;  // pixel of the output
    int count;      // pixels that exist
};

// `first` counts from the first pixel that is visited.
DEVICE void make_base(const Geometry& g, index_t first, Base& base) {
    base.first = (index_t)g.first + first;
    base.count = TILE == 1 ? 1 : (int)smaller(index_t(TILE), (index_t)g.pixels - first);
    index_t o[NDIM], rest = base.first;
    UNROLL for (int d = NDIM - 1; d >= 0; --d) {
        o[d] = d ? take_digit(rest, (index_t)g.out[d], g.inverse_out[d]) : rest;
    }
    for (int j = 0; j < TILE; ++j) {
        UNROLL for (int d = 0; d < NDIM; ++d) base.at[d][j] = o[d] * (index_t)g.stride[d] - (index_t)g.pad[d];
        o[NDIM - 1] += 1;
        UNROLL for (int d = NDIM - 1; d > 0; --d) {
            if (o[d] < (index_t)g.out[d]) break;
            o[d] = 0;
            o[d - 1] += 1;
        }
    }
}

// The tile that a thread visits as number `tile`, where `parts` of an image's channels may be visited at once: each
// part begins elsewhere, or threads would want the same lines of the cache to add to.
DEVICE index_t tile_of_part(index_t tile, index_t tiles, index_t part, index_t parts) {
    return (tile + part * tiles / parts) % tiles;
}

// A tile's numbers in one channel of offsets or masks; `other` where there is no pixel.
DEVICE void load_pixels(const coord_t* from, index_t pixel_stride, const Base& base, acc_t other, acc_t* to) {
    for (int j = base.count; j < TILE; ++j) to[j] = other;
    load_line<TILE>(from + base.first * pixel_stride, pixel_stride, base.count, to);
}

// The samples of a tile at one tap of an offset group. A host keeps their corners; a GPU's registers are better spent
// otherwise.
constexpr int STORED_CORNERS = TILE > 1 ? CORNERS : 1;

struct TapSamples {
    Samples s;
    acc_t mask[TILE];
    index_t at[STORED_CORNERS][TILE];
    acc_t weight[STORED_CORNERS][TILE];
    int read[STORED_CORNERS][TILE];
    int whole[TILE];  // whether all corners are read; a host's only
};

// A corner of weight 0 is not read, so that a sample at integer coordinates is that pixel, whatever the neighbours
// hold.
struct Corner {
    index_t at;
    acc_t weight;  // times the mask
    int read;
};

DEVICE int corner_inside(const Samples& s, int k, int j) { return tap_inside(s, k / TAPS, k % TAPS, j); }

DEVICE Corner make_corner(const TapSamples& samples, int k, int j) {
    const Samples& s = samples.s;
    const Axis& x = s.axis[NDIM - 1];
    const int r = k / TAPS, t = k % TAPS;
    const acc_t weight = row_weight(s, r, j) * x.weight[t][j];
    const int some = weight != 0, read = corner_inside(s, k, j) & some;
    return {row_at(s, r, j) + x.at[t][j], keep(weight * samples.mask[j], read), read};
}

DEVICE Corner corner(const TapSamples& samples, int k, int j) {
    if (TILE == 1) return make_corner(samples, k, j);
    return {samples.at[k][j], samples.weight[k][j], samples.read[k][j]};
}

DEVICE void load_mask(const Geometry& g, const coord_t* mask, index_t n, index_t channel, const Base& base, acc_t* to) {
    if (mask) {
        const coord_t* from = mask + n * (index_t)g.mask_stride[0] + channel * (index_t)g.mask_stride[1];
        load_pixels(from, (index_t)g.mask_stride[2], base, acc_t(0), to);
    } else {
        for (int j = 0; j < TILE; ++j) to[j] = 1;
    }
}

DEVICE void locate_tap(const Geometry& g, const coord_t* offset, const coord_t* mask, index_t n, index_t group,
                       index_t tap, const Base& base, TapSamples& samples) {
    const index_t channel = group * (index_t)g.taps + tap;
    const coord_t* from = offset + n * (index_t)g.offset_stride[0] + channel * NDIM * (index_t)g.offset_stride[1];
    Samples& s = samples.s;
    UNROLL for (int d = NDIM - 1; d >= 0; --d) {
        const index_t i = d ? take_digit(tap, (index_t)g.kernel[d], g.inverse_kernel[d]) : tap;
        const index_t shift = i * (index_t)g.dilation[d];
        const index_t size = (index_t)g.size[d], step = (index_t)g.input_stride[2 + d];
        acc_t delta[TILE];
        load_pixels(from + d * (index_t)g.offset_stride[1], (index_t)g.offset_stride[2], base, acc_t(-1e30), delta);
        SIMD for (int j = 0; j < TILE; ++j) {
            locate_beside(s.axis[d], j, base.at[d][j] + shift, delta[j], size, step);
        }
    }
    make_rows(s);
    load_mask(g, mask, n, channel, base, samples.mask);
    if constexpr (TILE > 1) {
        UNROLL for (int k = 0; k < CORNERS; ++k) {
            SIMD for (int j = 0; j < TILE; ++j) {
                const Corner c = make_corner(samples, k, j);
                samples.at[k][j] = c.at;
                samples.weight[k][j] = c.weight;
                samples.read[k][j] = c.read;
                samples.whole[j] = k ? samples.whole[j] & c.read : c.read;
            }
        }
    }
}

// Read instead of what is outside: a select keeps the loops over channels free of branches.
CONSTANT image_t nothing[VEC] = {};

// to[v] = mask[j] * sample j in the channels image[0] ... image[width - 1]; width <= VEC. Unless CHECKED, a host reads
// all corners, whose offsets are clipped, rather than leaving some out: right but for a NaN, which may come of that.
template <bool CHECKED = true, typename T>
DEVICE void sample_tap(const TapSamples& samples, int j, const T* image, int width, acc_t* to) {
    if constexpr (!PACKS) {
        const T* from[CORNERS];
        acc_t weight[CORNERS];
        UNROLL for (int k = 0; k < CORNERS; ++k) {
            const Corner c = corner(samples, k, j);
            from[k] = image + c.at;
            weight[k] = c.weight;
        }
        if (TILE == 1 || (CHECKED && !samples.whole[j])) {
            UNROLL for (int k = 0; k < CORNERS; ++k) from[k] = corner(samples, k, j).read ? from[k] : nothing;
        }
        SIMD for (int v = 0; v < width; ++v) {
            acc_t value = 0;
            UNROLL for (int k = 0; k < CORNERS; ++k) value = fused(weight[k], widen(from[k][v]), value);
            to[v] = value;
        }
    } else {
        Words pixel[CORNERS];
        acc_t weight[CORNERS];
        UNROLL for (int k = 0; k < CORNERS; ++k) {
            const Corner c = corner(samples, k, j);
            pixel[k] = load_words(image, c.at, c.read);
            weight[k] = c.weight;
        }
        UNROLL for (int v = 0; v < VEC; ++v) {
            to[v] = 0;
            UNROLL for (int k = 0; k < CORNERS; ++k) {
                to[v] = fused(weight[k], widen(number<scalar_t>(pixel[k].word, v)), to[v]);
            }
        }
    }
}

// Whether some number is a NaN.
DEVICE bool any_nan(const acc_t* from, index_t rows, index_t row, index_t width) {
    int found = 0;
    for (index_t j = 0; j < rows; ++j) {
        SIMD for (index_t i = 0; i < width; ++i) found |= from[j * row + i] != from[j * row + i];
    }
    return found;
}
