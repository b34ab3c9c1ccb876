// Gradients of gradients. Those of one sample are, with its image x, mask m, coordinates p and the gradient g by it,
//
//     by x:  m w(p) g      by p:  m w'(p) g x      by m:  w(p) g x      and the sample itself, "by g":  m w(p) x
//
// summed over taps: all are derivatives of one number, F = m w(p) g x. So, where they are multiplied with a direction
// in which x, p, m and g change and added up, the gradients of that are the derivatives of these formulas in this
// direction. They are evaluated in dual numbers a + e a' with e e = 0, whose tangents a' are what is wanted.

struct Dual {
    acc_t value, tangent;
};

DEVICE Dual times(Dual a, Dual b) { return {a.value * b.value, fused(a.value, b.tangent, a.tangent * b.value)}; }

// sum + (weight * x)', without what meets a 0.
DEVICE acc_t add_tangent(Dual weight, Dual x, acc_t sum) {
    return add_product(weight.value, x.tangent, add_product(weight.tangent, x.value, sum));
}

// One tap of a tile of samples.
struct DualTaps {
    index_t at[TILE];
    int inside[TILE];
    acc_t weight[TILE], weight_tangent[TILE], slope[NDIM][TILE], slope_tangent[NDIM][TILE];
};

// Tap k of samples whose coordinates move with this velocity. Plain arrays: compilers vectorise no loop over structs.
DEVICE void make_taps(const Samples& s, const acc_t velocity[][TILE], int k, DualTaps& taps) {
    SIMD for (int j = 0; j < TILE; ++j) {
        taps.at[j] = 0;
        taps.inside[j] = 1;
        taps.weight[j] = 1;
        taps.weight_tangent[j] = 0;
        UNROLL for (int d = 0; d < NDIM; ++d) {
            taps.slope[d][j] = 1;
            taps.slope_tangent[d][j] = 0;
        }
    }
    UNROLL for (int d = NDIM - 1; d >= 0; --d) {
        const Axis& axis = s.axis[d];
        const int t = k % TAPS;
        k /= TAPS;
        SIMD for (int j = 0; j < TILE; ++j) {
            const acc_t weight = pick(axis.weight, t, j), slope = pick(axis.slope, t, j), along = velocity[d][j];
            const acc_t weight_tangent = slope * along, slope_tangent = pick(axis.curvature, t, j) * along;
            taps.at[j] += pick(axis.at, t, j);
            taps.inside[j] &= pick(axis.inside, t, j);
            const acc_t tangent = fused(taps.weight[j], weight_tangent, taps.weight_tangent[j] * weight);
            taps.weight[j] *= weight;
            taps.weight_tangent[j] = tangent;
            UNROLL for (int e = 0; e < NDIM; ++e) {
                const acc_t factor = e == d ? slope : weight, change = e == d ? slope_tangent : weight_tangent;
                const acc_t product = taps.slope[e][j] * factor;
                taps.slope_tangent[e][j] = fused(taps.slope[e][j], change, taps.slope_tangent[e][j] * factor);
                taps.slope[e][j] = product;
            }
        }
    }
}

struct DualChannels {
    acc_t value[VEC], tangent[VEC];
};

// Zeros where there is no array.
DEVICE void load_or_zero(const scalar_t* from, index_t at, int width, acc_t* to) {
    if (from) {
        load_channels(from + at, width, to);
    } else {
        UNROLL for (int v = 0; v < VEC; ++v) to[v] = 0;
    }
}
DEVICE DualChannels load_dual(const scalar_t* value, const scalar_t* tangent, index_t at, int width) {
    DualChannels found;
    load_or_zero(value, at, width, found.value);
    load_or_zero(tangent, at, width, found.tangent);
    return found;
}

// The tangents of the gradients by mask and coordinates, summed over channels.
struct DualSums {
    acc_t mask, coordinate[NDIM];
};

// A sum over channels by halves, because compilers add up the lanes of a SIMD reduction one after the other.
constexpr int SPAN = next_power_of_two(VEC);
DEVICE acc_t add_up(acc_t* x) {
    UNROLL for (int half = SPAN / 2; half > 0; half /= 2) { SIMD for (int i = 0; i < half; ++i) x[i] += x[i + half]; }
    return x[0];
}

// An image at the element `at`: its first channel that is sampled. The gradients by it have tangents, too.
struct DualImage {
    const scalar_t *value, *tangent;
    bool adds;  // whether those are needed
    Sums grad;
    index_t at;
};

// What one tap contributes; see `dual_sample`.
DEVICE void add_tap(const DualTaps& tap, Dual mask, const DualImage& image, int width, const DualChannels& grad,
                    bool moves, DualChannels& sample, DualSums& sums) {
    const index_t at = image.at + tap.at[0];
    const DualChannels x = load_dual(image.value, image.tangent, at, width);
    const Dual share = {tap.weight[0], tap.weight_tangent[0]}, weight = times(mask, share);
    acc_t value[SPAN] = {}, tangent[SPAN] = {};
    SIMD for (int v = 0; v < width; ++v) {
        value[v] = grad.value[v] * x.value[v];
        tangent[v] = grad.value[v] * x.tangent[v];
    }
    if (moves) {
        SIMD for (int v = 0; v < width; ++v) tangent[v] = fused(grad.tangent[v], x.value[v], tangent[v]);
    }
    const Dual dot = {add_up(value), add_up(tangent)};
    sums.mask = add_tangent(share, dot, sums.mask);
    UNROLL for (int d = 0; d < NDIM; ++d) {
        const Dual slope = times(mask, {tap.slope[d][0], tap.slope_tangent[d][0]});
        sums.coordinate[d] = add_tangent(slope, dot, sums.coordinate[d]);
    }
    if (weight.value != 0) {
        SIMD for (int v = 0; v < width; ++v) {
            sample.value[v] = fused(weight.value, x.value[v], sample.value[v]);
            sample.tangent[v] = fused(weight.value, x.tangent[v], sample.tangent[v]);
        }
        if (image.adds && moves) add_channels(image.grad + at, weight.value, grad.tangent, width);
    }
    if (weight.tangent != 0) {
        SIMD for (int v = 0; v < width; ++v) {
            sample.tangent[v] = fused(weight.tangent, x.value[v], sample.tangent[v]);
        }
        if (image.adds) add_channels(image.grad + at, weight.tangent, grad.value, width);
    }
}

// What one sample contributes in `width` <= VEC channels: returns it, adds to `sums`, and to the gradients by the
// image. `grad` is the gradient by the sample, which may have tangents (`moves`).
DEVICE DualChannels dual_sample(const Samples& s, const acc_t velocity[][TILE], Dual mask, const DualImage& image,
                                int width, const DualChannels& grad, bool moves, DualSums& sums) {
    DualChannels sample = {};
    UNROLL_ROWS for (int r = 0; r < ROWS; ++r) {
        UNROLL for (int t = 0; t < TAPS; ++t) {
            DualTaps tap;
            make_taps(s, velocity, r * TAPS + t, tap);
            if (!tap.inside[0]) continue;
            if (PACKS || width == VEC) {  // a constant, for straight SIMD code
                add_tap(tap, mask, image, VEC, grad, moves, sample, sums);
            } else {
                add_tap(tap, mask, image, width, grad, moves, sample, sums);
            }
        }
    }
    return sample;
}
