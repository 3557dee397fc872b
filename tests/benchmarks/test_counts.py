"""What the benchmarks count: FLOPs and bytes of programs, and of methods by hand."""

import importlib
import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from jaxface.benchmarks import BENCHMARKS, mixed_adapters, roofline, scaling, step_memory, step_profile
from jaxface.benchmarks._limits import WORK, Machine, Setting, Work
from jaxface.benchmarks._prediction import ACCELERATORS, prediction
from jaxface.benchmarks._program import count
from jaxface.errors import UserError
from jaxface.models.variants import get_variant
from jaxface.training.capacity import compile_step

MINI = roofline.Options(variant="PE-Mini-10-60", batch_size=4, rank=16)


def test_products_in_a_loop_count_as_often_as_the_loop_runs_and_slices_as_what_they_cut_out():
    weights, x = jnp.ones((7, 64, 64)), jnp.ones((32, 64))

    def run(x, weights):
        def body(x, w):
            y = jnp.sin(x @ w)
            return y, y

        return jax.lax.scan(body, x, weights)

    compiled = jax.jit(run).lower(x, weights).compile()
    found = count(compiled)
    assert found.flops == 7 * 2 * 32 * 64 * 64
    assert found.flops_once == 2 * 32 * 64 * 64
    assert compiled.cost_analysis()["flops"] == pytest.approx(found.flops_once, rel=0.1)
    assert compiled.cost_analysis()["bytes accessed"] == pytest.approx(found.bytes_once, rel=0.3)
    assert 1 < found.bytes / (weights.nbytes + 7 * x.nbytes) < 6  # every weight once, and some passes over x


@pytest.mark.parametrize("case", ["dora", "full"])
def test_the_count_by_hand_is_that_of_the_compiled_step(case):
    compiled = compile_step(MINI.config(case), MINI.batch_size)
    found, by_hand = count(compiled), WORK[case](MINI.setting())
    assert found.flops == pytest.approx(by_hand.flops, rel=0.06)
    assert found.bytes > by_hand.bytes


def test_methods_cost_what_their_gradients_ask_for():
    setting = Setting(get_variant("PE-Core-L14-336"), 336, 128, dtype=jnp.bfloat16)
    work = {case: WORK[case](setting).flops / WORK["forward"](setting).flops for case in WORK}
    assert work["lp"] == pytest.approx(1, abs=0.001)
    assert 1 < work["ft4"] < work["lora"] == work["dora"] < work["mtlora"] < work["full"]
    assert work["full"] == pytest.approx(3, abs=0.06)  # attention's weights are formed once more
    assert WORK["forward"](setting).flops / 128 == pytest.approx(384.36e9, rel=1e-3)  # as `jaxface.summary` has it
    assert WORK["forward"](replace(setting, images=256)).flops == 2 * WORK["forward"](setting).flops


def test_a_machine_s_limit_is_the_longer_of_two_times():
    machine = Machine("", flops=100.0, bytes=10.0)
    assert machine.seconds(Work(200.0, 10.0)) == {"products": 2.0, "memory": 1.0}


def test_predictions_are_marked_and_summing_gradients_takes_a_share_that_grows():
    lines = [line for line in prediction() if line["device"] == "H100 SXM" and line["case"] == "dora"]
    assert all(line["prediction"] is True for line in lines)
    shares = [line["reduce_seconds"] / line["seconds"] for line in lines]
    assert shares == sorted(shares)
    assert shares[0] == 0 < shares[1]
    assert ACCELERATORS[0].reduce_seconds(32e9, 2) == pytest.approx(1.0)


def test_powers_and_bends_of_known_curves():
    line = [{"value": x, "seconds": 3.0 * x} for x in (1, 2, 4, 8)]
    square = [{"value": x, "seconds": x * x} for x in (1, 2, 4, 8)]
    assert scaling.exponent(line, "seconds") == pytest.approx(1)
    assert scaling.exponent(square, "seconds") == pytest.approx(2)
    assert scaling.straightness(line, "seconds") < 1e-9 < 0.05 < scaling.straightness(square, "seconds")


def test_the_benchmarks_run_and_print_a_line_a_case(capsys, tmp_path):
    roofline.main(
        ["--variant", MINI.variant, "--batch-size", "2", "--cases", "forward", "--rounds", "1", "--plot", str(tmp_path / "a.png"), "--json"]
    )
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    measured = lines[1]
    assert measured["case"] == "forward"
    assert measured["share"] > 0
    assert measured["limit"] in ("products", "memory")
    assert all(line["prediction"] for line in lines[2:])
    assert (tmp_path / "a.png").stat().st_size > 1000
    step_memory.main(
        [
            "--variant",
            MINI.variant,
            "--method",
            "ap",
            "--batch-size",
            "2",
            "--rounds",
            "0",
            "--remat",
            "none",
            "--base",
            "full",
            "int8",
            "--json",
        ]
    )
    full, int8 = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    kernels = 5 * 12 * 128 * 128
    assert full["argument_bytes"] - int8["argument_bytes"] == pytest.approx(3 * kernels, rel=0.05)
    assert int8["temporary_bytes"] - full["temporary_bytes"] < 4 * kernels


def test_a_step_is_held_against_what_the_machine_did_just_before_it(monkeypatch):
    work, rates, shares = WORK["forward"](MINI.setting()).flops, (1e9, 5e9, 2e9), (0.5, 0.9, 0.7)
    machines = iter([Machine("", rate, 1e30) for rate in rates])

    def turns(cases, rounds):
        for _ in range(rounds):
            cases["machine"]()
        return {"forward": [work / rate / share for rate, share in zip(rates, shares, strict=True)]}

    monkeypatch.setattr(roofline, "interleaved", turns)
    row = roofline.measure("forward", replace(MINI, rounds=3), lambda: next(machines))
    assert row["share"] == pytest.approx(0.7)  # the median of the ratios, however the machine's rate went
    assert row["machine_gflops"] == 2


@pytest.mark.parametrize("command", [roofline, scaling, mixed_adapters, step_profile])
def test_no_round_is_one_line(command):
    with pytest.raises(UserError, match="rounds 0: expected 1 to 100000"):
        command.main(["--rounds", "0", "--variant", MINI.variant])


def test_a_profile_holds_every_product_of_the_step_as_often_as_it_ran(capsys):
    step_profile.main(["--variant", MINI.variant, "--batch-size", "4", "--rank", "16", "--rounds", "2", "--json"])
    kinds = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert sum(kind["flops"] for kind in kinds) == pytest.approx(count(compile_step(MINI.config("dora"), 4)).flops)
    assert kinds == sorted(kinds, key=lambda kind: -kind["seconds"])
    assert {kind["operation"].split()[0] for kind in kinds} > {"product"}


def test_a_profile_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    for words, message in ((["--trace", str(tmp_path / "file")], "expected a folder"), (["--batch-size", "0"], "expected 1 to")):
        with pytest.raises(UserError, match=message):
            step_profile.main(words)


def test_words_that_the_benchmarks_do_not_know_are_one_line():
    for command, words in (
        (roofline, ["--cases", "lorra"]),
        (step_profile, ["--case", "lorra"]),
        (scaling, ["--axes", "width"]),
        (step_memory, ["--base", "int4"]),
    ):
        with pytest.raises(UserError, match="known: "):
            command.main(words)


@pytest.mark.parametrize(
    ("name", "words", "idle"),
    [
        ("steps", "--compile", "compile True"),
        ("attention", "--variants PE-Core-L14-336:4", "variants PE-Core-L14-336:4"),
        ("attention", "--against torch --dtypes bf16", "dtypes bf16"),
        ("compile", "--before x.json", "before x.json"),
        ("compile", "--kinds 3 --json", "kinds 3"),
        ("roofline", "--cases --plot x.png", "plot x.png"),
        ("predict", "--faces --batches 2", "batches 2"),
    ],
)
def test_an_option_of_a_benchmark_that_would_have_no_effect_is_refused(name, words, idle):
    with pytest.raises(UserError, match=f"{idle}: it has no effect, .*: leave it out"):
        importlib.import_module(f"jaxface.benchmarks.{BENCHMARKS.get(name)}").main(words.split())
