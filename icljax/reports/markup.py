"""Tables as Markdown and as LaTeX; text that a user gave is escaped."""

import re
from collections.abc import Sequence

from icljax.reports.tables import Cell, Row, Table

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "_": r"\_",
    "%": r"\%",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    # After \\, a bracket would be its argument.
    "[": "{[}",
    "]": "{]}",
}


def markdown(table: Table) -> str:
    """The table under a heading, its notes below."""
    width = len(table.header)
    lines = [[markdown_text(h) for h in table.header], ["---", *["---:"] * (width - 1)]]
    for row in table.rows:
        cells = [_markdown_cell(cell) for cell in row.cells]
        if row.kind == "group":
            cells = [f"**{cells[0]}**", *[""] * (width - 1)]
        lines.append(cells)
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    notes = [markdown_text(note) for note in table.notes]
    return "\n\n".join([f"### {markdown_text(table.title)}", body, *notes])


def _markdown_cell(cell: Cell) -> str:
    detail = f" <sub>{markdown_text(cell.detail)}</sub>" if cell.detail else ""
    return markdown_text(cell.text) + detail


def markdown_text(text: str) -> str:
    """Text that means itself in Markdown, in a table too."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_|]|\](?=\())", r"\\\1", text)


def latex(tables: Sequence[Table], title: str, lines: Sequence[str]) -> str:
    """A whole document with every table, for pdflatex with booktabs."""
    items = "\n".join(f"\\item {latex_text(line)}" for line in lines)
    body = "\n\n".join(map(_latex_table, tables))
    return (
        "\\documentclass[a4paper,10pt]{article}\n"
        "\\usepackage[utf8]{inputenc}\n\\usepackage[T1]{fontenc}\n\\usepackage{booktabs}\n"
        "\\usepackage{graphicx}\n\\usepackage[margin=2cm]{geometry}\n"
        "\\begin{document}\n\n"
        f"\\section*{{{latex_text(title)}}}\n"
        f"\\begin{{itemize}}\n{items}\n\\end{{itemize}}\n\n{body}\n\n\\end{{document}}\n"
    )


def _latex_table(table: Table) -> str:
    width = len(table.header)
    header = " & ".join(map(latex_text, table.header))
    rows = "\n".join(_latex_row(row, width) for row in table.rows)
    notes = latex_text(" ".join(table.notes))
    # adjusted to the line only where it is wider.
    return (
        "\\begin{table}[htbp]\n\\centering\\footnotesize\n"
        f"\\caption{{{latex_text(table.title)}}}\\label{{tab:{table.key}}}\n"
        f"\\resizebox{{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}}{{!}}{{%\n"
        f"\\begin{{tabular}}{{l{'r' * (width - 1)}}}\n\\toprule\n{header} \\\\\n\\midrule\n"
        f"{rows}\n\\bottomrule\n\\end{{tabular}}}}\n\n"
        f"\\smallskip\\parbox{{\\linewidth}}{{\\scriptsize {notes}}}\n\\end{{table}}"
    )


def _latex_row(row: Row, width: int) -> str:
    cells = [_latex_cell(cell) for cell in row.cells]
    if row.kind == "group":
        return f"\\addlinespace\n\\multicolumn{{{width}}}{{l}}{{\\textit{{{cells[0]}}}}} \\\\"
    return f"{' & '.join(cells)} \\\\"


def _latex_cell(cell: Cell) -> str:
    detail = f" {{\\tiny {latex_text(cell.detail)}}}" if cell.detail else ""
    return latex_text(cell.text) + detail


def latex_text(text: str) -> str:
    """Text that means itself in LaTeX; a number's hyphen becomes a minus."""
    escaped = "".join(_LATEX.get(c, c) for c in " ".join(text.split()))
    return re.sub(r"(?<![\w.)])-(?=\d)", "$-$", escaped)
