// What the host's deformable convolution and the packing of its weights share.
#include "deform.cuh"
#include "product.cuh"
#include "pieces.cuh"
#if SPLIT
#include "split.cuh"
#endif

struct DeformConvParams {
    const image_t* input;  // channels next to each other
    const coord_t* offset;
    const coord_t* mask;     // null: none
    const scalar_t* weight;  // (out_channels, channels / groups, taps), contiguous
    const scalar_t* bias;    // null: none
    acc_t* packed;           // the weights in pieces; not used where they are as given
    unsigned* split;         // the same as tiles, if SPLIT: for each panel whether it fits, then the pieces
    scalar_t* output;
    acc_t* scratch;
    long long items;             // batch * tiles * parts
    long long tiles;             // of an image
    long long parts;             // of the outputs, 1 unless weights are as given
    long long group_stride;      // from an offset group's channels in an image to those of the next
    long long output_stride[3];  // batch, channel, pixel
    Cut cut;
    Geometry geometry;
};

#if SPLIT
DEVICE index_t panels_of(const Cut& cut) { return (index_t)cut.groups * padded_outputs(cut) / PANEL; }

// Where the tiles of a piece's panel are: numbers take DATA_PARTS halves of a word.
DEVICE unsigned* split_at(const DeformConvParams& p, const Piece& piece, index_t o) {
    const index_t before = (panels_of(p.cut) + LINE - 1) / LINE * LINE;
    return p.split + before + (piece.packed + o * padded_depth(piece)) / 2 * DATA_PARTS;
}
#endif
