"""A page in one file: HTML without scripts, its style inside, its pictures as data."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

STYLE = """
:root { color-scheme: light; --ink: #1b1f24; --soft: #57606a; --line: #d0d7de; --tint: #f3f6f9; --accent: #005a9c; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 66rem; padding: 1rem; background: #fff; color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .4rem 0; }
h2 { font-size: 1.25rem; margin: 2.4rem 0 .6rem; border-bottom: 2px solid var(--line); padding-bottom: .2rem; }
h3 { font-size: 1.02rem; margin: 1.4rem 0 .4rem; overflow-wrap: anywhere; }
p, li { max-width: 46rem; overflow-wrap: anywhere; }
a { color: var(--accent); }
nav ol { margin: 0; padding-left: 1.4rem; columns: 16rem; }
nav, .note { background: var(--tint); border-left: 4px solid var(--accent); padding: .6rem .9rem; margin: 1rem 0; }
.warn { border-left-color: #b35900; background: #fff6ea; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .7rem; margin: 1rem 0; }
.tile { border: 1px solid var(--line); border-radius: .4rem; padding: .6rem .8rem; }
.tile b { display: block; font-size: 1.45rem; font-variant-numeric: tabular-nums; }
.tile span, small, .caption, figcaption { color: var(--soft); font-size: .87rem; }
.scroll { overflow-x: auto; margin: 0 0 .8rem; }
table { border-collapse: separate; border-spacing: 0; font-size: .92rem; font-variant-numeric: tabular-nums; }
.caption { margin: .9rem 0 .2rem; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
thead th { border-bottom: 2px solid var(--ink); vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
tbody th { font-weight: 600; min-width: 6rem; max-width: 22rem; overflow-wrap: break-word;
  position: sticky; left: 0; background: #fff; }
td { white-space: nowrap; }
.beside { display: flex; flex-wrap: wrap; gap: 0 1.6rem; }
.beside > div { min-width: 0; max-width: min(30rem, 100%); }
.beside tbody th { min-width: 0; }
tr.strong > * { background: var(--tint); font-weight: 600; }
td small { display: block; white-space: nowrap; font-weight: 400; }
figure { margin: 1rem 0; }
figure img { max-width: 100%; height: auto; display: block; }
article { border: 1px solid var(--line); border-radius: .4rem; padding: .2rem .9rem .6rem; margin: 1rem 0; }
article h3 { margin-top: .7rem; }
details { margin: .5rem 0; }
summary { cursor: pointer; }
pre { background: var(--tint); padding: .7rem; overflow-x: auto; font-size: .8rem; line-height: 1.35; }
code { font-size: .88em; overflow-wrap: anywhere; }
@media (max-width: 40rem) { body { padding: .7rem; } th, td { padding: .25rem .4rem; } table { font-size: .84rem; }
  figure img { max-width: none; width: 40rem; } }
@media print { body { max-width: none; font-size: 10pt; } article, figure, tr { break-inside: avoid; }
  h2, h3 { break-after: avoid; } .scroll { overflow: visible; } a { color: inherit; } }
"""


class Html(str):
    """Text that is HTML already; every other text is escaped before it enters the page."""


def safe(content: str) -> Html:
    """The text as HTML."""
    return content if isinstance(content, Html) else Html(escape(content))


def joined(parts: Iterable[str], between: str = "\n") -> Html:
    """Several pieces as one."""
    return Html(between.join(safe(part) for part in parts))


def tag(name: str, content: str, **attributes: str) -> Html:
    """An element; in the names of attributes _ stands for -, and a trailing one (class_) for nothing."""
    written = "".join(f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"' for key, value in attributes.items())
    return Html(f"<{name}{written}>{safe(content)}</{name}>")


def paragraph(content: str) -> Html:
    """A paragraph."""
    return tag("p", content)


def note(content: str, warning: bool = False) -> Html:
    """A paragraph that stands out."""
    return tag("div", content, class_="note warn" if warning else "note", role="note")


def tiles(numbers: Mapping[str, str]) -> Html:
    """Large numbers, each with what it says beneath it: label → number."""
    own = (
        tag("div", joined([tag("b", number), tag("span", label)]), class_="tile") for label, number in numbers.items()
    )
    return tag("div", joined(own), class_="tiles")


def with_small(content: str, *small: str) -> Html:
    """A table cell's content with small lines beneath it."""
    return joined([content, *(tag("small", one) for one in small)], "")


def shaded(content: str, share: float) -> Html:
    """A table cell whose background says how large a share is, from 0 to 1."""
    return tag("td", content, style=f"background: rgba(0, 90, 156, {0.35 * min(max(share, 0.0), 1.0):.2f})")


def table(caption: str, headings: Sequence[str], rows: Iterable[Sequence[str]], strong: Sequence[int] = ()) -> Html:
    """A table that scrolls sideways where the screen is narrow; rows numbered `strong` stand out."""
    head = tag("tr", joined((tag("th", one, scope="col") for one in headings), ""))
    body = []
    for number, row in enumerate(rows):
        cells = joined([tag("th", row[0], scope="row"), *(_cell(one) for one in row[1:])], "")
        body.append(tag("tr", cells, class_="strong") if number in strong else tag("tr", cells))
    inside = tag("table", joined([tag("thead", head), tag("tbody", joined(body))]), aria_label=caption)
    # The caption stands outside of what scrolls, or it would scroll away.
    return tag("div", joined([tag("p", caption, class_="caption"), tag("div", inside, class_="scroll", tabindex="0")]))


def _cell(content: str) -> Html:
    return content if isinstance(content, Html) and content.startswith("<td") else tag("td", content)


@dataclass(frozen=True)
class ReportImage:
    """A picture as a file's content."""

    content: bytes
    kind: str
    """image/png or image/svg+xml."""


def figure(image: ReportImage, says: str, caption: str = "") -> Html:
    """A picture within the page; `says`: what those hear who cannot see it."""
    data = base64.b64encode(image.content).decode()
    picture = Html(f'<img src="data:{image.kind};base64,{data}" alt="{escape(says)}">')
    scrolls = tag("div", picture, class_="scroll", tabindex="0")
    return tag("figure", joined([scrolls, tag("figcaption", caption)]) if caption else scrolls)


def details(summary: str, content: str) -> Html:
    """What is shown on demand."""
    return tag("details", joined([tag("summary", summary), content]))


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    title: str
    content: Html

    @property
    def anchor(self) -> str:
        """Where links lead to."""
        return "".join(letter if letter.isalnum() else "-" for letter in self.title.lower())


def page(title: str, introduction: str, sections: Sequence[Section]) -> Html:
    """The whole document, with a table of contents."""
    links = joined(tag("li", tag("a", one.title, href=f"#{one.anchor}")) for one in sections)
    contents = tag("nav", tag("ol", links), aria_label="Contents")
    parts = [
        tag("section", joined([tag("h2", f"{number}. {one.title}", id=one.anchor), one.content]))
        for number, one in enumerate(sections, 1)
    ]
    body = joined([tag("h1", title), paragraph(introduction), contents, tag("main", joined(parts))])
    head = joined(
        [
            Html('<meta charset="utf-8">'),
            Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
            tag("title", title),
            tag("style", Html(STYLE)),
        ]
    )
    return Html(f'<!doctype html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{body}\n</body>\n</html>\n')
