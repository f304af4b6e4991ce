"""A report as one self-contained HTML file: pictures inside as base64, readable on a phone, printable, light or dark."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from graftax.checkpoint.files import replacing

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2126; --soft: #5c6670; --line: #d9dee3; --ground: #ffffff; --tint: #f3f6f9; --mark: #2f6fb7; --shade: #0004; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ec; --soft: #9aa5b0; --line: #343b43; --ground: #14171a; --tint: #1d2227; --mark: #7fb2ea; --shade: #fff4; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 62rem; background: var(--ground); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .4rem; letter-spacing: -.01em; }
h2 { font-size: 1.25rem; margin: 2.8rem 0 .6rem; padding-top: 1rem; border-top: 1px solid var(--line); }
p { max-width: 44rem; margin: .6rem 0; }
.lead { font-size: 1.08rem; color: var(--soft); }
.verdict { max-width: none; margin: 1.4rem 0; padding: .9rem 1.1rem; background: var(--tint); border-left: 4px solid var(--mark); border-radius: 4px; }
.scroll { overflow-x: auto; background:
  linear-gradient(to right, var(--ground) 30%, transparent) left / 3rem 100% no-repeat local,
  linear-gradient(to left, var(--ground) 30%, transparent) right / 3rem 100% no-repeat local,
  linear-gradient(to right, var(--shade), transparent) left / 1rem 100% no-repeat scroll,
  linear-gradient(to left, var(--shade), transparent) right / 1rem 100% no-repeat scroll; } /* a shadow where it goes on */
table { border-collapse: collapse; width: 100%; font-size: .93rem; font-variant-numeric: tabular-nums; }
th, td { padding: .45rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; padding-left: 0; position: sticky; left: 0; background: var(--ground); }
@media (max-width: 62rem) {
  table { font-size: .84rem; }
  th, td { padding: .4rem .45rem; }
  td:first-child { white-space: normal; min-width: 7rem; }
}
tr.strong td { font-weight: 650; }
.row { display: grid; gap: 1.2rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, var(--least)), 1fr)); margin: 1rem 0; }
figure { margin: 0; break-inside: avoid; }
figure img { width: 100%; height: auto; display: block; border-radius: 3px; }
figure.sharp img { image-rendering: pixelated; }
figcaption { font-size: .88rem; color: var(--soft); margin-top: .4rem; line-height: 1.4; }
figcaption b { color: var(--ink); }
pre { font: .82rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; background: var(--tint); padding: .8rem 1rem; border-radius: 4px; overflow-x: auto; }
footer { margin-top: 3rem; font-size: .85rem; color: var(--soft); }
@media print { .scroll { overflow: visible; } body { max-width: none; padding: 0; font-size: 11pt; } .row { grid-template-columns: repeat(auto-fit, minmax(40%, 1fr)); } h2 { break-after: avoid; } }
"""  # noqa: E501


@dataclass(frozen=True)
class Figure:
    """A PNG with its texts.

    Attributes:
        path: of the PNG.
        title: above the caption.
        caption: beneath it.
        sharp: pixels are drawn as squares, for small images.
    """

    path: Path
    title: str
    caption: str = ""
    sharp: bool = False


class Report:
    """Collects sections in order; `write` puts them into one file. All text is escaped."""

    def __init__(self, title: str, lead: str) -> None:
        self._title = title
        self._parts = [f"<h1>{html.escape(title)}</h1>", f'<p class="lead">{html.escape(lead)}</p>']

    def verdict(self, *lines: str) -> None:
        """What was found, set apart."""
        self._parts.append(f'<div class="verdict">{"<br>".join(map(html.escape, lines))}</div>')

    def section(self, title: str, *paragraphs: str) -> None:
        """A heading and paragraphs."""
        self._parts.append(f"<h2>{html.escape(title)}</h2>")
        self.paragraphs(*paragraphs)

    def paragraphs(self, *texts: str) -> None:
        """Running text."""
        self._parts += [f"<p>{html.escape(text)}</p>" for text in texts]

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]], strong: Sequence[int] = ()) -> None:
        """A table; the first column is text, the others numbers. Rows whose index is in `strong` stand out."""
        cells = "".join(f"<th>{html.escape(name)}</th>" for name in head)
        body = ""
        for i, row in enumerate(rows):
            mark = ' class="strong"' if i in strong else ""
            body += f"<tr{mark}>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>\n"
        self._parts.append(
            f'<div class="scroll" tabindex="0"><table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>'
        )

    def figures(self, figures: Sequence[Figure], least: str = "13rem") -> None:
        """Pictures side by side, wrapped where one would get narrower than `least`."""
        inside = "".join(_figure(figure) for figure in figures)
        self._parts.append(f'<div class="row" style="--least: {least}">{inside}</div>')

    def text(self, text: str) -> None:
        """Preformatted text."""
        self._parts.append(f"<pre>{html.escape(text)}</pre>")

    def write(self, path: Path, footer: str) -> None:
        """Write the page as UTF-8, replacing `path` when it is complete."""
        page = (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{html.escape(self._title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
            + "\n".join(self._parts)
            + f"\n<footer>{html.escape(footer)}</footer>\n</body>\n</html>\n"
        )
        with replacing(path) as temporary:
            temporary.write_text(page, encoding="utf-8")


def _figure(figure: Figure) -> str:
    data = base64.b64encode(figure.path.read_bytes()).decode()
    title, caption = html.escape(figure.title), html.escape(figure.caption)
    kind = ' class="sharp"' if figure.sharp else ""
    image = f'<img src="data:image/png;base64,{data}" alt="{title}">'
    return f"<figure{kind}>{image}<figcaption><b>{title}</b>{' ' + caption if caption else ''}</figcaption></figure>"
