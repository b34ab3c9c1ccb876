// A tile of pixels in GROUP channels, as planar kernels read and write it.

// The channels that a group starts at; beyond the last one it repeats it, and nobody stores what comes of that.
template <typename P> DEVICE void group_planes(const P& image, index_t channel, index_t end, index_t stride, P* plane) {
    UNROLL for (int c = 0; c < GROUP; ++c) plane[c] = image + smaller(channel + c, end - 1) * stride;
}

// The tile in `channels` of the group's channels.
DEVICE void store_group(const acc_t sum[][TILE], scalar_t* to, index_t channel_stride, index_t pixel_stride, int count,
                        int channels) {
    if (TILE > 1 && channel_stride == 1 && pixel_stride == GROUP && count == TILE) {
        prefetch_line<TILE * GROUP>(to + TILE * GROUP);
        SIMD for (int j = 0; j < TILE; ++j) {
            UNROLL for (int c = 0; c < GROUP; ++c) narrow(sum[c][j], to[j * GROUP + c]);
        }
        return;
    }
    UNROLL for (int c = 0; c < GROUP; ++c) {
        if (c < channels) store_line<TILE>(sum[c], to + c * channel_stride, pixel_stride, count);
    }
}

// Whether some number of `lines` lines is a NaN.
template <int lines> DEVICE bool any_nan(const acc_t line[][TILE]) {
    int found = 0;
    UNROLL for (int c = 0; c < lines; ++c) { SIMD for (int j = 0; j < TILE; ++j) found |= line[c][j] != line[c][j]; }
    return found;
}

// Whether all are finite.
template <int lines> DEVICE bool all_finite(const acc_t line[][TILE]) {
    int finite = 1;
    UNROLL for (int c = 0; c < lines; ++c) { SIMD for (int j = 0; j < TILE; ++j) finite &= line[c][j] * 0 == 0; }
    return finite;
}

// Zero what lies outside.
DEVICE void clear_outside(const int* inside, scalar_t* const* to, index_t pixel_stride, int count) {
    UNROLL for (int c = 0; c < GROUP; ++c) {
        if (pixel_stride == 1) {
            SIMD for (int j = 0; j < count; ++j) to[c][j] = keep(to[c][j], inside[j]);
        } else {
            for (int j = 0; j < count; ++j) to[c][j * pixel_stride] = keep(to[c][j * pixel_stride], inside[j]);
        }
    }
}

// Nearest samples are elements of the planes, or zero. A host copies all, and then clears some by SIMD code.
DEVICE void copy_nearest(const Samples& s, const scalar_t* const* plane, scalar_t* const* to, index_t pixel_stride,
                         int count) {
    const index_t* at = s.axis[NDIM - 1].at[0];
    const int* inside = s.axis[NDIM - 1].inside[0];
    UNROLL for (int c = 0; c < PLANES; ++c) prefetch_line<TILE>(to[c] + TILE * pixel_stride);
    const auto copy = [&](int j) {
        scalar_t value[GROUP];
        UNROLL for (int c = 0; c < GROUP; ++c) value[c] = TILE > 1 || inside[j] ? plane[c][at[j]] : scalar_t();
        UNROLL for (int c = 0; c < GROUP; ++c) to[c][j * pixel_stride] = value[c];
    };
    int first = 0;
    for (; first + UNROLLED_SAMPLES <= count; first += UNROLLED_SAMPLES) {
        UNROLL for (int k = 0; k < UNROLLED_SAMPLES; ++k) copy(first + k);
        SCALAR_LOOP;
    }
    for (; first < count; ++first) {
        copy(first);
        SCALAR_LOOP;
    }
    if (TILE > 1 && !s.whole) clear_outside(inside, to, pixel_stride, count);
}

// The group's gradients by the output, zero where there is no pixel or no channel.
DEVICE void load_group(const GridSampleParams& p, const Item& it, index_t first, acc_t out_grad[][TILE]) {
    const index_t channel_stride = (index_t)p.output_stride[1], pixel_stride = (index_t)p.output_stride[2];
    const scalar_t* from = p.grad_output + it.n * (index_t)p.output_stride[0] + it.first * pixel_stride;
    const bool all = it.count == TILE && it.channel_end - first >= GROUP;
    if (TILE > 1 && channel_stride == 1 && pixel_stride == GROUP && all) {
        from += first;
        prefetch_line<TILE * GROUP>(from + TILE * GROUP);
        SIMD for (int j = 0; j < TILE; ++j) {
            UNROLL for (int c = 0; c < GROUP; ++c) out_grad[c][j] = widen(from[j * GROUP + c]);
        }
        return;
    }
    UNROLL for (int c = 0; c < GROUP; ++c) {
        const scalar_t* line = from + smaller(first + c, it.channel_end - 1) * channel_stride;
        const int count = first + c < it.channel_end ? it.count : 0;
        if (count < TILE) {
            for (int j = 0; j < TILE; ++j) out_grad[c][j] = 0;
        }
        load_line<TILE>(line, pixel_stride, count, out_grad[c]);
    }
}
