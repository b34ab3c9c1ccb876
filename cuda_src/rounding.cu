// The anchors of sums that are the same in any order; see `Sums` in core.cuh.
#include "core.cuh"

struct RoundingParams {
    const scalar_t* from;
    unsigned* exponents;  // of the factors that a number is made of
    double* anchors;
    long long items;
    long long size[3];
    long long from_stride[3];
    long long factors;
    long long terms;  // an element is the sum of at most 2 to the power of so many
};

// exponents[0] = the largest exponent among the finite numbers of an array, each of which is below 2^(exponent - 1022).
KERNEL(largest_exponent, RoundingParams) {
    unsigned largest = 0;
    FOR_EACH(item, p.items) {
        index_t a = item;
        const index_t k = take_digit(a, (index_t)p.size[2]), j = take_digit(a, (index_t)p.size[1]);
        const index_t at =
            a * (index_t)p.from_stride[0] + j * (index_t)p.from_stride[1] + k * (index_t)p.from_stride[2];
        const unsigned exponent = exponent_of(widen(p.from[at]));
        if (exponent < 2047 && exponent > largest) largest = exponent;
    }
    if (largest > 0) raise_to(p.exponents, largest);
}

// All sums of products of the factors are below 2^e. Beside 3/2 2^e, numbers below 2^e are rounded to multiples of
// 2^(e - 52), and sums of what that leaves of each, at most half of one, are below 2^(e - 52 + terms).
KERNEL(make_anchors, RoundingParams) {
    FOR_EACH(part, p.items) {
        int e = (int)p.terms + 1;
        for (int k = 0; k < (int)p.factors; ++k) e += (int)p.exponents[k] - 1022;
        e += (int)part * ((int)p.terms - 52);
        p.anchors[part] = power_of_two(e < -1000 ? -1000 : e > 1022 ? 1022 : e) * 1.5;
    }
}
