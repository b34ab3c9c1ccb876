// copy: to[a, i, j] = from[a, i, j] for any strides and from one floating type to another. With the strides of the last
// two dimensions exchanged it is a transpose.
//
// A GPU's threads follow j, or VEC neighbours i and then j: of a transpose they write whole sectors of memory, and what
// they read of others the next ones find in the cache.
#include "core.cuh"

struct CopyParams {
    const scalar_t* from;
    coord_t* to;
    long long items;  // size[0] * size[1] / TILE rows, a multiple of VEC, * size[2] / TILE columns, each rounded up
    long long size[3];
    long long from_stride[3];
    long long to_stride[3];
};

// tile[i][j] = from[i * si + j * sj], or tile[j][i] where it is `turned`: the last index is that along which is read.
template <typename T>
DEVICE void read_tile(const T* from, index_t si, index_t sj, int rows, int columns, bool turned, acc_t* tile) {
    const int lines = turned ? columns : rows, length = turned ? rows : columns;
    for (int k = 0; k < lines; ++k) {
        load_line<TILE>(from + k * (turned ? sj : si), turned ? si : sj, length, tile + k * TILE);
    }
}
// And back.
template <typename T>
DEVICE void write_tile(T* to, index_t si, index_t sj, int rows, int columns, bool turned, const acc_t* tile) {
    const int lines = turned ? columns : rows, length = turned ? rows : columns;
    for (int k = 0; k < lines; ++k) {
        store_line<TILE>(tile + k * TILE, to + k * (turned ? sj : si), turned ? si : sj, length);
    }
}

KERNEL(copy, CopyParams) {
    constexpr int ROWS = VEC * TILE;
    const index_t tiles_i = ((index_t)p.size[1] + ROWS - 1) / ROWS, tiles_j = ((index_t)p.size[2] + TILE - 1) / TILE;
    FOR_EACH(item, p.items) {
        index_t a = item;
        const index_t row = take_digit(a, VEC), first_j = take_digit(a, tiles_j) * TILE;
        const index_t first_i = (take_digit(a, tiles_i) * VEC + row) * TILE;
        const int rows = (int)smaller(index_t(TILE), (index_t)p.size[1] - first_i);
        const int columns = (int)smaller(index_t(TILE), (index_t)p.size[2] - first_j);
        const index_t fi = (index_t)p.from_stride[1], fj = (index_t)p.from_stride[2];
        const index_t ti = (index_t)p.to_stride[1], tj = (index_t)p.to_stride[2];
        const scalar_t* from = p.from + a * (index_t)p.from_stride[0] + first_i * fi + first_j * fj;
        coord_t* to = p.to + a * (index_t)p.to_stride[0] + first_i * ti + first_j * tj;
        acc_t tile[TILE * TILE], other[TILE * TILE];
        // Read and write along memory, whichever dimension that is; along the longer one where a transpose would move
        // little.
        const bool few = smaller(rows, columns) < TILE / 2;
        const bool longer = rows > columns;
        const bool read_turned = TILE > 1 && (few ? longer : fi == 1 && fj != 1);
        const bool write_turned = TILE > 1 && (few ? longer : ti == 1 && tj != 1);
        read_tile(from, fi, fj, rows, columns, read_turned, tile);
        const acc_t* read = read_turned != write_turned ? transpose<TILE, TILE>(tile, other) : tile;
        write_tile(to, ti, tj, rows, columns, write_turned, read);
    }
}
