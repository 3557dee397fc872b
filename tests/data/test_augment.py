"""Each augmentation beside torchvision's, on the same random numbers, and the numbers' distributions beside torchvision's own."""

import importlib.util
import math
from dataclasses import replace

import cv2
import numpy as np
import pytest
from faces import noise
from scipy.stats import ks_2samp

from jaxface.cli import parse
from jaxface.data.augment import Augment, affine, apply, draw, erase
from jaxface.data.framing import frame, resize
from jaxface.data.operations import OPERATIONS, brightness, contrast, draw_operations, saturation
from jaxface.data.synthetic import draw_face
from jaxface.originals.reference import import_torch
from jaxface.runs.config import Config
from jaxface.runs.saved_config import from_dict, to_dict

torch = pytest.importorskip("torch")
DRAWS = 10_000
BILINEAR = "bilinear"


@pytest.fixture(scope="module")
def vision():
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    return import_torch("torchvision.transforms.v2")[1]


@pytest.fixture(scope="module")
def image():
    """A drawn face of 256 x 240 pixels with all shades."""
    return np.ascontiguousarray(cv2.convertScaleAbs(draw_face(0, 3, size=256).image, alpha=1.15)[:, :240])


@pytest.fixture(scope="module")
def draws():
    return [draw(Augment(), np.random.default_rng((1, index))) for index in range(DRAWS)]


def to_torch(image):
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def difference(ours, theirs):
    """Mean absolute difference of uint8 [H, W, 3] and a tensor [3, H, W], in 255ths."""
    return np.abs(ours.astype(float) - theirs.numpy().transpose(1, 2, 0)).mean()


@pytest.mark.parametrize("factor", [0.8, 0.93, 1.0, 1.2])
@pytest.mark.parametrize("change", [brightness, contrast, saturation])
def test_colours_change_as_torchvision_changes_them(vision, image, change, factor):
    theirs = getattr(vision.functional, f"adjust_{change.__name__}")(to_torch(image), factor)
    assert difference(change(image, factor), theirs) < 1


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    ("angle", "shift", "zoom"), [(0, (0, 0), 1), (10, (0, 0), 1), (-7, (0.05, -0.03), 0.9), (3.3, (-0.021, 0.05), 1.1)]
)
def test_one_warp_is_torchvisions_flip_affine_and_resize(vision, image, flip, angle, shift, zoom):
    f, size = vision.functional, 336
    theirs = f.horizontal_flip(to_torch(image)) if flip else to_torch(image)
    pixels = [round(shift[0] * image.shape[1]), round(shift[1] * image.shape[0])]
    shift = pixels[0] / image.shape[1], pixels[1] / image.shape[0]
    theirs = f.affine(theirs, angle, pixels, zoom, [0.0, 0.0], interpolation=vision.InterpolationMode.BILINEAR)
    theirs = f.resize(theirs, [size, size], antialias=True)
    ours = affine(image, angle, shift, zoom, (size, size), flip=flip)
    assert difference(ours, theirs) < 2
    assert difference(affine(image, -angle - 3, shift, zoom, (size, size), flip=flip), theirs) > 4  # the measure sees a turn


def test_shrinking_first_is_near_torchvisions_affine_and_resize(vision):
    f, size, image = vision.functional, 224, draw_face(0, 3, size=400).image
    numbers = draw(Augment(jitter=0, erase=0, flip=0), np.random.default_rng(0))
    pixels = [round(numbers.shift[0] * 400), round(numbers.shift[1] * 400)]
    theirs = f.affine(to_torch(image), numbers.angle, pixels, numbers.zoom, [0.0, 0.0], interpolation=vision.InterpolationMode.BILINEAR)
    assert difference(apply(image, numbers, size), f.resize(theirs, [size, size], antialias=True)) < 2


def test_the_whole_chain_is_torchvisions(vision, image, draws):
    f, size = vision.functional, 336
    names = ("brightness", "contrast", "saturation")
    for numbers in [d for d in draws if d.hole][:5]:
        theirs = f.horizontal_flip(to_torch(image)) if numbers.flip else to_torch(image)
        for index in numbers.order:
            theirs = getattr(f, f"adjust_{names[index]}")(theirs, numbers.factors[index])
        pixels = [round(numbers.shift[0] * image.shape[1]), round(numbers.shift[1] * image.shape[0])]
        theirs = f.affine(theirs, numbers.angle, pixels, numbers.zoom, [0.0, 0.0], interpolation=vision.InterpolationMode.BILINEAR)
        theirs = f.normalize(f.to_dtype(f.resize(theirs, [size, size], antialias=True), torch.float32, scale=True), [0.5] * 3, [0.5] * 3)
        height, width = (round(share * size) for share in numbers.hole)
        top, left = (int(u * (size - side + 1)) for u, side in zip(numbers.place, (height, width), strict=True))
        theirs = f.erase(theirs, top, left, height, width, torch.zeros(1))
        ours = apply(image, numbers, size).astype(np.float32) / 127.5 - 1  # as the step normalises
        assert np.abs(ours - theirs.numpy().transpose(1, 2, 0)).mean() < 2 / 127.5


@pytest.mark.parametrize("size", [128, 336])
def test_the_exact_chain_is_the_theses_with_torchvisions_nearest_pixels_at_the_images_own_size(vision, image, draws, size):
    f = vision.functional
    exact, fast = [], []
    for numbers in draws[:6]:
        numbers = replace(numbers, factors=(1.0, 1.0, 1.0), hole=None)  # what colours and holes do is tested above
        theirs = f.horizontal_flip(to_torch(image)) if numbers.flip else to_torch(image)
        pixels = [round(numbers.shift[0] * image.shape[1]), round(numbers.shift[1] * image.shape[0])]
        theirs = f.resize(f.affine(theirs, numbers.angle, pixels, numbers.zoom, [0.0, 0.0]), [size, size], antialias=True)
        exact.append(difference(apply(image, numbers, size, exact=True), theirs))
        fast.append(difference(apply(image, numbers, size), theirs))
    assert max(exact) < 0.5 * min(fast)


def test_the_numbers_are_distributed_as_torchvisions(vision, draws):
    torch.manual_seed(0)
    plain = torch.zeros(3, 256, 256)
    jitter = vision.ColorJitter(0.2, 0.2, 0.2)
    warp = vision.RandomAffine(10, translate=(0.05, 0.05), scale=(0.9, 1.1))
    eraser = vision.RandomErasing(1.0, (0.02, 0.2), (0.3, 3.3))
    colours = [jitter.make_params([plain]) for _ in range(DRAWS)]
    warps = [warp.make_params([plain]) for _ in range(DRAWS)]
    holes = [eraser.make_params([plain]) for _ in range(DRAWS)]
    ours = [numbers for numbers in draws if numbers.hole]
    sizes = [[round(share * 256) for share in numbers.hole] for numbers in ours]
    pairs = {
        "brightness": ([d.factors[0] for d in draws], [p["brightness_factor"] for p in colours]),
        "contrast": ([d.factors[1] for d in draws], [p["contrast_factor"] for p in colours]),
        "saturation": ([d.factors[2] for d in draws], [p["saturation_factor"] for p in colours]),
        "angle": ([d.angle for d in draws], [p["angle"] for p in warps]),
        "zoom": ([d.zoom for d in draws], [p["scale"] for p in warps]),
        "shift x": ([round(d.shift[0] * 256) for d in draws], [p["translate"][0] for p in warps]),
        "shift y": ([round(d.shift[1] * 256) for d in draws], [p["translate"][1] for p in warps]),
        "height": ([height for height, _ in sizes], [p["h"] for p in holes]),
        "width": ([width for _, width in sizes], [p["w"] for p in holes]),
        "top": ([int(d.place[0] * (257 - h)) for d, (h, _) in zip(ours, sizes, strict=True)], [p["i"] for p in holes]),
        "left": ([int(d.place[1] * (257 - w)) for d, (_, w) in zip(ours, sizes, strict=True)], [p["j"] for p in holes]),
    }
    p_values = {name: ks_2samp(a, b).pvalue for name, (a, b) in pairs.items()}
    assert min(p_values.values()) > 0.01, p_values
    orders = [tuple(i for i in p["fn_idx"].tolist() if i < 3) for p in colours]
    for order in {*orders}:
        assert np.mean([d.order == order for d in draws]) == pytest.approx(1 / 6, abs=0.02)
    assert np.mean([d.flip for d in draws]) == pytest.approx(0.5, abs=0.02)
    assert np.mean([d.hole is not None for d in draws]) == pytest.approx(0.5, abs=0.02)


def test_augmentation_is_a_function_of_its_numbers_and_may_fill_a_row_of_a_batch(draws):
    image, batch = noise(40, 30), np.zeros((2, 24, 24, 3), np.uint8)
    for numbers in draws[:4]:
        alone = apply(image, numbers, 24)
        assert np.array_equal(alone, apply(image, numbers, 24))
        apply(image, numbers, 24, out=batch[1])
        assert np.array_equal(batch[1], alone)
    assert batch[0].max() == 0


def test_no_change_is_a_plain_resize():
    still = Augment(flip=0, jitter=0, degrees=0, translate=0, scale=(1, 1), erase=0)
    image = cv2.GaussianBlur(noise(48, 48), (0, 0), 4)
    for size in (48, 24, 60):
        changed = apply(image, draw(still, np.random.default_rng(0)), size)
        edge = 1 if size > 48 else 0  # where it grows, half a pixel at the edge mixes with the black outside
        inner = slice(edge, size - edge)
        assert np.abs(changed.astype(int) - resize(image, size))[inner, inner].max() <= 3


def test_erasing_makes_what_normalises_to_zero_and_stays_inside():
    image = erase(noise(50, 50), (0.3, 0.6), (0.999, 0.999))
    assert (image[35:, 20:] == 128).all()
    assert (image == 128).all(axis=-1).sum() == pytest.approx(15 * 30, abs=2)


def test_evaluation_resizes_as_pil_does():
    from PIL import Image

    for height, width, most in ((96, 72, 2), (20, 31, 0.4)):
        image = cv2.GaussianBlur(noise(height, width), (0, 0), 1.5)
        expected = np.asarray(Image.fromarray(image).resize((36, 36), Image.BILINEAR)).astype(int)
        assert np.abs(resize(image, 36) - expected).mean() < most


@pytest.mark.parametrize("shape", [(96, 72), (37, 101), (20, 31), (64, 64)])
def test_faces_and_photos_of_a_bicubic_family_are_torchvisions_of_a_pillow_image(vision, shape):
    from PIL import Image

    f, bicubic, image = vision.functional, vision.InterpolationMode.BICUBIC, noise(*shape)
    photo = Image.fromarray(image)
    squashed, middle = f.resize(photo, [36, 36], bicubic), f.center_crop(f.resize(photo, [36], bicubic), [36])
    for framing in ("bicubic-squash", "bicubic-middle"):
        assert np.array_equal(resize(image, 36, framing=framing), squashed)
    assert np.array_equal(frame(image, 36, "bicubic-squash"), squashed)
    assert np.array_equal(frame(image, 36, "bicubic-middle"), middle)
    assert np.array_equal(frame(image, 36), resize(image, 36))
    still = draw(Augment(flip=0, jitter=0, degrees=0, translate=0, scale=(1, 1), erase=0), np.random.default_rng(0))
    assert np.array_equal(apply(image, still, 36, exact=True, framing="bicubic-squash"), squashed)
    if min(shape) > 36:
        assert np.array_equal(apply(image, still, 36, framing="bicubic-middle"), squashed)


def test_solarize_turns_over_the_levels_from_the_threshold_on(vision):
    levels = np.tile(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3)
    for threshold in (0, 51, 128, 255):
        changed = OPERATIONS["solarize"].change(levels, threshold / 255)
        assert np.array_equal(changed, vision.functional.solarize(to_torch(levels), threshold).numpy().transpose(1, 2, 0))


CHANGES = [
    ("posterize", 5, lambda f, x: f.posterize(x, 5)),
    ("solarize", 0.6, lambda f, x: f.solarize(x, 0.6 * 255)),
    ("sharpness", 1.7, lambda f, x: f.adjust_sharpness(x, 1.7)),
    ("sharpness", 0.3, lambda f, x: f.adjust_sharpness(x, 0.3)),
    ("autocontrast", 0, lambda f, x: f.autocontrast(x)),
    ("equalize", 0, lambda f, x: f.equalize(x)),
    ("rotate", 17.0, lambda f, x: f.rotate(x, 17.0, interpolation=BILINEAR)),
    ("shear_x", 0.2, lambda f, x: f.affine(x, 0, [0, 0], 1, [math.degrees(math.atan(0.2)), 0], BILINEAR, center=[0, 0])),
    ("shear_y", -0.2, lambda f, x: f.affine(x, 0, [0, 0], 1, [0, math.degrees(math.atan(-0.2))], BILINEAR, center=[0, 0])),
    ("translate_x", 0.1, lambda f, x: f.affine(x, 0, [24, 0], 1, [0, 0], BILINEAR)),
    ("translate_y", -0.1, lambda f, x: f.affine(x, 0, [0, -25], 1, [0, 0], BILINEAR)),
]


@pytest.mark.parametrize(("name", "value", "theirs"), CHANGES, ids=[f"{name} {value}" for name, value, _ in CHANGES])
def test_randaugments_operations_are_torchvisions(vision, image, name, value, theirs):
    changed = OPERATIONS[name].change(image, value)
    expected = theirs(vision.functional, to_torch(image))
    assert difference(changed, expected) < 1
    assert difference(image, expected) > 1  # the operation does something
    if name in ("posterize", "solarize", "autocontrast", "equalize"):  # level by level, and the darkest exactly
        expected = expected.numpy().transpose(1, 2, 0)
        assert np.abs(changed.astype(int) - expected).max() <= (name == "autocontrast")  # whose factor is a float32 there
        assert (changed.min((0, 1)) == expected.min((0, 1))).all()


def test_randaugment_draws_every_operation_alike_and_with_torchvisions_values(vision):
    drawn = [step for index in range(3000) for step in draw_operations(2, 0.3, np.random.default_rng(index))]
    names, counts = np.unique([name for name, _ in drawn], return_counts=True)
    assert set(names) == set(OPERATIONS)
    assert np.abs(counts / len(drawn) - 1 / 14).max() < 0.012
    space = vision.RandAugment()._AUGMENTATION_SPACE
    words = {"saturation": "Color", "autocontrast": "AutoContrast"}
    for name, values in {name: {value for other, value in drawn if other == name} for name in names}.items():
        magnitudes, signed = space[words.get(name, name.title().replace("_", ""))]
        table = magnitudes(31, 1, 1)
        expected = 0.0 if table is None else float(table[9])
        offset = OPERATIONS[name].offset
        assert sorted(values) == pytest.approx(sorted({expected + offset, (-expected if signed else expected) + offset}), abs=1e-6)


def test_randaugment_is_part_of_the_chain_when_asked_for(image):
    numbers = draw(Augment(operations=2), np.random.default_rng(3))
    assert len(numbers.operations) == 2
    assert draw(Augment(), np.random.default_rng(3)).operations == ()
    assert apply(image, numbers, 64).shape == (64, 64, 3)


def test_the_strength_of_all_changes_is_part_of_a_runs_configuration():
    words = ["--data.changes.operations", "2", "--data.changes.scale", "0.8", "1.2"]
    config = parse(Config, args=words)
    assert config.data.changes == Augment(operations=2, scale=(0.8, 1.2))
    assert from_dict(Config, to_dict(config)) == config
