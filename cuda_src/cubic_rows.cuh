// Planar, for cubic samples: a row is a vector of its taps. Those of a sample are weighed and added up first, then the
// taps of their sum: what the loads of a tile of samples hold is brought into the order of a vector's lanes once for
// all rows. Numbers of 16 bits take widening, which is cheaper for a vector of samples.
#include "rows.cuh"

constexpr bool CUBIC_ROWS = TILE > 1 && NDIM > 1 && WINDOW == 1 && sizeof(scalar_t) >= 4 && MODE == CUBIC;

// As `sample_planes`.
template <bool CHECKED> DEVICE void sample_rows(const Samples& s, const scalar_t* const* plane, acc_t sum[][TILE]) {
    const Axis& x = s.axis[NDIM - 1];
    acc_t rows[GROUP][TILE][TAPS];
    for (int j = 0; j < TILE; ++j) {
        for (int first = 0; first < ROWS; first += ROWS_TOGETHER) {
            UNROLL for (int c = 0; c < GROUP; ++c) {
                SIMD for (int t = 0; t < TAPS; ++t) {
                    acc_t total = 0;
                    UNROLL for (int r = first; r < first + ROWS_TOGETHER; ++r) {
                        const acc_t tap = widen((plane[c] + x.at[0][j])[row_at(s, r, j) + t]);
                        total = fused(row_weight(s, r, j), CHECKED ? keep(tap, row_inside(s, r, j)) : tap, total);
                    }
                    rows[c][j][t] = accumulated(first, rows[c][j][t], total);
                }
            }
        }
        SCALAR_LOOP;
    }
    UNROLL for (int c = 0; c < GROUP; ++c) {
        SIMD for (int j = 0; j < TILE; ++j) {
            acc_t value = 0;
            UNROLL for (int t = 0; t < TAPS; ++t) {
                const acc_t tap = rows[c][j][t];
                value = fused(x.weight[t][j], CHECKED ? keep(tap, x.inside[t][j]) : tap, value);
            }
            sum[c][j] = value;
        }
    }
}

// As `plane_gradients`: of each row, the products with out_grad are added up over channels, and then over rows, by
// their weights and by each of their slopes.
template <bool CHECKED> DEVICE void row_gradients(const Samples& s, const scalar_t* const* plane,
                                                  const acc_t out_grad[][TILE], acc_t grad[][TILE]) {
    const Axis& x = s.axis[NDIM - 1];
    acc_t rows[NDIM][TILE][TAPS];
    for (int j = 0; j < TILE; ++j) {
        for (int first = 0; first < ROWS; first += ROWS_TOGETHER) {
            SIMD for (int t = 0; t < TAPS; ++t) {
                acc_t slope0 = 0, slope1 = 0, value = 0;
                UNROLL for (int r = first; r < first + ROWS_TOGETHER; ++r) {
                    acc_t dot = 0;
                    UNROLL for (int c = 0; c < GROUP; ++c) {
                        dot = fused(out_grad[c][j], widen((plane[c] + x.at[0][j])[row_at(s, r, j) + t]), dot);
                    }
                    if (CHECKED) dot = keep(dot, row_inside(s, r, j));
                    slope0 = fused(row_slope(s, 0, r, j), dot, slope0);
                    if (NDIM > 2) slope1 = fused(row_slope(s, MIDDLE, r, j), dot, slope1);
                    value = fused(row_weight(s, r, j), dot, value);
                }
                rows[0][j][t] = accumulated(first, rows[0][j][t], slope0);
                if (NDIM > 2) rows[MIDDLE][j][t] = accumulated(first, rows[MIDDLE][j][t], slope1);
                rows[NDIM - 1][j][t] = accumulated(first, rows[NDIM - 1][j][t], value);
            }
        }
        SCALAR_LOOP;
    }
    UNROLL for (int d = 0; d < NDIM; ++d) {
        SIMD for (int j = 0; j < TILE; ++j) {
            UNROLL for (int t = 0; t < TAPS; ++t) {
                const acc_t tap = CHECKED ? keep(rows[d][j][t], x.inside[t][j]) : rows[d][j][t];
                grad[d][j] = fused(d < NDIM - 1 ? x.weight[t][j] : x.slope[t][j], tap, grad[d][j]);
            }
        }
    }
}
