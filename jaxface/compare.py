"""python -m jaxface.compare: a JAX model beside its PyTorch original, every value within the original's own rounding, with a certificate.

python -m jaxface.compare --weights FILE --against meta|timm|open_clip
python -m jaxface.compare --jax FILE.py:make --torch FILE.py:make
"""

from __future__ import annotations

import typing
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np

from jaxface.cli import parse
from jaxface.data.framing import PLAIN
from jaxface.errors import UserError, run_command, tell
from jaxface.files import require_suffix
from jaxface.models.variants import VARIANTS
from jaxface.ranges import Items, Known, Range, Where, Word, ranged, refuse_idle

if TYPE_CHECKING:
    from jaxface.originals.certificate import Certificate


Maker = Annotated[str, Word(r".+\.py:\w+", "FILE.py:NAME, a function of a Python file")]
"""Makes a model."""
Run = Literal["lp", "ap", "ft4", "lora", "lora+", "dora", "full"]
"""One of `jaxface.originals.training_parity.RUNS`."""


@ranged()
class Options:
    """Compares a JAX model with its PyTorch original; exit status 1 if a value is further from the original than its budget.

    Attributes:
      weights: a checkpoint in any layout; of two models of your own, what `make` is given.
      against: the original: Meta's code, timm, or open_clip (both towers).
      their_weights: the original's checkpoint, where it is another one.
      jax: instead of an encoder: FILE.py:NAME, a function that makes an NNX module.
      torch: FILE.py:NAME, a function that makes the torch module to compare it with.
      meta_code: a checkout of facebookresearch/perception_models, for Meta's.
      photos: photos, or folders of them; without any, random images.
      batch_size: images.
      image_size: side in pixels, 0 for the model's own, or 224; of a Perception Encoder another one is for Meta's code alone.
      tolerance: one budget for every value; without one, twice the original's own error.
      repeats: of the timing; 0 leaves it out.
      train: steps of training runs, ours and timm's with PEFT and torch, that are compared as well; 0 for none.
      methods: how they train.
      train_size: side in pixels of their images, 0 for the model's own.
      rank: of their adapters.
      gradients: compare what comes back, too: the gradients by what every module gives, by parameters and by images.
      show: attention maps and patch features of both: as values, and as a picture OUT.maps.png and on the page.
      dtype: of our side, and of the original's own run that sets the budget.
      variant: what the checkpoint is, where its tensors do not tell.
      heads: attention heads, where the checkpoint's shape is no variant's.
      json: print the certificate and nothing else.
      out: the picture to write; the certificate (.json) and its page (.html) stand beside it.
    """

    weights: Where | None = None
    against: Literal["meta", "timm", "open_clip"] | None = None
    their_weights: Where | None = None
    jax: Maker | None = None
    torch: Maker | None = None
    meta_code: Where | None = None
    photos: tuple[Where, ...] = ()
    batch_size: Annotated[int, Range(1, 1024)] = 4
    image_size: Annotated[int, Range(0, 8192)] = 0
    tolerance: Annotated[float | None, Range(above=0, high=1)] = None
    repeats: Annotated[int, Range(0, 1000)] = 5
    train: Annotated[int, Range(0, 100_000)] = 0
    methods: Annotated[tuple[Run, ...], Items(least=1)] = typing.get_args(Run)
    train_size: Annotated[int, Range(0, 8192)] = 0
    rank: Annotated[int, Range(1, 4096)] = 8
    gradients: bool = False
    show: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"
    variant: Annotated[str | None, Known(VARIANTS)] = None
    heads: Annotated[int | None, Range(1, 1024)] = None
    json: bool = False
    out: Where = Path("compare.png")

    def __post_init__(self) -> None:
        files, built_in = (self.jax, self.torch), (self.weights, self.against)
        if any(files) and (None in files or self.against is not None):
            raise UserError("--jax and --torch go together, and without --against")
        if not any(files) and None in built_in:
            raise UserError("expected --weights and --against, or --jax and --torch")
        if self.show and any(files):
            raise UserError("--show draws what a built-in encoder attends to: expected --weights and --against")
        if self.train and (self.against != "timm" or self.their_weights is not None):
            raise UserError("--train compares runs from the same --weights with timm's: expected --against timm, without --their-weights")
        refuse_idle(self, self.train > 0, "it is for --train", "methods", "train_size", "rank")
        refuse_idle(self, self.against == "meta", "it is for --against meta", "meta_code")
        refuse_idle(self, self.against is not None, "it is for checkpoints of --against", "variant", "heads")
        refuse_idle(self, self.against is not None or not self.repeats, "models of --jax and --torch are not timed", "repeats")
        require_suffix(self.out, ".png")  # certificate and page stand beside it under their own


SENTENCES = ("a photo of a face", "A photo of a person between 20-29 years old", "two dogs on a beach, in the rain")


def read_pixels(options: Options, size: int, count: int, framing: str = PLAIN) -> np.ndarray:
    """Up to `count` photos as uint8 [B, size, size, 3], or so many random images."""
    from jaxface.data.photos import find_photos, read_photos

    if not options.photos:
        return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)
    return read_photos(find_photos(options.photos)[:count], size, framing)


def read_images(options: Options, size: int, framing: str = PLAIN) -> np.ndarray:
    """The images [B, size, size, 3] in -1..1."""
    return read_pixels(options, size, options.batch_size, framing).astype(np.float32) / 127.5 - 1


def check(
    model: Any,
    original: Any,
    *inputs: np.ndarray,
    names: Mapping[str, str] | None = None,
    tolerance: float | None = None,
    gradients: bool = False,
) -> Certificate:
    """Asserts that an NNX module equals a torch module on the inputs, for a test; see `jaxface.originals.pairs.made_pair`.

    Args:
      gradients: whether what comes back has to be equal, too: the gradients by what modules give, by parameters and by inputs.

    Returns:
      the certificate.

    Raises AssertionError that names the first value beyond its budget.
    """
    from jaxface.originals.certificate import certify
    from jaxface.originals.pairs import made_pair

    return asserted(certify(made_pair(model, original, inputs, names, gradients), tolerance=tolerance))


def check_optimizer(ours: Any, theirs: Any, *, steps: int = 20) -> Certificate:
    """Asserts that an optax optimizer moves parameters as a torch one does, step by step; see `jaxface.originals.optimizers`.

    Args:
      ours: an `optax.GradientTransformation`, its schedule within.
      theirs: a function that makes the torch optimizer of a list of parameters, or that and a schedule of its rates.

    Returns:
      the certificate.

    Raises AssertionError that names the first step that differs.
    """
    from jaxface.originals.certificate import certify
    from jaxface.originals.optimizers import optimizer_pair

    return asserted(certify(optimizer_pair(ours, theirs, steps)))


def asserted(found: Certificate) -> Certificate:
    """The certificate of two that are equal. Raises AssertionError that names the first value beyond its budget."""
    if found.first_departure is not None:
        layer = next(layer for layer in found.layers if layer.name == found.first_departure)
        raise AssertionError(f"{layer.name}: error {layer.error:.2e}, budget {layer.budget:.2e}; {found.cause or 'no cause found'}")
    return found


def compare_towers(options: Options) -> tuple[Certificate, Any, str, Any]:
    """The certificate of an encoder or both towers, the speed or None, the variant's name, and the picture of maps or None."""
    from jaxface.models.tokenizer import tokenize
    from jaxface.originals.certificate import certify
    from jaxface.originals.comparison import measure
    from jaxface.originals.pairs import tower_pair
    from jaxface.originals.reference import build_original
    from jaxface.runs.parts import fingerprint
    from jaxface.weights import load_clip, load_encoder
    from weights_convert.checkpoint import read_checkpoint
    from weights_convert.towers import Heads

    assert options.weights is not None
    assert options.against is not None
    checkpoint = read_checkpoint(options.weights, config=options.variant, heads=Heads(vision=options.heads))
    towers, other = checkpoint.towers, options.their_weights
    theirs = checkpoint if other is None else read_checkpoint(other, config=towers, heads=Heads(vision=options.heads))
    images = read_images(options, options.image_size or towers.vision.image_size, towers.vision.framing)
    original = build_original(options.against, towers, theirs.tensors, options.meta_code)
    native = towers.vision.image_size
    if not original.any_size and images.shape[1:3] != (native, native):
        raise UserError(
            f"images of {images.shape[1]} x {images.shape[2]}: timm and open_clip rescale its rotary positions at other sizes than its "
            f"{native} x {native}; compare with Meta's code (--against meta --meta-code DIR)"
        )
    for module in original.modules:
        module.float()
    load = load_encoder if towers.text is None else load_clip
    model = load(options.weights, dtype=options.dtype, config=towers)
    ids = tokenize(SENTENCES, towers.text.context) if towers.text else None
    if ids is not None and towers.text is not None and ids.max() >= towers.text.vocabulary:
        ids = ids % towers.text.vocabulary  # a small model's vocabulary, for which no text means anything
    speed = measure(model, original, images, options.repeats) if options.repeats else None
    about = {"variant": towers.name, "original": options.against, "images": list(images.shape)}
    about |= {"weights": fingerprint(checkpoint.tensors), "their_weights": fingerprint(theirs.tensors)}
    pair = tower_pair(model, original, options.against, towers, images, ids, options.gradients)
    found = certify(pair, options.dtype, options.tolerance, about)
    maps = None
    if options.show:
        beside, maps = shown(options, getattr(model, "visual", model), original, images)
        found = found.joined(beside)
    return trained(options, found, towers) if options.train else found, speed, towers.name, maps


def shown(options: Options, encoder: Any, original: Any, images: np.ndarray) -> tuple[Certificate, Any]:
    """The certificate of attention maps, and the picture of both models' on the images whose maps are furthest apart."""
    from jaxface.originals.certificate import certify
    from jaxface.originals.maps import maps_pair, original_maps, our_maps, worst_first
    from jaxface.report.maps import draw_grid, maps_columns

    found = certify(maps_pair(encoder, original, images), options.dtype, options.tolerance)
    ours, theirs = our_maps(encoder, images), original_maps(original, images, options.dtype)
    rows, columns = worst_first(ours, theirs)[:4], {}
    photos = np.clip((images[rows] + 1) * 127.5, 0, 255).round().astype(np.uint8)
    for name, maps in {"ours": ours, options.against or "": theirs}.items():
        given = {"block": maps[f"blocks.{encoder.config.depth - 1}.attn.map"], "tokens": maps["tokens"]}
        given |= {"pool": maps["pool.map"][:, :, 0]} if "pool.map" in maps else {}
        made = maps_columns(photos, {key: x[rows] for key, x in given.items()}, encoder.config, like=theirs["tokens"][rows])
        columns |= {f"{title}: {name}": pictures for title, pictures in made.items()}
    return found, draw_grid({"image": list(photos), **dict(sorted(columns.items()))})


def trained(options: Options, found: Certificate, towers: Any) -> Certificate:
    """The certificate with what came of training runs from the same weights."""
    from jaxface.models.encoder import at_size
    from jaxface.originals.training_parity import compare_training
    from jaxface.weights import load_encoder

    assert options.weights is not None
    encoder = load_encoder(options.weights, config=towers)
    size = options.train_size or towers.vision.image_size
    photos = read_pixels(options, size, min(options.train * options.batch_size, 1000), towers.vision.framing)
    rules = {"methods": options.methods, "batch_size": options.batch_size, "rank": options.rank}
    return found.with_training(
        compare_training(at_size(encoder, size), photos, options.train, **rules, told=lambda method: tell(f"training: {method}"))
    )


def compare_files(options: Options) -> tuple[Certificate, Any, str, Any]:
    """The certificate of two models that the user's functions make, None, the name of ours, and None."""
    from jaxface.originals.certificate import certify
    from jaxface.originals.pairs import files_pair

    assert options.jax is not None
    assert options.torch is not None
    images = read_images(options, options.image_size or 224)
    pair = files_pair(options.jax, options.torch, (images,), options.weights, options.their_weights, options.gradients)
    return (
        certify(pair, options.dtype, options.tolerance, {"jax_model": options.jax, "torch_model": options.torch}),
        None,
        options.jax,
        None,
    )


def main() -> int:
    """Prints the table or the certificate, writes picture, certificate and page, and returns 1 if a value is beyond its budget."""
    options = parse(Options, prog="python -m jaxface.compare", description=__doc__)
    found, speed, ours, maps = compare_towers(options) if options.jax is None else compare_files(options)
    from jaxface.files import aside, to_json, write_json
    from jaxface.originals.comparison import draw, draw_training
    from jaxface.plots import to_png_bytes
    from jaxface.report.certificate import certificate_page, show_certificate

    theirs = options.against or options.torch or ""
    title, names = f"{ours} against {theirs}", ("jaxface" if options.jax is None else "JAX", options.against or "torch")
    value, figure = found.to_json(), draw(found, speed, title, names)
    runs = draw_training(found.training) if found.training else None
    with aside(options.out) as path:
        path.write_bytes(to_png_bytes(figure))
    if maps is not None:
        with aside(options.out.with_suffix(".maps.png")) as path:
            path.write_bytes(to_png_bytes(maps))
    departing = [layer.name for layer in found.layers if layer.departs]
    with aside(options.out.with_suffix(".html")) as path:
        path.write_text(certificate_page(title, value, departing, figure, runs, maps), encoding="utf-8")
    write_json(options.out.with_suffix(".json"), value)
    if options.json:
        print(to_json(value))
    else:
        show_certificate(title, value, departing, speed, names)
        print(f"picture: {options.out}; certificate: {options.out.with_suffix('.json')}; page: {options.out.with_suffix('.html')}")
    return int(found.verdict != "equal")


if __name__ == "__main__":
    run_command(main)
