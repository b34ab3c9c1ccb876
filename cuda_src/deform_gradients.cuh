// What one sample of a deformable convolution adds to each gradient (formulas: deform_col2im.cu).
#include "deform.cuh"

// What a gradient column makes of a tile's corners: its products with them, summed over channels.
struct Dots {
    acc_t corner[CORNERS][TILE][PARTS];
};

// dots += column * corners of sample j; then column = mask[j] * its value, or a NaN where corners of weight 0 are not
// finite, which only slopes want, or which a host reads outside. Dots of the latter are left out later. `width` <= VEC.
template <typename T>
DEVICE void differentiate_tap(const TapSamples& samples, int j, const T* image, int width, acc_t* column, Dots& dots) {
    const T* from[CORNERS];
    acc_t weight[CORNERS], sum[CORNERS][SUMS] = {};
    UNROLL for (int k = 0; k < CORNERS; ++k) {
        const Corner c = corner(samples, k, j);
        from[k] = TILE > 1 || corner_inside(samples.s, k, j) ? image + c.at : nothing;
        weight[k] = c.weight;
    }
    for_channels(width, [&](int v, int l) {
        acc_t value = 0;
        UNROLL for (int k = 0; k < CORNERS; ++k) {
            const acc_t pixel = widen(from[k][v]);
            sum[k][l] = fused(column[v], pixel, sum[k][l]);
            value = fused(weight[k], pixel, value);
        }
        column[v] = value;
    });
    add_parts<CORNERS>(sum, dots.corner[0] + j, TILE);
}

// The same by lanes of a GPU, in two steps: read, then reckon.
DEVICE void load_corners(const TapSamples& samples, const scalar_t* input, index_t at, Words* pixel) {
    const int wanted = input != nullptr;
    UNROLL for (int k = 0; k < CORNERS; ++k) {
        pixel[k] = load_words(input, at + corner(samples, k, 0).at, corner_inside(samples.s, k, 0) & wanted);
    }
}
DEVICE void differentiate_corners(const TapSamples& samples, const Words* pixel, const acc_t* column, acc_t* value,
                                  Dots& dots) {
    UNROLL for (int v = 0; v < VEC; ++v) value[v] = 0;
    UNROLL for (int k = 0; k < CORNERS; ++k) {
        const Corner c = corner(samples, k, 0);
        dots.corner[k][0][0] = add_dot(column, pixel[k], dots.corner[k][0][0]);
        if (c.read) add_words(c.weight, pixel[k], value);
    }
}

// The values without such corners.
template <typename T>
SELDOM void sample_again(const TapSamples& samples, int count, const T* image, int width, acc_t* column, index_t row) {
    for (int j = 0; j < count; ++j) sample_tap(samples, j, image, width, column + j * row);
}

// The gradients by masks and coordinates that a tile's dots make.
struct SampleGradients {
    acc_t mask[TILE], offset[NDIM][TILE];
};

DEVICE void make_gradients(const TapSamples& samples, const Dots& dots, SampleGradients& grads) {
    const Samples& s = samples.s;
    const Axis& x = s.axis[NDIM - 1];
    SIMD for (int j = 0; j < TILE; ++j) {
        acc_t by_mask = 0, by_offset[NDIM] = {};
        UNROLL for (int r = 0; r < ROWS; ++r) {
            acc_t value = 0, slope = 0;
            UNROLL for (int t = 0; t < TAPS; ++t) {
                const int k = r * TAPS + t;
                const acc_t dot = keep(whole_of(dots.corner[k][j]), corner_inside(s, k, j));  // else 0 * NaN
                value = add_product(x.weight[t][j], dot, value);
                slope = add_product(x.slope[t][j], dot, slope);
            }
            UNROLL for (int d = 0; d < NDIM - 1; ++d) {
                by_offset[d] = add_product(row_slope(s, d, r, j), value, by_offset[d]);
            }
            by_offset[NDIM - 1] = add_product(row_weight(s, r, j), slope, by_offset[NDIM - 1]);
            by_mask = add_product(row_weight(s, r, j), value, by_mask);
        }
        grads.mask[j] = by_mask;
        UNROLL for (int d = 0; d < NDIM; ++d) {
            grads.offset[d][j] = add_product(by_offset[d], samples.mask[j], acc_t(0));  // 0 outside, beside any mask
        }
    }
}

// Of image n, to where they are wanted; null: not needed.
template <typename T> DEVICE void store_gradients(const Geometry& g, const SampleGradients& grads, index_t n,
                                                  index_t group, index_t tap, const Base& base, T* offset, T* mask) {
    const index_t channel = group * (index_t)g.taps + tap;
    if (mask) {
        const index_t stride = (index_t)g.mask_stride[2];
        T* to = mask + n * (index_t)g.mask_stride[0] + channel * (index_t)g.mask_stride[1];
        store_line<TILE>(grads.mask, to + base.first * stride, stride, base.count);
    }
    if (offset) {
        const index_t stride = (index_t)g.offset_stride[2];
        T* to = offset + n * (index_t)g.offset_stride[0] + channel * NDIM * (index_t)g.offset_stride[1];
        UNROLL for (int d = 0; d < NDIM; ++d) {
            store_line<TILE>(grads.offset[d], to + d * (index_t)g.offset_stride[1] + base.first * stride, stride,
                             base.count);
        }
    }
}

// The adjoint of sample_tap.
DEVICE void scatter_tap(const TapSamples& samples, int j, const Sums& image, int width, const acc_t* column) {
    UNROLL for (int k = 0; k < CORNERS; ++k) {
        const Corner c = corner(samples, k, j);
        if (!c.read) continue;
        add_channels(image + c.at, c.weight, column, width);
    }
}
