// The weights of the host's deformable convolution, put in the order that its products read them in (pieces.cuh).
#include "deform_conv.cuh"
#include "strips.cuh"

#if SPLIT
DEVICE void split_item(const DeformConvParams& p, index_t item) {
    const Geometry& g = p.geometry;
    const index_t blocks = padded_outputs(p.cut) / PANEL, o = item % blocks * PANEL;
    bool fits = true;
    for_pieces_of(g, p.cut, item / blocks, [&](const Piece& piece) {
        const acc_t* panel = p.packed + piece.packed + o * piece.depth;
        fits &= split_panel<DATA_PARTS>(piece.depth, NR, panel, NR, split_at(p, piece, o));
    });
    p.split[item] = fits;
}
#endif

constexpr int PAST_CACHE = 1 << 19;  // bytes of packed weights

DEVICE void pack_joined(const DeformConvParams& p, index_t item) {
    const index_t blocks = padded_outputs(p.cut) / PANEL, first = item % blocks * PANEL;
    for_pieces_of(p.geometry, p.cut, item / blocks, [&](const Piece& piece) {
        acc_t* to = p.packed + piece.packed + first * piece.depth;
        for (index_t i = 0; i < PANEL * piece.depth; ++i) to[i] = 0;
        for_weights(p.geometry, p.cut, piece, [&](index_t o, index_t k, index_t at) {
            if (o / PANEL == first / PANEL) p.packed[packed_at(p.geometry, p.cut, piece, o, k)] = widen(p.weight[at]);
        });
    });
}

// Many weights go past the caches, which other cores would have to give up their copies in; they are read panel by
// panel, the next one asked for in time. Where they are split, they are read again at once.
DEVICE void pack(const DeformConvParams& p, index_t item) {
    const long long numbers = padded_outputs(p.cut) * p.geometry.channels * p.geometry.taps;
    const bool past = !SPLIT && numbers * (int)sizeof(acc_t) >= PAST_CACHE && STRIP == LINE;
    for_strips<false>(p.geometry, p.cut, item, [&](const Strip& s) {
        alignas(64) acc_t tile[STRIP * STRIP] = {}, other[STRIP * STRIP];
        for (int i = 0; i < s.outputs; ++i) {
            load_line<STRIP>(p.weight + s.user + i * s.row, 1, s.count, tile + i * STRIP);
        }
        const acc_t* lines = transpose<STRIP, STRIP>(tile, other);
        for (int k = 0; k < s.count; ++k) {
            acc_t* to = p.packed + s.at[k];
            if (past) {
                store_bytes<STRIP*(int)sizeof(acc_t)>(lines + k * STRIP, to);
            } else {
                SIMD for (int i = 0; i < STRIP; ++i) to[i] = lines[k * STRIP + i];
            }
        }
    });
}

// One item = PANEL output channels of a group.
KERNEL(deform_conv_pack, DeformConvParams) {
    FOR_EACH(item, p.items) {
        if (JOINED) {
            pack_joined(p, item);
        } else {
            pack(p, item);
        }
#if SPLIT
        split_item(p, item);
#endif
    }
}
