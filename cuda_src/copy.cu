// copy: to[a, i, j] = from[a, i, j] for any strides and from one floating type to another. With the strides of the last
// two dimensions exchanged it is a transpose.
#include "core.cuh"

struct CopyParams {
    const scalar_t* from;
    coord_t* to;
    long long items;  // size[0] * size[1] / TILE rows * size[2] / TILE columns, each rounded up
    long long size[3];
    long long from_stride[3];
    long long to_stride[3];
};

KERNEL(copy, CopyParams) {
    const index_t tiles_i = ((index_t)p.size[1] + TILE - 1) / TILE, tiles_j = ((index_t)p.size[2] + TILE - 1) / TILE;
    FOR_EACH(item, p.items) {
        const index_t rest = item / tiles_j, first_j = (item - rest * tiles_j) * TILE;
        const index_t a = rest / tiles_i, first_i = (rest - a * tiles_i) * TILE;
        const int count_i = (int)smaller(index_t(TILE), (index_t)p.size[1] - first_i);
        const int count_j = (int)smaller(index_t(TILE), (index_t)p.size[2] - first_j);
        const index_t fi = (index_t)p.from_stride[1], fj = (index_t)p.from_stride[2];
        const index_t ti = (index_t)p.to_stride[1], tj = (index_t)p.to_stride[2];
        const scalar_t* from = p.from + a * (index_t)p.from_stride[0] + first_i * fi + first_j * fj;
        coord_t* to = p.to + a * (index_t)p.to_stride[0] + first_i * ti + first_j * tj;
        for (int i = 0; i < count_i; ++i) {
            for (int j = 0; j < count_j; ++j) narrow(widen(from[i * fi + j * fj]), to[i * ti + j * tj]);
        }
    }
}
