"""Divisions of sizes that round up."""


def ceil_div(number: int, divisor: int) -> int:
    """Return the quotient, rounded up."""
    return -(-number // divisor)


def round_up(number: int, step: int) -> int:
    """Return the least multiple of `step` that is not less."""
    return ceil_div(number, step) * step
