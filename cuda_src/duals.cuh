// Gradients of gradients. Those of one sample are, with its image x, mask m, coordinates p and the gradient g by it,
//
//     by x:  m w(p) g      by p:  m w'(p) g x      by m:  w(p) g x      and the sample itself, "by g":  m w(p) x
//
// summed over taps: all are derivatives of one number, F = m w(p) g x. So, where they are multiplied with a direction in
// which x, p, m and g change and added up, the gradients of that are the derivatives of these formulas in this direction.
// They are evaluated in dual numbers a + e a' with e e = 0, whose tangents a' are what is wanted.

struct Dual {
    acc_t value, tangent;
};

DEVICE Dual times(Dual a, Dual b) { return {a.value * b.value, fused(a.value, b.tangent, a.tangent * b.value)}; }

// sum + (weight * x)', without what meets a 0.
DEVICE acc_t add_tangent(Dual weight, Dual x, acc_t sum) {
    return add_product(weight.value, x.tangent, add_product(weight.tangent, x.value, sum));
}

struct DualTap {
    index_t at;
    int inside;
    Dual weight, slope[NDIM];
};

// Tap k of a sample whose coordinates move with this velocity.
DEVICE DualTap dual_tap(const Samples& s, const acc_t* velocity, int k) {
    DualTap tap = {0, 1, {1, 0}};
    UNROLL for (int d = 0; d < NDIM; ++d) tap.slope[d] = {1, 0};
    UNROLL for (int d = NDIM - 1; d >= 0; --d) {
        const Axis& axis = s.axis[d];
        const int t = k % TAPS;
        k /= TAPS;
        const acc_t slope = pick(axis.slope, t, 0);
        const Dual weight = {pick(axis.weight, t, 0), slope * velocity[d]};
        const Dual steepness = {slope, pick(axis.curvature, t, 0) * velocity[d]};
        tap.at += pick(axis.at, t, 0);
        tap.inside &= pick(axis.inside, t, 0);
        tap.weight = times(tap.weight, weight);
        UNROLL for (int e = 0; e < NDIM; ++e) tap.slope[e] = times(tap.slope[e], e == d ? steepness : weight);
    }
    return tap;
}

struct DualChannels {
    acc_t value[VEC], tangent[VEC];
};

// Null: 0.
DEVICE void load_some(const scalar_t* from, index_t at, int width, acc_t* to) {
    if (from) {
        load_channels(from + at, width, to);
    } else {
        UNROLL for (int v = 0; v < VEC; ++v) to[v] = 0;
    }
}
DEVICE DualChannels load_dual(const scalar_t* value, const scalar_t* tangent, index_t at, int width) {
    DualChannels found;
    load_some(value, at, width, found.value);
    load_some(tangent, at, width, found.tangent);
    return found;
}

// The tangents of the gradients by mask and coordinates, summed over channels.
struct DualSums {
    acc_t mask, coordinate[NDIM];
};

// A sum over channels by halves, because compilers add up the lanes of a SIMD reduction one after the other.
DEVICE constexpr int power_from(int size) { return size > 1 ? 2 * power_from((size + 1) / 2) : 1; }
constexpr int SPAN = power_from(VEC);
DEVICE acc_t add_up(acc_t* x) {
    UNROLL for (int half = SPAN / 2; half > 0; half /= 2) { SIMD for (int i = 0; i < half; ++i) x[i] += x[i + half]; }
    return x[0];
}

// An image at the element `at`: its first channel that is sampled. The gradients by it have tangents, too; null: not needed.
struct DualImage {
    const scalar_t *value, *tangent;
    acc_t* grad;
    index_t at;
};

// What one tap contributes; see `dual_sample`.
DEVICE void add_tap(const DualTap& tap, Dual mask, const DualImage& image, int width, const DualChannels& grad,
                    bool moves, DualChannels& sample, DualSums& sums) {
    const DualChannels x = load_dual(image.value, image.tangent, image.at + tap.at, width);
    const Dual weight = times(mask, tap.weight);
    acc_t value[SPAN] = {}, tangent[SPAN] = {};
    SIMD for (int v = 0; v < width; ++v) {
        value[v] = grad.value[v] * x.value[v];
        tangent[v] = grad.value[v] * x.tangent[v];
    }
    if (moves) {
        SIMD for (int v = 0; v < width; ++v) tangent[v] = fused(grad.tangent[v], x.value[v], tangent[v]);
    }
    const Dual dot = {add_up(value), add_up(tangent)};
    sums.mask = add_tangent(tap.weight, dot, sums.mask);
    UNROLL for (int d = 0; d < NDIM; ++d) {
        sums.coordinate[d] = add_tangent(times(mask, tap.slope[d]), dot, sums.coordinate[d]);
    }
    acc_t* by_image = image.grad ? image.grad + image.at + tap.at : nullptr;
    if (weight.value != 0) {
        SIMD for (int v = 0; v < width; ++v) {
            sample.value[v] = fused(weight.value, x.value[v], sample.value[v]);
            sample.tangent[v] = fused(weight.value, x.tangent[v], sample.tangent[v]);
        }
        if (by_image && moves) add_channels(by_image, weight.value, grad.tangent, width);
    }
    if (weight.tangent != 0) {
        SIMD for (int v = 0; v < width; ++v) {
            sample.tangent[v] = fused(weight.tangent, x.value[v], sample.tangent[v]);
        }
        if (by_image) add_channels(by_image, weight.tangent, grad.value, width);
    }
}

// What one sample contributes in `width` <= VEC channels: returns it, adds to `sums`, and to the gradients by the image.
// `grad` is the gradient by the sample, which may have tangents (`moves`).
DEVICE DualChannels dual_sample(const Samples& s, const acc_t* velocity, Dual mask, const DualImage& image, int width,
                                const DualChannels& grad, bool moves, DualSums& sums) {
    DualChannels sample = {};
    UNROLL_ROWS for (int r = 0; r < ROWS; ++r) {
        UNROLL for (int t = 0; t < TAPS; ++t) {
            const DualTap tap = dual_tap(s, velocity, r * TAPS + t);
            if (!tap.inside) continue;
            if (LANES > 1 || width == VEC) {  // a constant, for straight SIMD code
                add_tap(tap, mask, image, VEC, grad, moves, sample, sums);
            } else {
                add_tap(tap, mask, image, width, grad, moves, sample, sums);
            }
        }
    }
    return sample;
}
