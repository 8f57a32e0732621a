"""Tables as the commands print them and README.md holds them."""

from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table that is aligned for reading as it is: text left, figures right.

    header: one title a column
    rows: each as long as `header`; the first column is text, the others are figures
    """
    columns = list(zip(header, *rows, strict=True))
    widths = [max(3, *(len(cell) for cell in column)) for column in columns]

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        aligned = [first[0].ljust(first[1])] + [cell.rjust(width) for cell, width in others]
        return "| " + " | ".join(aligned) + " |"

    first, *others = widths
    rule = "|" + "|".join([":" + "-" * (first + 1)] + ["-" * (w + 1) + ":" for w in others]) + "|"
    return "\n".join([line(header), rule, *(line(row) for row in rows)])
