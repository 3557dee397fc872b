"""python -m jaxface.compare --weights FILE --against meta|timm|open_clip: the same weights and images through JAX and the original."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from rich.console import Console
from rich.table import Table

from jaxface.cli import parse
from jaxface.errors import run_command
from jaxface.models.variants import VARIANTS
from jaxface.ranges import Known, Range, Where, ranged


@ranged()
class Options:
    """Compares this project with the PyTorch original; exit status 1 if a stage differs by more than the tolerance.

    Attributes:
      weights: a checkpoint in any layout.
      against: the original: Meta's code, timm, or open_clip (both towers).
      meta_code: a checkout of facebookresearch/perception_models, for Meta's.
      photos: photos, or folders of them; without any, random images.
      batch_size: images.
      image_size: side in pixels, 0 for the model's own; of a Perception Encoder another one is for Meta's code alone.
      tolerance: largest difference over the largest value, after any stage.
      repeats: of the timing; 0 leaves it out.
      dtype: of our side; the original runs in float32.
      variant: what the checkpoint is, where its tensors do not tell.
      heads: attention heads, where the checkpoint's shape is no variant's.
      out: the picture to write.
    """

    weights: Where
    against: Literal["meta", "timm", "open_clip"]
    meta_code: Where | None = None
    photos: tuple[Where, ...] = ()
    batch_size: Annotated[int, Range(1, 1024)] = 4
    image_size: Annotated[int, Range(0, 8192)] = 0
    tolerance: Annotated[float, Range(above=0, high=1)] = 1e-4
    repeats: Annotated[int, Range(0, 1000)] = 5
    dtype: Literal["float32", "bfloat16"] = "float32"
    variant: Annotated[str | None, Known(VARIANTS)] = None
    heads: Annotated[int | None, Range(1, 1024)] = None
    out: Where = Path("compare.png")


SENTENCES = ("a photo of a face", "A photo of a person between 20-29 years old", "two dogs on a beach, in the rain")


def read_images(options: Options, size: int) -> np.ndarray:
    """The images [B, size, size, 3] in -1..1."""
    from jaxface.data.photos import find_photos, read_photo

    if not options.photos:
        return np.random.default_rng(0).uniform(-1, 1, (options.batch_size, size, size, 3)).astype(np.float32)
    photos = find_photos(options.photos)[: options.batch_size]
    return np.stack([read_photo(path, size) for path in photos]).astype(np.float32) / 127.5 - 1


def run(options: Options) -> tuple[list[Any], Any, str]:
    """The differences, the speed or None, and the variant's name."""
    import jax

    from jaxface.models.tokenizer import tokenize
    from jaxface.originals.comparison import compare, measure
    from jaxface.originals.reference import build_original
    from jaxface.weights import load_clip, load_encoder
    from weights_convert.checkpoint import read_checkpoint
    from weights_convert.towers import Heads

    checkpoint = read_checkpoint(options.weights, config=options.variant, heads=Heads(vision=options.heads))
    towers = checkpoint.towers
    images = read_images(options, options.image_size or towers.vision.image_size)
    original = build_original(options.against, towers, checkpoint.tensors, options.meta_code)
    for module in original.modules:
        module.float()
    load = load_encoder if towers.text is None else load_clip
    model = load(options.weights, dtype=options.dtype, config=towers)
    ids = tokenize(SENTENCES, towers.text.context) if towers.text else None
    if ids is not None and ids.max() >= towers.text.vocabulary:
        ids = ids % towers.text.vocabulary  # a small model's vocabulary, for which no text means anything
    with jax.default_matmul_precision("highest"):
        differences = compare(model, original, images, ids)
        speed = measure(model, original, images, options.repeats) if options.repeats else None
    return differences, speed, towers.name


def main() -> int:
    """Prints the table, writes the picture, and returns 1 if a stage is past the tolerance."""
    options = parse(Options, prog="python -m jaxface.compare", description=__doc__)
    differences, speed, variant = run(options)
    from jaxface.originals.comparison import draw
    from jaxface.plots import to_png_bytes
    from weights_convert.tensor_files import aside

    names = ("jaxface", options.against)
    table = Table("stage", "largest error / largest value", "1 - cosine", "", title=f"{variant}: {names[0]} and {names[1]}")
    for d in differences:
        wrong = not d.error <= options.tolerance
        table.add_row(
            d.stage,
            f"{d.error:.2e}",
            f"{max(0.0, 1 - d.cosine):.1e}",
            "past the tolerance" if wrong else "",
            style="red" if wrong else None,
        )
    console = Console()
    console.print(table)
    if speed is not None:
        rate, ratio = speed.images / speed.ours, speed.ours / speed.original
        console.print(f"vision tower, {speed.images} images: {speed.ours:.3f} s ({rate:.1f} images/s)")
        console.print(f"{names[1]}: {speed.original:.3f} s; ratio {ratio:.2f}")
    with aside(options.out) as path:
        path.write_bytes(to_png_bytes(draw(differences, speed, options.tolerance, f"{variant} against {options.against}", names)))
    console.print(f"picture: {options.out}")
    return int(any(not d.error <= options.tolerance for d in differences))


if __name__ == "__main__":
    run_command(main)
