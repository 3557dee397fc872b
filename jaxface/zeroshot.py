"""python -m jaxface.zeroshot --weights FILE: the thesis's zero-shot baseline, from prompts alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from jaxface.cli import parse
from jaxface.data.records import SPLITS
from jaxface.data.tasks import TASKS, get_task
from jaxface.errors import UserError, run_command
from jaxface.files import check_output
from jaxface.models.precision import AUTO, PRECISIONS, precision_of
from jaxface.models.variants import VARIANTS
from jaxface.ranges import Count, Items, Known, OneOf, Where, ranged, refuse_idle

if TYPE_CHECKING:
    from jaxface.evaluation.predictions import Predictions


@ranged()
class Options:
    """Classifies faces by the nearest of a few sentences; nothing is trained.

    Attributes:
      weights: a checkpoint with both towers, in any layout.
      data: folders written by `jaxface.prepare`; their labels are compared with.
      photos: or photos, and folders of them, each of one face.
      split: of the prepared folders.
      tasks: what is predicted.
      variant: what the weights must be, for example CLIP-B16-224; by default whatever they are.
      tokenizer: the `tokenizer.json` that belongs to them, for text towers of sentence pieces (SigLIP's).
      templates: a JSON file with other prompts: per task a sentence with {} for the class, or a list of them.
      batch_size: over all local devices.
      precision: of the towers; "auto" takes bf16 on accelerators and fp32 on CPUs.
      out: a .csv, .jsonl or .parquet file for the predictions.
      run: a run folder to write, for `jaxface.report`: answers, figures and costs; what stands there of the same model is not done again.
    """

    weights: Where
    data: Annotated[tuple[Where, ...], Items(once=True)] = ()
    photos: tuple[Where, ...] = ()
    split: Annotated[str, OneOf("split", SPLITS)] = "test"
    tasks: Annotated[tuple[str, ...], Known(TASKS), Items(least=1, once=True)] = ("age", "gender", "emotion")
    variant: Annotated[str | None, Known(VARIANTS)] = None
    tokenizer: Where | None = None
    templates: Where | None = None
    batch_size: Count = 32
    precision: Annotated[str, Known(PRECISIONS, AUTO)] = AUTO
    out: Where | None = None
    run: Where | None = None

    def __post_init__(self) -> None:
        if (not self.data) == (not self.photos):
            raise UserError("name the images: --data FOLDER... (written by jaxface.prepare), or --photos FILE_OR_FOLDER...")
        refuse_idle(self, not self.photos, "it is for the folders of --data", "split")
        if self.run is not None and self.photos:
            raise UserError(f"--run {self.run}: a run is tested on prepared folders, --data FOLDER..., not on photos")


def classify(options: Options) -> Predictions:
    """Runs the model over all images. Raises UserError for options that do not fit, before anything large is read."""
    if options.out is not None:
        check_output(options.out)
    import jax

    from jaxface.data.photos import find_photos, photo_batches
    from jaxface.data.pipeline import count_records, eval_batches
    from jaxface.devices import replicate
    from jaxface.models.tree import flatten
    from jaxface.runs.inference import make_predict, predict_all
    from jaxface.runs.zero_shot import TEMPLATES, ZeroShotRun, read_templates, zero_shot
    from jaxface.weights import load_clip

    own = read_templates(options.templates) if options.templates else {}
    refuse_idle(options, bool(own.keys() & {*options.tasks}), f"it has no prompts for {', '.join(options.tasks)}", "templates")
    templates = TEMPLATES | own
    photos, sets = find_photos(options.photos) if options.photos else [], [str(folder) for folder in options.data]
    total = len(photos) or count_records(sets, options.split)
    asked = (options.tasks, templates, sets, options.split, options.variant, options.tokenizer, options.precision)
    run = None if options.run is None else ZeroShotRun(options.run, options.weights, *asked)
    if run is not None and (stored := run.answers()) is not None:
        return stored
    clip = load_clip(options.weights, **precision_of(options.precision)._asdict(), config=options.variant)
    arrays, structure = flatten(zero_shot(clip, options.tasks, templates, options.tokenizer))
    devices = jax.local_device_count()
    c, batch_size = clip.visual.config, -(-min(options.batch_size, total) // devices) * devices
    sizes: dict[str, Any] = {"image_size": c.image_size, "batch_size": batch_size, "framing": c.framing}
    if photos:
        batches = photo_batches(photos, options.tasks, **sizes)
    else:
        batches = eval_batches(sets, options.split, options.tasks, **sizes)
    tasks, predict = tuple(map(get_task, options.tasks)), make_predict(structure)
    predictions = predict_all(predict, replicate(arrays), batches, tasks, title="zero-shot", total=total)
    return predictions if run is None else run.write(clip, predictions)


def main() -> None:
    """Prints the tables, and writes the predictions if asked to."""
    options = parse(Options, prog="python -m jaxface.zeroshot", description=__doc__)
    from rich.console import Console  # slow to import: not for --help

    from jaxface.evaluation.results import score
    from jaxface.report.console import confusion_table, metrics_table, predictions_table, sources_table, write_rows

    predictions = classify(options)
    console = Console()
    labelled = [task for task in predictions.tasks if (predictions.labels[task.name] >= 0).any()]
    if labelled:
        names = ", ".join(map(str, options.data))
        console.print(metrics_table(predictions, f"{names}, {options.split}: zero-shot"))
        if len(options.data) > 1:
            console.print(sources_table(score(predictions), "zero-shot: each data set, and the averages"))
        for task in labelled:
            console.print(confusion_table(predictions, task))
    else:
        console.print(predictions_table(predictions, f"zero-shot, {len(predictions)} images"))
    if options.out is not None:
        write_rows(options.out, predictions)
        console.print(f"predictions: {options.out}")
    if options.run is not None:
        console.print(f"run: {options.run}")


if __name__ == "__main__":
    run_command(main)
