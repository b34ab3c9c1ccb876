// The anchors of sums that are the same in any order; see `Sums` in core.cuh.
#include "core.cuh"

struct RoundingParams {
    const scalar_t* from;
    unsigned* exponents;  // of factors that numbers are made of
    double* anchors;
    long long items;
    long long count;  // of numbers
    long long size[3];
    long long from_stride[3];
    long long products[3];  // a bit for each factor; 0: none
    long long power;        // numbers are below 2^power times one of the products
    long long log2_terms;   // an element is the sum of at most 2^log2_terms
};

// exponents[0] = the largest exponent among the finite numbers of an array, each of which is below 2^(exponent - 1022).
// One item = LANES numbers.
KERNEL(largest_exponent, RoundingParams) {
    unsigned largest = 0;
    FOR_EACH(item, p.items) {
        index_t a = item * LANES + LANE;
        if (a >= (index_t)p.count) continue;
        const index_t k = take_digit(a, (index_t)p.size[2]), j = take_digit(a, (index_t)p.size[1]);
        const index_t at =
            a * (index_t)p.from_stride[0] + j * (index_t)p.from_stride[1] + k * (index_t)p.from_stride[2];
        const unsigned exponent = exponent_of(widen(p.from[at]));
        if (exponent < 2047 && exponent > largest) largest = exponent;
    }
    raise_to(p.exponents, largest);
}

// All sums are below 2^e. Beside 3/2 2^e, numbers below 2^e are rounded to multiples of 2^(e - 52), and sums of what
// that leaves of each, at most half of one, are below 2^(e - 52 + log2_terms).
KERNEL(make_anchors, RoundingParams) {
    FOR_EACH(part, p.items) {
        int largest = -1100;
        for (int i = 0; i < 3; ++i) {
            int exponent = 0;
            for (int k = 0; p.products[i] >> k; ++k) {
                if (p.products[i] >> k & 1) exponent += (int)p.exponents[k] - 1022;
            }
            if (p.products[i] && exponent > largest) largest = exponent;
        }
        const int e = largest + (int)(p.power + p.log2_terms) + 1 + (int)part * ((int)p.log2_terms - 52);
        p.anchors[part] = power_of_two(e < -1000 ? -1000 : e > 1022 ? 1022 : e) * 1.5;
    }
}
