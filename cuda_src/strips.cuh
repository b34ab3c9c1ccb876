// Users' weights, [output][channel][tap], and packed ones (pieces.cuh) turned into one another, STRIP outputs by as
// many neighbours of each at a time: both sides are read and written by the line of the cache, and turned in registers.

constexpr int STRIP = LINE < NR ? LINE : NR;
constexpr int LOOKED_UP = 32;  // taps at a time

// Weight k < count of output i < outputs is the user's number user + i * row + k, and the packed one at[k] + i *
// step[k].
struct Strip {
    index_t user, row;
    int outputs, count;
    index_t at[STRIP], step[STRIP];
};

// Where the packed weight of a tap is for the first channel and output of a strip, and how far apart outputs are.
struct TapPlace {
    index_t at, step;
};

// Pieces are panels, or where they are `by_output`, [output][padded depth].
template <bool by_output> DEVICE void look_up_taps(const Geometry& g, const Cut& cut, const Chunk& chunk, index_t group,
                                                   index_t o, index_t first, index_t count, TapPlace* places) {
    const index_t round = taps_at_once(chunk);
    for (index_t i = 0; i < count; ++i) {
        const index_t tap = first + i, begin = tap / round * round;
        for_pieces(g, cut, chunk, begin, [&](const Piece& piece) {
            if (piece.group != group) return;
            const index_t before = (tap - begin) * (piece.end - piece.begin), deep = padded_depth(piece);
            const index_t panel = o / NR * NR * piece.depth + before * NR + o % NR;
            places[i] = {piece.packed + (by_output ? o * deep + before : panel), by_output ? deep : 1};
        });
    }
}

// Calls f(strip) for `channels` channels from the one after `before` others of the chunk's; `s` is at the first.
template <bool by_output, typename F>
DEVICE void for_neighbours(Strip& s, const TapPlace* places, index_t taps, index_t before, index_t channels, F f) {
    index_t t = 0;
    for (index_t left = channels * taps; left > 0; left -= s.count, s.user += s.count) {
        s.count = (int)smaller(index_t(STRIP), left);
        for (int k = 0; k < s.count; ++k) {
            s.at[k] = places[t].at + before * (by_output ? 1 : NR);
            s.step[k] = places[t].step;
            if (++t == taps) t = 0, ++before;
        }
        f(s);
    }
}

// Calls f(strip) for the strips of an item, one of the blocks of PANEL that the outputs of all groups are counted in.
// Few outputs at a time stay in cache where users want them; where not all taps are looked up, no channels are
// neighbours.
template <bool by_output, typename F> DEVICE void for_strips(const Geometry& g, const Cut& cut, index_t item, F f) {
    const index_t blocks = padded_outputs(cut) / PANEL, group = item / blocks, first = item % blocks * PANEL;
    const index_t outputs = group_outputs(cut);
    const index_t last = first + (smaller(index_t(PANEL), outputs - first) + NR - 1) / NR * NR;
    const index_t all = (index_t)g.taps, per_group = (index_t)(g.channels / cut.groups);
    Strip s;
    s.row = per_group * all;
    TapPlace places[LOOKED_UP];
    for (index_t number = 0; number < (index_t)g.groups * chunks_in_group(g, cut); ++number) {
        const Chunk chunk = chunk_of(g, cut, number);
        const index_t begin = larger(chunk.begin, group * per_group), end = smaller(chunk.end, (group + 1) * per_group);
        for (index_t o = first; begin < end && o < last; o += STRIP) {
            s.outputs = (int)larger(index_t(0), smaller(index_t(STRIP), outputs - o));
            for (index_t tap = 0; tap < all; tap += LOOKED_UP) {
                const index_t taps = smaller(index_t(LOOKED_UP), all - tap), run = taps == all ? end - begin : 1;
                look_up_taps<by_output>(g, cut, chunk, group, o, tap, taps, places);
                for (index_t c = begin; c < end; c += run) {
                    s.user = (group * outputs + o) * s.row + c % per_group * all + tap;
                    for_neighbours<by_output>(s, places, taps, c - begin, run, f);
                }
            }
        }
    }
}
