"""Reading the documentation: its blocks, commands, tables and tree."""

import re
import shlex
from itertools import product
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
DOCUMENTS = [README, *sorted((ROOT / "docs").glob("*.md"))]


def blocks(document):
    """(language, content) of each fenced block, in order."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", document.read_text(), flags=re.MULTILINE | re.DOTALL)


def command_lines(text):
    """The lines of a block that start with ppl-tvae, as arguments."""
    lines = [line.strip() for line in text.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("ppl-tvae ")]


def commands(document):
    """Those of every fenced and every indented block."""
    fenced = "".join(content for _, content in blocks(document))
    indented = "\n".join(line for line in document.read_text().splitlines() if line.startswith("    "))
    return command_lines(fenced) + command_lines(indented)


def section(document, heading):
    """What stands under a second-level heading."""
    _, found, text = document.read_text().partition(f"\n## {heading}\n")
    assert found, f"{document.name} has no section {heading}"
    return text.split("\n## ")[0]


def table(document, heading):
    """Rows of the one table under a heading, each as {column: cell}."""
    lines = [line for line in section(document, heading).splitlines() if re.match(r"\|[ -]", line)]
    header, _, *rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [dict(zip(header, row, strict=True)) for row in rows]


def tree(document):
    """The paths in the fenced tree of a document; `{a,b}` stands for two folders."""
    (content,) = [content for language, content in blocks(document) if language == "text"]
    paths, folders = set(), []
    for line in content.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        folders = [*folders[:depth], line.split()[0].rstrip("/")]
        paths |= {"/".join(parts) for parts in product(*map(_alternatives, folders))}
    return paths


def _alternatives(name):
    return name.strip("{}").split(",") if name.startswith("{") else [name]
