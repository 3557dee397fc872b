"""The report: one self-contained HTML page that compares runs, from what their folders hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from markupsafe import Markup

from jaxface.errors import UserError, tell
from jaxface.files import aside, require_suffix
from jaxface.report.markup import page
from jaxface.report.sections.base import Runs
from jaxface.report.sections.classes import classes
from jaxface.report.sections.cost import cost
from jaxface.report.sections.faces import faces, hardest
from jaxface.report.sections.features import features
from jaxface.report.sections.groups import groups
from jaxface.report.sections.results import results
from jaxface.report.sections.setup import lead, notes, setup
from jaxface.report.sections.thesis import agreement, published
from jaxface.report.sections.training import training
from jaxface.report.sections.trust import trust
from jaxface.report.seeds import seeds
from jaxface.runs.folder import Run, find_runs, read_run


def write_report(runs: Sequence[Path | str], out: Path | str) -> Path:
    """Writes a page that compares run folders, and returns its path. What a folder does not hold is left out of the page.

    Args:
      runs: run folders, or folders of them; what is no run is passed over, and named.

    Raises:
      UserError: if there is no run at all, or a file in one cannot be read.
    """
    if not runs:
        raise UserError("no run to report on; name at least one run folder")
    out = Path(out)
    require_suffix(out, ".html", ".htm")
    folders, others = find_runs(runs)
    if others:
        tell(f"passed over, no runs: {', '.join(map(str, others))}")
    content = render(named([read_run(path) for path in folders]))
    with aside(out) as temporary:
        temporary.write_text(content, encoding="utf-8")
    return out


def named(runs: Sequence[Run]) -> dict[str, Run]:
    """Runs by name; those that share one are told apart by their folder, and by a number if it is the same folder."""
    names = [run.name for run in runs]
    names = [f"{name} ({run.path})" if names.count(name) > 1 else name for name, run in zip(names, runs, strict=True)]
    return {
        name if names.index(name) == index else f"{name} #{index + 1}": run
        for index, (name, run) in enumerate(zip(names, runs, strict=True))
    }


def render(runs: Runs) -> str:
    """The whole page. A section is a function of the runs; one that finds nothing to show is left out.

    Raises UserError that names the run whose files hold something else than a section shows.
    """
    sections = [(anchor, name, title, shown(show, runs, title)) for anchor, name, title, show in SECTIONS]
    return page(", ".join(runs), shown(lead, runs, "its first words"), sections)


def shown(show: Show, runs: Runs, title: str) -> Markup:
    """A section of the page. Raises UserError as `render`."""
    try:
        return show(runs)
    except ODD as error:
        path = next((run.path for name, run in runs.items() if len(runs) > 1 and _is_odd(show, {name: run})), None)
        where = path or ", ".join(str(run.path) for run in runs.values())
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(f"{where}: its files hold something else than {title!r} shows ({reason}): evaluate it again") from error


def _is_odd(show: Show, runs: Runs) -> bool:
    try:
        show(runs)
    except ODD:
        return True
    return False


Show = Callable[[Runs], Markup]
ODD = (AttributeError, IndexError, KeyError, TypeError, ValueError)
"""What comes of JSON that is not as it was written."""


SECTIONS: list[tuple[str, str, str, Show]] = [
    ("results", "Results", "Results", results),
    ("seeds", "Seeds", "Over seeds", seeds),
    ("faces", "Faces", "Predicted faces", faces),
    ("classes", "Classes", "Class by class", classes),
    ("training", "Training", "Training", training),
    ("groups", "Groups", "Errors by group", groups),
    ("trust", "Trust", "How sure answers may be", trust),
    ("hardest", "Hardest", "Hardest examples", hardest),
    ("features", "Features", "Features in two dimensions", features),
    ("cost", "Cost", "Cost and accuracy", cost),
    ("agreement", "Agreement", "Agreement between the models", agreement),
    ("published", "Published", "Beside the published figures", published),
    ("setup", "Setup", "What ran", setup),
    ("notes", "Notes", "How to read this", notes),
]
"""The page's parts, in order: anchor, short name, heading, and the function that shows runs."""
