"""Reports as Markdown, their tables as LaTeX; all text is escaped."""

import re
from collections.abc import Collection

from icljax.reports.document import Block, Cell, Code, Items, Notice, Report, Row, Table

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


def markdown(report: Report, drawn: Collection[str]) -> str:
    """The whole report.

    Args:
        drawn: keys of the figures that are in `figures/`, as KEY.png.
    """
    parts = [f"# {markdown_text(report.title)}", *(_block(b, drawn) for b in report.lead)]
    for section in report.sections:
        if section.blocks:
            blocks = [_block(block, drawn) for block in section.blocks]
            parts += [f"## {markdown_text(section.title)}", *blocks]
    if report.sources:
        links = "; ".join(f"[{name}]({url})" for name, url in report.sources)
        parts.append(f"Sources: {links}.")
    return "\n\n".join(part for part in parts if part) + "\n"


def _block(block: Block, drawn: Collection[str]) -> str:
    if isinstance(block, str):
        return markdown_text(block)
    if isinstance(block, Table):
        return markdown_table(block)
    if isinstance(block, Items):
        each = (f"**{markdown_text(k)}** " if k else "" for k, _ in block.items)
        texts = (markdown_text(text) for _, text in block.items)
        return "\n".join(f"- {k}{text}" for k, text in zip(each, texts, strict=True))
    if isinstance(block, Code):
        fence = "```"
        while fence in block.text:
            fence += "`"
        return f"{fence}{block.language}\n{block.text}\n{fence}"
    if isinstance(block, Notice):
        return f"> **{markdown_text(block.text)}**"
    if block.key not in drawn:
        return ""
    alt = markdown_text(block.title).replace("[", "(").replace("]", ")")
    return f"![{alt}](figures/{block.key}.png)\n\n*{alt}.* {markdown_text(block.caption)}"


def markdown_table(table: Table) -> str:
    """The table under its caption, its notes below."""
    width = len(table.header)
    align = "---" if table.words else "---:"
    lines = [[markdown_text(h) for h in table.header], ["---", *[align] * (width - 1)]]
    for row in table.rows:
        cells = [_markdown_cell(cell) for cell in row.cells]
        if row.kind == "group":
            cells = [f"**{cells[0]}**", *[""] * (width - 1)]
        lines.append(cells)
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    title = f"### {markdown_text(table.title)}" if table.title else ""
    notes = [markdown_text(note) for note in table.notes]
    return "\n\n".join(filter(None, [title, body, *notes]))


def _markdown_cell(cell: Cell) -> str:
    detail = f" <sub>{markdown_text(cell.detail)}</sub>" if cell.detail else ""
    text = markdown_code(cell.text) if cell.code else markdown_text(cell.text)
    return (f"**{text}**" if cell.strong and text else text) + detail


def markdown_text(text: str) -> str:
    """Text that means itself in Markdown, in a table too."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_|]|\](?=\())", r"\\\1", text)


def markdown_code(text: str) -> str:
    """Text in the type of code, in a table too; one with backticks of its own stays plain."""
    return markdown_text(text) if "`" in text else f"`{text.replace('|', chr(92) + '|')}`"


def latex(report: Report) -> str:
    """A whole document with the answer and every table, for pdflatex with booktabs."""
    points = [point for block in report.lead if isinstance(block, Items) for point in block.items]
    items = "\n".join(f"\\item {latex_text(' '.join(filter(None, point)))}" for point in points)
    lead = "\n\n".join(latex_text(block) for block in report.lead if isinstance(block, str))
    listed = f"\\begin{{itemize}}\n{items}\n\\end{{itemize}}\n\n" if items else ""
    body = "\n\n".join(map(_latex_table, report.tables()))
    return (
        "\\documentclass[a4paper,10pt]{article}\n"
        "\\usepackage[utf8]{inputenc}\n\\usepackage[T1]{fontenc}\n\\usepackage{booktabs}\n"
        "\\usepackage{graphicx}\n\\usepackage[margin=2cm]{geometry}\n"
        "\\begin{document}\n\n"
        f"\\section*{{{latex_text(report.title)}}}\n"
        f"{lead}\n\n{listed}{body}\n\n\\end{{document}}\n"
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
    text = latex_text(cell.text)
    return (f"\\texttt{{{text}}}" if cell.code else text) + detail


def latex_text(text: str) -> str:
    """Text that means itself in LaTeX; a number's hyphen becomes a minus."""
    escaped = "".join(_LATEX.get(c, c) for c in " ".join(text.split()))
    return re.sub(r"(?<![\w.)])-(?=\d)", "$-$", escaped)
