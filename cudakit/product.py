"""Matrix products on a GPU, described by strides, and how cuBLAS wants to hear of them."""

from typing import NamedTuple


class Product(NamedTuple):
    """Matrix products ``c[m, n] (+)= sum over k of a[m, k] b[k, n]``, `batch` of them.

    `a`, `b` and `c` are the operands' strides (row, column, batch), in elements; one of the first two is 1. `out` is
    the dtype of c.
    """

    dtype: str
    out: str
    sizes: tuple[int, int, int]  # m, n, k
    batch: int
    a: tuple[int, int, int]
    b: tuple[int, int, int]
    c: tuple[int, int, int]
    add: bool
    tf32: bool = False


class Operand(NamedTuple):
    """An operand as cuBLAS, which thinks in columns, wants to hear of it."""

    transposed: int  # cublasOperation_t
    leading: int
    batch: int
    swapped: bool = False


def column_major(product: Product) -> tuple[Operand, Operand, Operand]:
    """Return cuBLAS's operands; where c has its rows in memory, they are those of the transposed product."""
    m, n, k = product.sizes
    a, b, c = product.a, product.b, product.c
    if c[0] == 1 and c[1] >= m:
        return _operand(a, m, k), _operand(b, k, n), Operand(0, c[1], c[2])
    first, second = (b[1], b[0], b[2]), (a[1], a[0], a[2])
    return _operand(first, n, k), _operand(second, k, m), Operand(0, c[0], c[2], swapped=True)


def is_operand(strides: tuple[int, int, int], rows: int, columns: int) -> bool:
    """Whether cuBLAS can read matrices with these strides: runs of neighbours that lie apart, forwards in memory."""
    row, column, batch = strides
    by_column = row == 1 and (column >= rows or columns == 1)
    by_row = column == 1 and (row >= columns or rows == 1)
    return batch >= 0 and (by_column or by_row or rows == columns == 1)


def _operand(strides: tuple[int, int, int], rows: int, columns: int) -> Operand:
    row, column, batch = strides
    if row == 1 and (column >= rows or columns == 1):
        return Operand(0, max(column, rows), batch)
    return Operand(1, max(row, columns), batch)
