"""The parts that a page is made of: its style, its sortable tables, and the skeleton that holds them. No address outside the page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from string import Template


class Html(str):
    """Text that is HTML already; any other is escaped where it is put into a page."""


def text(value: object) -> Html:
    """A value as HTML: escaped, unless it is `Html`; empty for None."""
    if isinstance(value, Html):
        return value
    return Html("" if value is None else escape(str(value)))


def join(parts: Iterable[object], between: str = "") -> Html:
    """Parts one after another."""
    return Html(between.join(text(part) for part in parts))


def tag(name: str, *content: object, **attributes: object) -> Html:
    """`<name attribute="...">content</name>`; `class_` stands for `class`, `data_x` for `data-x`; an attribute that is None is left out."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"' for key, value in attributes.items() if value is not None
    )
    return Html(f"<{name}{written}>{join(content)}</{name}>")


@dataclass(frozen=True)
class Cell:
    """A cell of a table whose order or look is not that of its text."""

    shown: object
    sort: float | str | None = None
    class_: str | None = None
    bar: float | None = None
    """0 to 1: a bar of this length behind the text."""


def percent(share: float | None, decimals: int = 1) -> str:
    """0.5 as `50.0 %`; a dash for None or NaN."""
    return "—" if share is None or share != share else f"{100 * share:.{decimals}f} %"


def table(
    header: Sequence[object], rows: Iterable[Sequence[object]], *, groups: Sequence[tuple[object, int]] = (), sortable: bool = True
) -> Html:
    """A table that a click on a heading sorts; it scrolls sideways where it is wider than the screen.

    Args:
      header: one heading a column.
      rows: their values; the first names the row.
      groups: headings over several columns each, and how many: of all columns, from the left; one of None stays empty.
      sortable: whether a click sorts.
    """
    cells = [entry if isinstance(entry, Cell) else Cell(entry) for entry in header]
    heads = (
        tag("th", tag("button", cell.shown, type="button") if sortable else cell.shown, scope="col", class_=cell.class_) for cell in cells
    )
    above = [tag("th" if name else "td", _breakable(name), colspan=width, scope="colgroup" if name else None) for name, width in groups]
    top = tag("tr", *above, class_="groups") if above else ""
    body = join(tag("tr", *(_cell(value, first=index == 0) for index, value in enumerate(row))) for row in rows)
    return tag("div", tag("table", tag("thead", top, tag("tr", *heads)), tag("tbody", body)), class_="scroll", tabindex="0")


def _breakable(value: object) -> Html:
    """Names such as `runs/first` as HTML that may be folded behind a slash."""
    return value if isinstance(value, Html) else Html(text(value).replace("/", "/<wbr>"))


def _cell(value: object, *, first: bool) -> Html:
    cell = value if isinstance(value, Cell) else Cell(value)
    style = None if cell.bar is None or cell.bar != cell.bar else f"--share:{100 * cell.bar:.1f}%"
    classes = " ".join(filter(None, [cell.class_, "bar" if style else None])) or None
    if first:
        return tag("th", _breakable(cell.shown), scope="row", class_=classes, style=style, data_sort=cell.sort)
    return tag("td", cell.shown, class_=classes, style=style, data_sort=cell.sort)


def section(title: str, *content: object, anchor: str) -> Html:
    """A headed part of the page; none if there is nothing in it."""
    content_html = join(content)
    return tag("section", tag("h2", title), content_html, id=anchor) if content_html else Html()


def grid(parts: Iterable[object], kind: str = "figures") -> Html:
    """Parts beside each other, as many in a line as fit; none if there are none."""
    inner = join(parts)
    return tag("div", inner, class_=f"grid {kind}") if inner else Html()


def figure(picture: object, heading: object) -> Html:
    """A picture below its heading."""
    return tag("figure", tag("figcaption", heading), picture)


def details(summary: object, *content: object, opened: bool = False) -> Html:
    """A part that folds; none if there is nothing in it."""
    inner = join(content)
    if not inner:
        return Html()
    return Html(f"<details{' open' if opened else ''}>{tag('summary', summary)}{inner}</details>")


def page(title: str, lead: object, sections: Sequence[tuple[str, str, Html]]) -> str:
    """A whole page from (anchor, short name, content); empty sections are left out."""
    kept = [entry for entry in sections if entry[2]]
    links = join(tag("a", name, href=f"#{anchor}") for anchor, name, _ in kept)
    return _PAGE.substitute(
        title=text(title), lead=text(lead), links=links, body=join(part for *_, part in kept), style=STYLE, script=SCRIPT
    )


STYLE = """
:root{color-scheme:light dark;--page:#fff;--soft:#f5f7f9;--ink:#24292f;--faint:#6e7781;--grid:#d8dee4;--accent:#3a6ea5;--right:#2e7d4f;
  --wrong:#c0392b}
@media screen and (prefers-color-scheme:dark){:root{--page:#14181d;--soft:#1c2229;--ink:#e3e8ee;--faint:#94a0ad;--grid:#323b46;
  --accent:#79aee3;--right:#62bd86;--wrong:#f0837a}}
*{box-sizing:border-box}
html{scroll-behavior:smooth;scroll-padding-top:3.2rem;-webkit-text-size-adjust:100%}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
header,main,footer{max-width:1120px;margin:auto;padding:0 1.25rem}
header{padding-top:2.2rem}
h1{font-size:1.75rem;line-height:1.2;margin:0 0 .4rem;letter-spacing:-.01em}
h2{font-size:1.25rem;margin:2.6rem 0 .6rem;padding-top:.9rem;border-top:1px solid var(--grid)}
h3{font-size:1rem;margin:1.6rem 0 .5rem}
h3 small,p small,.quiet{color:var(--faint);font-weight:400;font-size:.875rem}
p{max-width:46rem;margin:.5rem 0 .9rem}
nav{position:sticky;top:0;z-index:2;background:var(--page);border-bottom:1px solid var(--grid);margin-top:1rem}
nav div{max-width:1120px;margin:auto;padding:.55rem 1.25rem;display:flex;gap:1.15rem;overflow-x:auto;white-space:nowrap;font-size:.875rem}
a{color:var(--accent);text-decoration:none}a:hover{text-decoration:underline}
nav + main section:first-child h2{border-top:0;margin-top:1rem}
.scroll{overflow-x:auto;margin:.6rem 0 1.2rem}
table{border-collapse:collapse;font-size:.875rem;font-variant-numeric:tabular-nums;min-width:min(100%,34rem)}
td.wrap{white-space:normal;overflow-wrap:anywhere}
th,td{padding:.38rem .75rem;text-align:right;border-bottom:1px solid var(--grid);white-space:nowrap;vertical-align:middle}
th:first-child,td:first-child,.left{text-align:left}
tbody th{font-weight:600}
thead th{border-bottom:1.5px solid var(--faint);padding:.2rem .3rem}
th button{text-align:inherit;font:inherit;font-weight:600;color:var(--faint);background:none;border:0;padding:.2rem .45rem;
  margin:0;cursor:pointer;white-space:normal}
th button:hover{color:var(--ink)}
th[aria-sort] button{color:var(--ink)}
th[aria-sort=ascending] button::after{content:" \\25B4"}
th[aria-sort=descending] button::after{content:" \\25BE"}
tbody tr:hover{background:var(--soft)}
thead .groups th{text-align:center;padding:.3rem .6rem;border-bottom:1px solid var(--grid);white-space:normal}
thead .groups td{border:0}
.bar{background:linear-gradient(color-mix(in srgb,var(--accent) 22%,transparent) 0 0) no-repeat left center/var(--share) 74%}
.strong{font-weight:700}.right{color:var(--right)}.wrong{color:var(--wrong)}
.grid{display:grid;gap:1.1rem 1.4rem;align-items:start;margin:.6rem 0 1.2rem}
.figures{grid-template-columns:repeat(auto-fill,minmax(min(100%,310px),1fr))}
.wide{grid-template-columns:repeat(auto-fill,minmax(min(100%,430px),1fr))}
.quads{grid-template-columns:repeat(auto-fill,minmax(min(100%,240px),1fr))}
.cards{grid-template-columns:repeat(auto-fill,minmax(118px,1fr));gap:.8rem}
figure{margin:0;min-width:0}
figcaption{font-weight:600;font-size:.875rem;margin-bottom:.2rem}
svg{display:block;width:100%;height:auto}
svg *{stroke-linejoin:round;stroke-linecap:butt}
.face{background:var(--soft);border:1px solid var(--grid);border-radius:8px;overflow:hidden;break-inside:avoid}
.face img{display:block;width:100%;aspect-ratio:1;object-fit:cover;background:var(--grid)}
.face ul{list-style:none;margin:0;padding:.4rem .35rem .45rem;font-size:.69rem;line-height:1.45}
.face li{display:flex;flex-wrap:wrap;justify-content:space-between}
.face li b{font-weight:600;white-space:nowrap}
.face li div{flex-basis:100%;padding-left:1.05em}
.face li span,.face li div{color:var(--faint)}
td img{display:block;width:44px;height:44px;object-fit:cover;border-radius:4px}
details{border:1px solid var(--grid);border-radius:8px;padding:.55rem .9rem;margin:.8rem 0}
summary{cursor:pointer;font-weight:600}
details[open]>summary{margin-bottom:.6rem}
pre{overflow-x:auto;font-size:.78rem;line-height:1.45;background:var(--soft);padding:.8rem;border-radius:6px}
.note{background:var(--soft);border-left:3px solid var(--accent);padding:.6rem .9rem;border-radius:0 6px 6px 0;max-width:46rem;
  margin:.9rem 0}
.note p{margin:0}
footer{color:var(--faint);font-size:.8125rem;padding-top:2rem;padding-bottom:3rem}
@media screen and (min-width:601px){tbody wbr{display:none}}
@media (max-width:600px){
tbody th{white-space:normal}.scroll tbody th,.scroll thead tr:last-child th:first-child{position:sticky;left:0;z-index:1;
  background:var(--page)}details{padding:.5rem .6rem}.face ul{font-size:.66rem;padding:.35rem .3rem}
body{font-size:15px}header,main,footer{padding-left:.9rem;padding-right:.9rem}h1{font-size:1.4rem}
  th,td{padding:.34rem .5rem}.cards{grid-template-columns:repeat(auto-fill,minmax(98px,1fr));gap:.55rem}}
@media print{@page{margin:14mm}body{font-size:10pt}nav{display:none}header,main,footer{max-width:none;padding:0}h2,h3{break-after:avoid}
  figure,tr,.note{break-inside:avoid}.scroll{overflow:visible}details{border:0;padding:0}.figures{grid-template-columns:repeat(3,1fr)}
  .cards{grid-template-columns:repeat(6,1fr)}.bar,.face{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
""".strip()

SCRIPT = """
const value = cell => {
  const raw = cell.dataset.sort ?? cell.textContent.trim();
  const number = parseFloat(raw.replace(/,/g, ''));
  return raw === '' || raw === '—' ? null : /^[-+\\d.]/.test(raw) && !isNaN(number) ? number : raw.toLowerCase();
};
const order = (a, b) => typeof a === 'number' && typeof b === 'number' ? a - b
  : String(a).localeCompare(String(b), undefined, {numeric: true});
document.querySelectorAll('thead button').forEach(button => button.addEventListener('click', () => {
  const head = button.parentElement, column = head.cellIndex, body = head.closest('table').tBodies[0];
  const down = head.getAttribute('aria-sort') === 'descending';
  head.parentElement.querySelectorAll('th').forEach(other => other.removeAttribute('aria-sort'));
  head.setAttribute('aria-sort', down ? 'ascending' : 'descending');
  const keyed = [...body.rows].map(row => [value(row.cells[column]), row]);
  keyed.sort(([a], [b]) => a === null || b === null ? (a === null) - (b === null) : (down ? 1 : -1) * order(a, b));
  keyed.forEach(([, row]) => body.append(row));
}));
let folded = [];
addEventListener('beforeprint', () => {
  folded = [...document.querySelectorAll('details:not([open])')];
  folded.forEach(part => part.open = true);
});
addEventListener('afterprint', () => folded.forEach(part => part.open = false));
""".strip()

_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>$title</title>
<link rel="icon" href="data:,">
<style>
$style
</style>
</head>
<body>
<header><h1>$title</h1>$lead</header>
<nav><div>$links</div></nav>
<main>
$body
</main>
<script>
$script
</script>
</body>
</html>
""")
