"""python -m jaxface.prepare SOURCE FOLDER --out DIR: checks a data set, crops its faces, and writes the records that training reads.

python -m jaxface.prepare --look DIR...: writes a page of training batches of prepared folders as the model gets them.
"""

from __future__ import annotations

import sys
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jaxface.cli import parse
from jaxface.data.cropping import AUTO, Cropping
from jaxface.data.discovery import doubts
from jaxface.data.engines import ENGINES
from jaxface.data.preparation import Leakage, prepare
from jaxface.data.records import TASKS_FILE, set_tasks
from jaxface.data.sources import SOURCES, Reading
from jaxface.data.synthetic import DrawnSet
from jaxface.data.tasks import BUILT_IN, TASKS
from jaxface.errors import run_command, tell
from jaxface.files import aside, require_suffix
from jaxface.ranges import Items, Known, Listed, Range, Seed, Where, ranged, refuse_idle


@ranged()
class Drawing:
    """For drawn faces (source synthetic)."""

    count: Annotated[int, Range(2, 10**7)] = 6000
    test_count: Annotated[int, Range(1, 10**7)] = 1000
    size: Annotated[int, Range(8, 1024)] = 60
    seed: Seed = 0


@ranged()
class Options:
    """Which data set, and where to.

    Attributes:
      source: celeba_hq, coco, fairface, folders, huggingface, label_studio, lagenda, manifest, raf_db, synthetic, utkface, vggface2, or one
        registered elsewhere.
      folder: the data set on disk; for synthetic the name of a drawing style.
      out: the folder to write.
      workers: processes; 0 takes one a core, as far as the work is worth it.
      content: know files by a hash of their content, not by size and time: a set whose files have changed is prepared again.
      engine: local, or an engine for several machines that share the folders.
    """

    source: Annotated[str, Known(SOURCES), tyro.conf.Positional]
    folder: Annotated[Where, tyro.conf.Positional]
    out: Where
    read: Reading = field(default_factory=Reading)
    crop: Cropping = field(default_factory=Cropping)
    leakage: Annotated[Leakage, tyro.conf.arg(name="")] = field(default_factory=Leakage)
    drawn: Drawing = field(default_factory=Drawing)
    workers: Annotated[int, Range(0, 1024)] = 0
    content: bool = False
    engine: Annotated[str, Known(ENGINES)] = "local"

    def __post_init__(self) -> None:
        synthetic = self.source == "synthetic"
        refuse_idle(self.drawn, synthetic, "it is for the source synthetic", prefix="drawn.")
        refuse_idle(self.read, not synthetic, "it is for data sets on disk, not for drawn faces", prefix="read.")
        refuse_idle(self, not synthetic, "drawn faces are no files", "content")
        searched = not synthetic or self.crop.detector != AUTO
        refuse_idle(self.crop, searched, "each drawing is one face already", "choose", "margin", prefix="crop.")


@ranged()
class Look:
    """What is shown of prepared folders.

    Attributes:
      look: prepared folders, read as one.
      out: the page; `look.html` in the first folder if it is not given.
      tasks: whose labels are shown, and decide what is drawn.
      sampling: shuffle or balanced.
      image_size: side in pixels.
      count: images.
      seed: of the draws.
    """

    look: Annotated[tuple[Where, ...], Items(least=1)]
    out: Where | None = None
    tasks: Annotated[tuple[str, ...], Listed(TASKS), Items(least=1, once=True)] = ("age", "gender", "emotion")
    sampling: Literal["shuffle", "balanced"] = "balanced"
    image_size: Annotated[int, Range(8, 8192)] = 336
    count: Annotated[int, Range(1, 10_000)] = 48
    seed: Seed = 0


def look() -> None:
    """Writes the page of `--look` and prints where it is."""
    from jaxface.report.data_sheets import batch_page
    from jaxface.runs.own_tasks import tasks_in

    options = parse(Look, prog="python -m jaxface.prepare", description=__doc__)
    out = options.out or options.look[0] / "look.html"
    require_suffix(out, ".html", ".htm")
    folders = [str(folder) for folder in options.look]
    size = {"image_size": options.image_size, "count": options.count, "seed": options.seed}
    text = batch_page(folders, tasks_in(folders, options.tasks), sampling=options.sampling, **size)
    with aside(out) as temporary:
        temporary.write_text(text)
    print(out)


def show(summary: dict[str, Any], out: Path, console: Console) -> None:
    """Prints what was kept, per task and class, what deserves a second look, and what was dropped."""
    own = {name: task for name, task in set_tasks(out).items() if task != BUILT_IN.get(name)}
    for task, classes in summary["classes"].items():
        counted = {split: values["labels"][task] for split, values in summary["splits"].items()}
        if any(map(sum, counted.values())):
            title = f"{own[task].says}, records" if task in own else f"records with a label of {task}"
            table = Table(escape(task), *counted, title=escape(f"{out}: {title}"))
            for index, name in enumerate(classes or ["numbers"]):
                table.add_row(escape(name), *(str(counts[index]) for counts in counted.values()))
            console.print(table)
        for line in doubts(own[task], [sum(counts) for counts in zip(*counted.values(), strict=True)]) if task in own else ():
            tell(f"{task}: {line}")
    if own:
        tell(f"{out / TASKS_FILE} describes {', '.join(own)}: --tasks-file takes a changed copy")
    kept = ", ".join(f"{values['records']} {split}" for split, values in summary["splits"].items())
    console.print(f"{out}: {kept}")
    dropped = summary["dropped"]
    if dropped["count"]:
        for entry in dropped["files"][:10]:
            tell(f"left out {entry['id']}: {entry['reason']}")
        reasons = ", ".join(f"{count} {reason}" for reason, count in list(dropped["reasons"].items())[:3])
        tell(f"left out {dropped['count']} images ({reasons}), all listed in {out / 'summary.json'}")
    if damaged := summary.get("damaged"):
        example = f"{damaged[0]['id']}: {damaged[0]['reason']}"
        tell(f"kept {len(damaged)} damaged images ({example}), all listed in {out / 'summary.json'}")
    for between, count in summary["duplicates"]["between"].items():
        tell(f"the same picture is in {between}: {count} times (listed in {out / 'summary.json'})")
    for between, names in summary.get("persons", {}).items():
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        tell(f"the same person is in {between}: {', '.join(names[:3])}{more} (listed in {out / 'summary.json'})")


def main() -> None:
    """Prepares a data set and prints its summary, or shows prepared ones."""
    if "--look" in sys.argv:
        return look()
    options = parse(Options, prog="python -m jaxface.prepare", description=__doc__)
    drawn = DrawnSet(style=options.folder.name, **vars(options.drawn)) if options.source == "synthetic" else None
    summary = prepare(
        options.source,
        options.folder,
        options.out,
        options=drawn or options.read,
        cropping=options.crop,
        leakage=options.leakage,
        engine=options.engine,
        workers=options.workers,
        content=options.content,
    )
    show(summary, options.out, Console())
    if not (options.out / "summary.png").exists():
        from jaxface.report.data_sheets import write_summary_picture

        write_summary_picture(options.out)


if __name__ == "__main__":
    run_command(main)
