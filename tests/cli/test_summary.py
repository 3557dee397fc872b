import io
import json
from functools import cache

import pytest
from rich.console import Console

from jaxface import summary
from jaxface.errors import UserError
from jaxface.runs.command_line import read_command_line


@cache
def describe(method, *words):
    return summary.describe(read_command_line(["--config", f"configs/{method}.py", *words]))


@pytest.mark.parametrize(
    ("method", "words", "counts"),
    [
        ("lp", ["--tasks", "age"], {"trained": 1_058_825}),
        ("ap", ["--tasks", "age"], {"trained": 13_656_073, "total with a log-variance per task": 318_212_106}),
        ("ft4", ["--tasks", "age"], {"trained": 64_040_969, "total with a log-variance per task": 318_212_106}),
        ("dora", ["--encoder.precision", "bf16"], {"trained": 29_352_981, "total": 346_504_213, "merged": 320_324_629}),
        ("mtlora", ["--method.options.shared-set"], {"trained": 36_730_901, "total": 354_093_077, "merged": 329_763_861}),
        ("mtlora", [], {"trained": 34_371_605, "without gradient": 0}),
        ("mtlora_ts_dora", [], {"trained": 34_638_869}),  # of the docstring of `jaxface.adapters.methods.mtlora`, as the next two
        ("mtlora_multi_scale", [], {"trained": 45_572_129, "without gradient": 0}),
        ("mtlora_multi_scale", ["--method.options.fusion", "mlp"], {"trained": 46_552_277}),
    ],
)
def test_parameter_counts_are_the_thesis_s_to_the_digit(method, words, counts):
    found = describe(method, *words)["model"]
    assert {name: found[name] for name in counts} == counts


@pytest.mark.parametrize(
    ("method", "words", "ours", "printed"),
    [
        ("lp", ["--tasks", "age"], 0.33, "0.33"),
        ("ap", ["--tasks", "age"], 4.29, "4.29"),
        ("ft4", ["--tasks", "age"], 20.13, "20.13"),
        ("dora", [], 8.47, "8.47"),
        ("mtlora", ["--method.options.shared-set"], 10.37, "10.38"),  # 36,730,901 / 354,093,077
    ],
)
def test_the_share_that_trains_and_the_gflops_stand_beside_the_theses(method, words, ours, printed):
    found, console = describe(method, *words), Console(width=150, file=io.StringIO())
    assert found["model"]["trained, %"] == pytest.approx(ours, abs=0.005)
    summary.show(found, console)
    shown = console.file.getvalue()
    rows = {cells[0]: cells[1:] for line in shown.splitlines() if (cells := [cell.strip() for cell in line.strip("│").split("│")])[1:]}
    assert rows["trained, %"] == [f"{ours:.2f}", printed]
    assert rows["linear layers and convolution"] == ["351.63", "352.18"]
    assert rows["together"] == ["384.36", ""]
    linear, whole = ("383.30", "418.77") if method == "mtlora" else ("351.64", "384.37")
    assert rows["this model at inference, linear"] == [linear, "368.01" if method == "mtlora" else "352.18"]
    assert rows["with its attention products"] == [whole, ""]


def test_parts_and_flops_of_the_large_encoder(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["summary", "--config", "configs/lp.py", "--tasks", "age", "--json"])
    summary.main()
    printed = json.loads(capsys.readouterr().out)
    assert printed["parts"] == {
        "vision tower": 317_151_232,
        "block": 12_596_224,
        "attention pool": 12_595_200,
        "projection": 1_048_576,
        "text tower": 353_986_561,
        "both towers": 671_137_793,
    }
    assert printed["flops"]["linear"] / 1e9 == pytest.approx(351.6, abs=0.05)
    assert (printed["flops"]["linear"] + printed["flops"]["attention"]) / 1e9 == pytest.approx(384.4, abs=0.05)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--epochs", "5"], "epochs 5: it has no effect, neither parameters nor FLOPs depend on it"),
        (["--tasks", "age", "--balancing", "ema"], "balancing ema: it has no effect, the loss of one task has nothing"),
    ],
)
def test_an_option_that_changes_no_count_is_refused(words, message, monkeypatch):
    monkeypatch.setattr("sys.argv", ["summary", *words])
    with pytest.raises(UserError, match=message):
        summary.main()
