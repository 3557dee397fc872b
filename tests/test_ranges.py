"""No absurd value gets past the door: every field of every command and configuration, on the command line and from Python."""

import dataclasses
import importlib
import math
import pkgutil
import re
import sys
import typing
from collections import defaultdict
from importlib.util import find_spec
from typing import Annotated

import numpy as np
import pytest

import jaxface
import weights_convert
from jaxface import compare, evaluate, predict, prepare, zeroshot
from jaxface.cli import parse
from jaxface.data.cropping import Cropping
from jaxface.errors import UserError
from jaxface.evaluation.trust import Caution
from jaxface.models.encoder import random_encoder
from jaxface.models.variants import EncoderConfig, get_variant
from jaxface.prediction.limits import Limits
from jaxface.prediction.predictor import FaceOptions
from jaxface.ranges import RANGED, Items, Known, Place, Range, Where, Word, checked, ranged, rules_of
from jaxface.registry import Registry

for package in (jaxface, weights_convert):
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if find_spec("torch") or module.name != "jaxface.originals.torch_training":
            importlib.import_module(module.name)

NEEDED = {
    **{"run": "r", "runs": ("r",), "paths": ("p",), "source": "synthetic", "folder": "f", "out": "o", "look": ("l",), "to": "onnx"},
    **{"weights": "w", "against": "timm", "src": "a", "dst": "b", "together": "r", "single": ("a", "b")},
    **dict.fromkeys(("width", "depth", "mlp_width", "patch", "image_size", "context", "output"), 8),
    "heads": 2,
}
"""Values of fields that have no default."""

ABSURD = {
    "negative": (-1, -0.5, -(10**30)),
    "zero": (0, 0.0),
    "huge": (10**30, 1e30, "x" * 5000),
    "not finite": (math.nan, math.inf, -math.inf, [math.nan]),
    "of another type": (object(), b"x", {"../x": "../x"}, [object()], 3 + 1j),
    "a fraction": (2.5,),
    "a bool": (True,),
    "empty": ("", [], {}),
    "blank": (" ", "\t"),
    "with control characters": ("a\nb", "a\0b"),
    "path-like": ("../x", ["../x"]),
}

ACCEPTED = {  # beside a field's own default, and files and folders anywhere: the value, why it is right, and the fields that take it
    "zero": {
        "nothing of it": """Augment.flip Augment.jitter Augment.degrees Augment.translate Augment.erase Augment.strength HeadOptions.dropout
            OptimizerOptions.weight_decay FaceOptions.margin Cropping.margin compare.Options.repeats step_memory.Options.rounds
            attention_kernels.Options.rounds Reading.held_out DrawnSet.missing evaluate.Options.most_loss predict.Options.most_loss""",
        "at birth": "Caution.threshold_age",
        "the next epoch already": "OptimizerOptions.plateau_patience",
        "at every step": "Config.checkpoint_minutes",
        "every face": "FaceOptions.threshold Cropping.threshold",
        "a free one": "Limits.port",
    },
    "a fraction": {
        "a number like others": """AdapterOptions.scaling Augment.degrees Augment.mixup Augment.cutmix DrawnSet.skew
            OptimizerOptions.backbone OptimizerOptions.pool OptimizerOptions.head OptimizerOptions.plus_ratio OptimizerOptions.weight_decay
            OptimizerOptions.clip_norm Config.checkpoint_minutes input_pipeline.Options.seconds input_pipeline.Options.device_rate
            DataOptions.max_repeat Caution.threshold_age Limits.megabytes Limits.megapixels Limits.upload_seconds Limits.answer_seconds
            gpu_report.Options.minutes""",
    },
    "empty": {"the rest alone": "roofline.Options.cases prediction_speed.Options.faces", "none of its own": "Config.definitions"},
    "blank": {"as empty": "AdapterOptions.blocks", "a regular expression like others": "AdapterOptions.targets"},
    "with control characters": {"a regular expression like others": "AdapterOptions.targets"},
    "a bool": {"whether, or what is usual": "weights_convert.Arguments.averaged"},
    "path-like": {
        "looked up where it is used, which writes nothing": """EncoderOptions.attention roofline.Step.attention roofline.Options.attention
            step_profile.Options.attention Reading.path_column Reading.age_column Reading.columns export.Options.to""",
        "a regular expression like others": "AdapterOptions.targets",
    },
}


def name_of(kind):
    """A class by its name, with its module's where several have that name."""
    where = kind.__module__.removesuffix(".__main__").rpartition(".")[2]
    return f"{where}.{kind.__name__}" if kind.__name__ in ("Options", "Arguments", "Drawing", "Look", "Step") else kind.__name__


OPTIONS = [kind for kind in RANGED if kind.__name__ != "Predictor" and kind.__module__.startswith(("jaxface", "weights_convert"))]


def needed(kind):
    missing = [f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING]
    together = {"jaxface.predict": {"run": "r", "paths": ("p",), "engine": "auto"}, "jaxface.compare": {"weights": "w", "against": "timm"}}
    together["jaxface.evaluate"] = {"runs": ("r",), "engine": "auto"}
    return {name: NEEDED[name] for name in missing} | together.get(kind.__module__, {})


def is_usual(kind, field, what, value):
    """Whether the value is the field's default, a flag's other value, or a path where paths may lead anywhere."""
    default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
    value = tuple(value) if isinstance(value, list) else value
    if isinstance(value, bool):
        return isinstance(default, bool)
    if isinstance(value, int | float | str | tuple | dict) and value == default:
        return True
    rules = rules_of(typing.get_type_hints(kind, include_extras=True)[field.name])
    return what == "path-like" and any(isinstance(rule, Place) for rule in rules)


@pytest.mark.parametrize("kind", OPTIONS, ids=name_of)
def test_every_field_refuses_every_absurd_value_in_one_line_or_it_is_listed_why_not(kind):
    rest, taken, said = needed(kind), defaultdict(set), []
    for field in dataclasses.fields(kind):
        for what, values in ABSURD.items():
            for value in values:
                if is_usual(kind, field, what, value):
                    continue
                try:
                    kind(**rest | {field.name: value})
                except UserError as error:
                    said.append((field.name, str(error)))
                else:
                    taken[what].add(f"{name_of(kind)}.{field.name}")
    for name, message in said:
        assert f"{name} " in message
        assert "\n" not in message
        assert len(message) < 700
    listed = {what: {word for words in reasons.values() for word in words.split()} for what, reasons in ACCEPTED.items()}
    assert dict(taken) == {what: own for what in ABSURD if (own := {w for w in listed.get(what, ()) if w.startswith(f"{name_of(kind)}.")})}


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (predict.Options, {"limits": Limits(port=9)}, "port 9: it has no effect, it is for --serve: leave it out"),
        (predict.Options, {"content": True}, "content True: it has no effect, a job goes on where it has an --out"),
        (FaceOptions, {"faces": "whole", "margin": 0.5}, "margin 0.5: it has no effect, each photo is one face already"),
        (predict.Options, {"most_loss": 0.5}, "most_loss 0.5: it has no effect, it is for --engine auto"),
        (predict.Options, {"memory": 3}, "memory 3: it has no effect, it is for --adapters"),
        (predict.Options, {"serve": True, "paths": (), "every": 3}, "every 3: it has no effect, it is for files"),
        (evaluate.Options, {"recompute": True, "data": ("d",)}, "data d: it has no effect, no model is computed with --recompute"),
        (
            evaluate.Options,
            {"runs": (), "predictions": ("p",), "trust": Caution(coverage=0.9)},
            "coverage 0.9: it has no effect, it is for runs, not --predictions",
        ),
        (evaluate.Options, {"runs": (), "predictions": ("p",), "columns": ("age=a", "age=b")}, "columns age=a age=b: name each once"),
        (Caution, {"at_most": 0.2}, "at_most 0.2: it has no effect, it is for --threshold-age"),
        (compare.Options, {"rank": 3}, "rank 3: it has no effect, it is for --train"),
        (
            predict.Options,
            {"engine": "onnxruntime", "weights": ("w",)},
            "weights w: it has no effect, --engine onnxruntime takes",
        ),
        (evaluate.Options, {"runs": (), "predictions": ("p",), "split": "test"}, "split test: it has no effect, the labels of"),
        (evaluate.Options, {"columns": ("age=a",)}, "columns age=a: it has no effect, it is about the files of --predictions"),
        (zeroshot.Options, {"weights": "w", "photos": ("p",), "split": "train"}, "split train: it has no effect, it is for the folders"),
        (prepare.Options, {"source": "synthetic", "folder": "paint", "out": "o", "content": True}, "content True: it has no effect, drawn"),
        (Cropping, {"detector": "whole", "choose": "central"}, "crop.choose central: it has no effect, each image is one face"),
        (compare.Options, {"weights": None, "against": None, "jax": "a.py:a", "torch": "a.py:a", "repeats": 3}, "repeats 3: it has no"),
        (compare.Options, {"out": "a.json"}, "a.json: expected a name that ends in .png"),
    ],
)
def test_an_option_that_would_have_no_effect_is_refused(kind, options, message):
    needs = {predict: {"run": "r", "paths": ("p",)}, evaluate: {"runs": ("r",)}, compare: {"weights": "w", "against": "timm"}}
    rest = next((own for module, own in needs.items() if module.__name__ == kind.__module__), {})
    with pytest.raises(UserError, match=re.escape(message)):
        kind(**rest | options)


@pytest.mark.parametrize(
    ("kind", "words", "message"),
    [
        (predict.Options, "r p --memory 256", "memory 256: it has no effect, it is for --adapters"),
        (predict.Options, "r --serve --no-tracks", "tracks False: it has no effect, it is for files"),
        (predict.Options, "r p --at-most 0.01", "at_most 0.01: it has no effect, it is for --threshold-age"),
        (prepare.Options, "folders f --out o --drawn.seed 0", "drawn.seed 0: it has no effect, it is for the source synthetic"),
        (prepare.Options, "synthetic paint --out o --label label", "label label: it has no effect, it is for data sets on disk"),
    ],
)
def test_an_option_on_a_command_line_is_refused_where_it_is_idle_even_with_its_usual_value(kind, words, message):
    with pytest.raises(UserError, match=re.escape(message)):
        parse(kind, args=words.split())
    words = "r --serve --port 8000 --threshold-age 18 --at-most 0.01"
    assert parse(predict.Options, args=words.split()).trust.at_most == 0.01


def test_a_field_without_a_range_is_refused_where_it_is_defined():
    with pytest.raises(TypeError, match=r"Bare\.size: <class 'int'> has no range"):

        @ranged()
        class Bare:
            size: int = 3


def test_a_command_line_takes_classes_with_ranges_alone():
    @dataclasses.dataclass
    class Bare:
        size: int = 3

    with pytest.raises(TypeError, match="ranges"):
        parse(Bare, args=[])


@ranged("toy.")
class Toy:
    """A toy.

    Attributes:
      sizes: of its parts.
      kind: of toy.
    """

    sizes: Annotated[tuple[int, ...], Range(1, 9), Items(least=1, once=True)] = (1,)
    kind: Annotated[str, Known(Registry("toy", {"bear": 1, "doll": 2}))] = "bear"
    code: Annotated[str | None, Word(r"[a-z]\d", "a letter and a digit")] = None
    box: Where | None = None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sizes", "0"], "toy.sizes 0: expected 1 to 9"),
        (["--sizes", "3", "3"], "toy.sizes 3 3: name each once"),
        (["--sizes"], "toy.sizes (): name at least 1"),
        (["--kind", "bare"], "toy.kind bare: no toy 'bare'; known: bear, doll (nearest: bear)"),
        (["--code", "xx"], "toy.code xx: expected a letter and a digit"),
        (["--box", "a\nb"], "toy.box 'a\\nb': expected a path"),
    ],
)
def test_an_error_names_the_field_the_value_and_what_is_expected(words, message):
    with pytest.raises(UserError) as caught:
        parse(Toy, args=words)
    assert str(caught.value) == message


def test_the_help_shows_ranges_and_known_names(capsys):
    with pytest.raises(SystemExit):
        parse(Toy, args=["--help"])
    printed = " ".join(capsys.readouterr().out.replace("│", "").split())
    assert "of its parts. (default: 1; 1 to 9)" in printed
    assert "of toy. (default: bear; bear, doll)" in printed


def test_numbers_and_lists_of_other_libraries_become_plain():
    toy = Toy(sizes=[np.int64(3), 4], box="a/b")
    assert toy.sizes == (3, 4)
    assert all(type(size) is int for size in toy.sizes)
    assert toy.box.name == "b"


def test_arguments_of_functions_are_checked_alike():
    @checked
    def double(size: Annotated[int, Range(1, 9)], other: float = 0.0) -> int:
        return 2 * size

    assert double(4, other=math.nan) == 8
    with pytest.raises(UserError, match="size 10: expected 1 to 9"):
        double(10)


COMMANDS = {
    "jaxface.train": ["--optimizer.warmup-steps", "-5"],
    "jaxface.summary": ["--method.options.rank", "0"],
    "jaxface.evaluate": ["RUN", "--batch-size", "0"],
    "jaxface.predict": ["RUN", "photo.jpg", "--margin", "-0.6"],
    "jaxface.prepare": ["synthetic", "paint", "--out", "OUT", "--crop.threshold", "70"],
    "jaxface.export": ["RUN", "--to", ""],
    "jaxface.report.__main__": ["RUN", "--out", "a\nb"],
    "jaxface.zeroshot": ["--weights", "w.pt", "--tasks"],
    "jaxface.compare": ["--weights", "w.pt", "--against", "timm", "--repeats", "-1"],
    "jaxface.bench": ["steps", "--rounds", "0"],
    "weights_convert.__main__": ["a.pt", "b.pt", "--heads", "-1"],
}


@pytest.mark.parametrize(("module", "words"), COMMANDS.items(), ids=list(COMMANDS))
def test_each_command_refuses_a_value_out_of_range_before_anything_is_written(module, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [module, *words])
    with pytest.raises(UserError, match=r"expected|name at least"):
        importlib.import_module(module).main()
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def encoder():
    return random_encoder(get_variant("PE-Mini-10-60"), 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda e: jaxface.adapt(e, "dora", rank=2.5), "adapter rank 2.5: expected a whole number"),
        (lambda e: jaxface.adapt(e, "dora", rslora=1), "adapter rslora 1: expected True or False"),
        (lambda e: jaxface.adapt(e, "dora", seed=-1), "seed -1: expected 0 to"),
        (lambda e: jaxface.adapt(e, "dor"), "no method 'dor'; known: lp"),
        (lambda e: jaxface.adapt(3, "dora"), "encoder 3: expected Encoder"),
        (lambda e: jaxface.load_encoder("w.pt", dtype="int8"), "dtype int8: expected float32, bfloat16 or float16"),
        (lambda e: jaxface.load_encoder("w.pt", remat="foo"), "no remat 'foo'; known: none, products, full"),
        (lambda e: jaxface.load_encoder("w.pt", heads=3), "heads 3: expected Heads"),
        (lambda e: jaxface.load_encoder(None), "path None: expected a path"),
        (lambda e: jaxface.load_clip("w.pt", dtype=np.int32), "expected float32, bfloat16 or float16"),
        (lambda e: jaxface.save_weights(e, "w.pt", dtype="int8"), "dtype int8: expected float32"),
        (lambda e: jaxface.load_run(3), "folder 3: expected a path"),
        (lambda e: jaxface.load_peft(e, 3), "folder 3: expected a path"),
        (lambda e: jaxface.tokenize("a", 2.5), "context_length 2.5: expected a whole number"),
        (lambda e: jaxface.tokenize([3]), "texts: expected texts, got int"),
        (lambda e: jaxface.Predictor("run", batch_size=0), "batch_size 0: expected 1 to"),
        (lambda e: jaxface.Predictor("run", FaceOptions(threshold=70)), "threshold 70: expected 0 to 1"),
        (lambda e: EncoderConfig(0, 1, 1, 1, 1, 1), "encoder width 0: expected 1 to"),
    ],
)
def test_python_calls_refuse_what_the_command_line_would(call, message, encoder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        call(encoder)
    assert message in str(caught.value)
    assert not list(tmp_path.iterdir())
