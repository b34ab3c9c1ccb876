"""What tables are made of."""

NOTHING = "–"
Table = tuple[str, list[str], list[list[str]]]  # heading, titles of the columns, cells


def number(value: float) -> str:
    """Write three significant digits, all of those before the point."""
    return f"{value:.0f}" if value >= 99.95 else f"{value:#.3g}"


def markdown_lines(head: list[str], rows: list[list[str]]) -> list[str]:
    """Return the lines of a table in Markdown."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---", *["---:"] * (len(head) - 1)], *rows)]


def in_words(threads: int) -> str:
    """Return a number of threads as tables name it."""
    return f"{threads} thread{'s' * (threads > 1)}"
