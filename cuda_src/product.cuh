// Matrix products of the host's convolutions, on tiles that lie in cache: the same instructions that a BLAS would run,
// without its threads, its copies of operands, and its lack of half precision. A GPU has cuBLAS.
//
// The registers hold a block of MR rows and NR columns of the result; per step of the sum, NR / LENGTH vectors of the
// right operand are loaded, and each number of the left one is spread over a vector.

// Where numbers are split for units that multiply bfloat16 ones (split.cuh), this is for what can't be split, and for
// compilers that don't know the units.
#if SPLIT && !defined(EMULATE_UNITS)
#if (TILES && !defined(__AMX_BF16__)) || (!TILES && !defined(__AVX512BF16__))
#undef SPLIT
#define SPLIT 0
#endif
#endif

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64, MR = 12;
#elif defined(__AVX__)
constexpr int VECTOR_BYTES = 32, MR = 6;
#else
constexpr int VECTOR_BYTES = 16, MR = 6;
#endif
constexpr int LENGTH = VECTOR_BYTES / (int)sizeof(acc_t), NR = 2 * LENGTH;

typedef acc_t vector_t __attribute__((vector_size(VECTOR_BYTES)));
typedef acc_t loose_vector_t __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(acc_t)), may_alias));

DEVICE vector_t spread(acc_t value) {
    vector_t all;
    for (int i = 0; i < LENGTH; ++i) all[i] = value;
    return all;
}

// One multiply-add in every lane: GCC knows the loop for one instruction, Clang would take the lanes one by one.
DEVICE vector_t multiply_add(vector_t a, vector_t b, vector_t c) {
#if defined(__clang__) && FUSES
    return __builtin_elementwise_fma(a, b, c);
#else
    vector_t sum;
    for (int i = 0; i < LENGTH; ++i) sum[i] = fused(a[i], b[i], c[i]);
    return sum;
#endif
}

// A row-major matrix, or the part of it that begins at `at`.
struct Matrix {
    acc_t* at;
    index_t row, column;  // strides
};

// to[m][n] (+)= sum over k < depth of a[m][k] b[k][n], for MR rows and `width` vectors of columns; those of `b` and `to`
// are neighbours. Meanwhile asks for later[0], later[step], ...: the panel of `b` after this one, which the hardware does
// not foresee. Not for GCC to clone: where it knows that numbers of `a` are neighbours, it loads vectors of them for the
// first alone.
template <bool ADD, int width>
static __attribute__((noinline, noclone)) void multiply_block(index_t depth, Matrix a, const acc_t* b, index_t b_row,
                                                              acc_t* to, index_t to_row, const acc_t* later,
                                                              index_t step) {
    vector_t sum[MR][width];
    UNROLL for (int m = 0; m < MR; ++m) {
        UNROLL for (int v = 0; v < width; ++v) {
            sum[m][v] = ADD ? *(const loose_vector_t*)(to + m * to_row + v * LENGTH) : vector_t{};
        }
    }
    // A pointer for every three rows: instructions add once or twice a register, and not all rows' distances fit in some.
    const long long row = a.row;
    const acc_t* left[MR / 3];
    UNROLL for (int m = 0; m < MR / 3; ++m) left[m] = a.at + 3 * m * row;
    for (index_t k = 0; k < depth; ++k) {
        PREFETCH_FAR(later + k * (long long)step);
        vector_t right[width];
        UNROLL for (int v = 0; v < width; ++v) right[v] = *(const loose_vector_t*)(b + v * LENGTH);
        UNROLL for (int m = 0; m < MR; ++m) {
            const vector_t one = spread(left[m / 3][m % 3 * row]);
            UNROLL for (int v = 0; v < width; ++v) sum[m][v] = multiply_add(one, right[v], sum[m][v]);
        }
        b += b_row;
        UNROLL for (int m = 0; m < MR / 3; ++m) left[m] += a.column;
    }
    UNROLL for (int m = 0; m < MR; ++m) {
        UNROLL for (int v = 0; v < width; ++v) * (loose_vector_t*)(to + m * to_row + v * LENGTH) = sum[m][v];
    }
}

// The same for any number of rows. Where they are fewer than MR, `a` must hold something for the others.
template <bool ADD, int width = NR / LENGTH> DEVICE void multiply_rows(index_t rows, index_t depth, Matrix a,
                                                                       const acc_t* b, index_t b_row, acc_t* to,
                                                                       index_t to_row) {
    constexpr int columns = width * LENGTH;
    const bool packed = b_row == columns;  // panel after panel, else neighbours
    const index_t blocks = (rows + MR - 1) / MR, step = packed ? (columns + blocks - 1) / blocks : b_row;
    for (index_t m = 0; m < rows; m += MR) {
        const acc_t* later = b + (packed ? (columns + m / MR * step) * depth : columns + m / MR % width * LENGTH);
        const index_t begin = rows < MR ? 0 : smaller(m, rows - MR);  // some are worked out again
        const Matrix left = {a.at + begin * a.row, a.row, a.column};
        if (m + MR <= rows) {
            multiply_block<ADD, width>(depth, left, b, b_row, to + m * to_row, to_row, later, step);
            continue;
        }
        acc_t edge[MR * columns];
        multiply_block<false, width>(depth, left, b, b_row, edge, columns, later, step);
        for (index_t i = m; i < rows; ++i) {
            const acc_t* sum = edge + (i - begin) * columns;
            acc_t* line = to + i * to_row;
            for (int j = 0; j < columns; ++j) line[j] = ADD ? line[j] + sum[j] : sum[j];
        }
    }
}
