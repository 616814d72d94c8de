"""Tables as text."""

from collections.abc import Sequence


def aligned(cells: Sequence[Sequence[str]], markdown: bool = False, numbers: bool = True) -> str:
    """Rows of cells, the first one the header: all columns but the first to the right, if they are numbers."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for first, *others in cells:
        lines.append([first.ljust(widths[0]), *map(str.rjust if numbers else str.ljust, others, widths[1:])])
    if not markdown:
        return "\n".join("  ".join(line).rstrip() for line in lines)
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], rule, *lines[1:]])
