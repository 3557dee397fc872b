"""What a page is made of: the templates beside this file, the cells of their tables, and figures. No address outside the page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from jaxface.plots import to_svg

Part = tuple[str, str, str, Markup]
"""A part of a page: anchor, short name in the navigation, heading, and content."""


@dataclass(frozen=True)
class Cell:
    """A cell of a table whose order or look is not that of its text."""

    shown: object
    sort: float | str | None = None
    class_: str | None = None
    bar: float | None = None
    """0 to 1: a bar of this length behind the text."""

    @property
    def attributes(self) -> Mapping[str, object]:
        """Of the table's element; one that is None is left out."""
        bar = None if self.bar is None or self.bar != self.bar else f"--share:{100 * self.bar:.1f}%"
        classes = " ".join(filter(None, [self.class_, "bar" if bar else None])) or None
        return {"class": classes, "style": bar, "data-sort": self.sort}


def left(value: object) -> Cell:
    """A cell of words."""
    return Cell(value, class_="left")


def strong(value: object) -> Cell:
    """A cell that stands out."""
    return Cell(value, class_="strong")


def percent(share: float | None, decimals: int = 1, *, unit: str = " %", missing: str = "—") -> str:
    """0.5 as `50.0 %`; a dash for None or NaN."""
    return missing if share is None or share != share else f"{100 * share:.{decimals}f}{unit}"


def breakable(value: object) -> Markup:
    """Names such as `runs/first` as HTML that may be folded behind a slash."""
    return value if isinstance(value, Markup) else Markup("" if value is None else escape(value).replace("/", Markup("/<wbr>")))


_ENVIRONMENT = Environment(
    loader=PackageLoader("jaxface.report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=False,
    finalize=lambda value: "" if value is None else value,
)
_ENVIRONMENT.filters |= {
    "percent": percent,
    "breakable": breakable,
    "cell": lambda value: value if isinstance(value, Cell) else Cell(value),
}


def render(template: str, **values: Any) -> Markup:
    """A template of `templates/` filled in: whatever is not `Markup` is escaped."""
    return Markup(_ENVIRONMENT.get_template(template).render(values))


def table(
    header: Sequence[object], rows: Iterable[Sequence[object]], *, groups: Sequence[tuple[object, int]] = (), sortable: bool = True
) -> Markup:
    """A table that a click on a heading sorts; it scrolls sideways where it is wider than the screen.

    Args:
      header: one heading a column.
      rows: their values; the first names the row.
      groups: headings over several columns each, and how many: of all columns, from the left; one of None stays empty.
      sortable: whether a click sorts.
    """
    macros: Any = _ENVIRONMENT.get_template("macros.html").module
    return macros.table(header, rows, groups, sortable)


def picture(drawing: Figure, heading: str, label: str) -> Markup:
    """A figure below its heading; `label` tells it apart from others of that heading."""
    return Markup("<figure><figcaption>{}</figcaption>{}</figure>").format(heading, Markup(to_svg(drawing, f"{label}: {heading}")))


def page(title: str, lead: object, parts: Iterable[Part]) -> str:
    """A whole page that stands alone; parts without content are left out."""
    return render("page.html", title=title, lead=lead, parts=[part for part in parts if part[3]])
