"""Options without an effect: those that somebody gave are refused, those of a configuration file told."""

import pytest

from jaxface.adapters.options import AdapterOptions
from jaxface.cli import given_options
from jaxface.data.augment import Augment
from jaxface.errors import UserError
from jaxface.runs.config import Config, DataOptions, EncoderOptions, MethodOptions, OptimizerOptions
from jaxface.runs.idle_options import idle_options, of_model, refuse_or_tell
from jaxface.runs.model import shapes_of

SPACED = OptimizerOptions(backbone=1e-3, pool=1e-3, plus_ratio=2)


@pytest.mark.parametrize(
    ("options", "idle"),
    [
        ({}, set()),
        ({"tasks": ("age",), "balancing": "ema"}, {"balancing"}),
        ({"tasks": ("age",)}, set()),
        ({"data": DataOptions(augment=False, changes=Augment(flip=0, strength=1))}, {"data.changes.flip", "data.changes.strength"}),
        (
            {"data": DataOptions(changes=Augment(strength=1, erase=0, erase_area=(0, 1)))},
            {"data.changes.strength", "data.changes.erase_area"},
        ),
        ({"data": DataOptions(changes=Augment(strength=1, operations=2))}, set()),
        ({"optimizer": OptimizerOptions(weight_decay=0, decay_vectors=False)}, {"optimizer.decay_vectors"}),
    ],
)
def test_options_that_a_choice_leaves_without_effect_are_known(options, idle):
    assert idle_options(Config(**options)).keys() == idle


@pytest.mark.parametrize(
    ("method", "variant", "options", "idle"),
    [
        ("lp", "PE-Mini-10-60", {}, {"backbone", "pool", "plus_ratio"}),
        ("ap", "DINOv3-Mini-10-60", {}, {"backbone", "plus_ratio"}),
        ("lora", "DINOv3-Mini-10-60", {"pool_inputs": True}, {"pool", "pool_inputs"}),
        ("dora", "PE-Mini-10-60", {"targets": r"blocks\..*mlp\.fc", "split_qkv": True}, {"pool", "split_qkv"}),
        ("dora", "PE-Mini-10-60", {"pool_inputs": True, "split_qkv": True}, set()),
    ],
)
def test_rates_and_adapter_options_that_nothing_takes_are_known_of_the_model(method, variant, options, idle):
    config = Config(
        encoder=EncoderOptions(weights="random", variant=variant), method=MethodOptions(method, AdapterOptions(**options)), optimizer=SPACED
    )
    assert {name.split(".")[-1] for name in of_model(config, shapes_of(config))} == idle


def test_a_variant_that_is_not_the_one_of_the_weights_is_known_of_the_model():
    made = shapes_of(Config(encoder=EncoderOptions(weights="random", variant="PE-Mini-10-60"), method=MethodOptions("lp")))
    for variant, idle in (("PE-Core-L14-336", set()), ("PE-Mini-10-60", set()), ("SigLIP-Mini-10-60", {"encoder.variant"})):
        config = Config(encoder=EncoderOptions(weights="file.pt", variant=variant), method=MethodOptions("lp"))
        assert of_model(config, made).keys() == idle


def test_what_was_given_is_refused_and_what_came_with_a_file_told(capsys):
    config = Config(name="mine", tasks=("age",), balancing="ema", optimizer=OptimizerOptions(weight_decay=0, decay_vectors=False))
    refuse_or_tell(config, idle_options(config), given_options(["--optimizer.weight-decay", "0"]))
    assert "mine: balancing ema: it has no effect, the loss of one task" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"optimizer\.decay_vectors False: it has no effect, optimizer\.weight_decay is 0: leave it out"):
        refuse_or_tell(config, idle_options(config), given_options(["--optimizer.no-decay-vectors"]))
