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

#if defined(__AVX512F__) || SPLIT  // whose panels have 32 columns
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

// to[m][n] (+)= sum over k < depth of a[m][k] b[k][n], for `rows` <= MR and `width` vectors of columns; those of `b`
// and `to` are neighbours. Meanwhile asks for later[0], later[step], ...: the panel of `b` after this one, which the
// hardware does not foresee. Not for GCC to clone: where it knows that numbers of `a` are neighbours, it loads vectors
// of them for the first alone.
template <bool ADD, int width, int rows = MR>
static __attribute__((noinline, noclone)) void multiply_block(index_t depth, Matrix a, const acc_t* b, index_t b_row,
                                                              acc_t* to, index_t to_row, const acc_t* later,
                                                              index_t step) {
    vector_t sum[rows][width];
    UNROLL for (int m = 0; m < rows; ++m) {
        UNROLL for (int v = 0; v < width; ++v) {
            sum[m][v] = ADD ? *(const loose_vector_t*)(to + m * to_row + v * LENGTH) : vector_t{};
        }
    }
    // A pointer for every three rows: instructions add once or twice a register, and not all rows' distances fit in
    // some.
    const long long row = a.row;
    const acc_t* left[(rows + 2) / 3];
    UNROLL for (int m = 0; m < (rows + 2) / 3; ++m) left[m] = a.at + 3 * m * row;
    for (index_t k = 0; k < depth; ++k) {
        PREFETCH_FAR(later + k * (long long)step);
        vector_t right[width];
        UNROLL for (int v = 0; v < width; ++v) right[v] = *(const loose_vector_t*)(b + v * LENGTH);
        UNROLL for (int m = 0; m < rows; ++m) {
            const vector_t one = spread(left[m / 3][m % 3 * row]);
            UNROLL for (int v = 0; v < width; ++v) sum[m][v] = multiply_add(one, right[v], sum[m][v]);
        }
        b += b_row;
        UNROLL for (int m = 0; m < (rows + 2) / 3; ++m) left[m] += a.column;
    }
    UNROLL for (int m = 0; m < rows; ++m) {
        UNROLL for (int v = 0; v < width; ++v) * (loose_vector_t*)(to + m * to_row + v * LENGTH) = sum[m][v];
    }
}

// The last rows, fewer than MR, summed as the others are. Some are worked out again, or `a` must hold something for
// rows that there are not.
template <bool ADD, int width, int height = MR / 3>
DEVICE void multiply_last(index_t first, index_t rows, index_t depth, Matrix a, const acc_t* b, index_t b_row,
                          acc_t* to, index_t to_row, const acc_t* later, index_t step) {
    if constexpr (height < MR) {
        if (rows - first > height) {
            multiply_last<ADD, width, height + MR / 3>(first, rows, depth, a, b, b_row, to, to_row, later, step);
            return;
        }
    }
    constexpr int columns = width * LENGTH;
    const index_t begin = larger(index_t(0), rows - height);
    const Matrix left = {a.at + begin * a.row, a.row, a.column};
    if (rows - first == height) {
        multiply_block<ADD, width, height>(depth, left, b, b_row, to + first * to_row, to_row, later, step);
        return;
    }
    acc_t edge[height * columns] = {};
    for (index_t i = first; ADD && i < rows; ++i) {
        for (int j = 0; j < columns; ++j) edge[(i - begin) * columns + j] = to[i * to_row + j];
    }
    multiply_block<ADD, width, height>(depth, left, b, b_row, edge, columns, later, step);
    for (index_t i = first; i < rows; ++i) {
        for (int j = 0; j < columns; ++j) to[i * to_row + j] = edge[(i - begin) * columns + j];
    }
}

// The same for any number of rows.
template <bool ADD, int width = NR / LENGTH> DEVICE void multiply_rows(index_t rows, index_t depth, Matrix a,
                                                                       const acc_t* b, index_t b_row, acc_t* to,
                                                                       index_t to_row) {
    constexpr int columns = width * LENGTH;
    const bool packed = b_row == columns;  // panel after panel, else neighbours
    const index_t blocks = (rows + MR - 1) / MR, step = packed ? (columns + blocks - 1) / blocks : b_row;
    for (index_t m = 0; m < rows; m += MR) {
        const acc_t* later = b + (packed ? (columns + m / MR * step) * depth : columns + m / MR % width * LENGTH);
        if (m + MR <= rows) {
            const Matrix left = {a.at + m * a.row, a.row, a.column};
            multiply_block<ADD, width>(depth, left, b, b_row, to + m * to_row, to_row, later, step);
        } else {
            multiply_last<ADD, width>(m, rows, depth, a, b, b_row, to, to_row, later, step);
        }
    }
}
