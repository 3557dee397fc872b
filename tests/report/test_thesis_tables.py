"""The printed figures, and the contradictions among them."""

import pytest

from jaxface.report import thesis_tables
from jaxface.report.thesis_tables import THESIS, Table, contradictions, recompute


def found(**wanted):
    return [entry for entry in contradictions() if all(getattr(entry, name) == value for name, value in wanted.items())]


def test_every_row_has_a_value_for_each_column():
    assert len({table.number for table in THESIS}) == len(THESIS)
    for table in THESIS:
        assert all(len(values) == len(table.columns) for values in table.rows.values()), table.number


@pytest.mark.parametrize(
    ("model", "setting", "column", "mean"),
    [
        ("ZS", "single", "age/average", 47.36),
        ("DoRA", "single", "gender/average", 97.57),
        ("MTLoRA", "multi", "age/average", 64.03),
        ("DoRA", "multi", "overall", 84.08),
    ],
)
def test_printed_means_come_out_again_from_what_they_average(model, setting, column, mean):
    own = [table for table in THESIS if table.setting in (setting, "")]
    computed = recompute(model, column, own)
    printed = next(value for table in own if (value := table.value(model, column)) is not None)
    assert computed == pytest.approx(mean, abs=0.006)
    assert abs(computed - printed) <= thesis_tables.ROUNDING + 1e-9


@pytest.mark.parametrize(
    ("model", "column", "table", "printed", "other"),
    [
        ("ZS", "age/utkface", "section 4.2", 48.72, 48.62),
        ("LP", "age/average", "4.5", 61.28, 61.62),  # averages of the data sets that do not come out
        ("AP", "age/average", "4.5", 61.47, 61.58),
        ("ZS", "overall", "4.12", 69.61, 70.20),
        ("LP", "overall", "4.12", 78.76, 81.24),
        ("LP", "emotion/average", "4.12", 84.91, 84.82),
        ("FT4", "overall", "4.14", 80.56, 82.94),  # the same figure, printed differently elsewhere
        ("MTLoRA", "overall", "4.14", 83.89, 83.86),
        ("MTLoRA", "overall", "section 4.4.5", 83.88, 83.86),
        ("LP", "emotion/rafdb", "4.8", 84.82, 84.32),  # the same probe, single- and multi-task
        ("LP", "age/fairface", "4.9", 61.00, 61.69),
        ("ZS", "parameters/total", "4.3", 671_137_793, 672_198_667),
    ],
)
def test_a_known_contradiction_is_found(model, column, table, printed, other):
    assert [
        entry.other
        for entry in found(model=model, column=column, table=table, printed=printed)
        if entry.other == pytest.approx(other, abs=0.006)
    ]


def test_figures_that_agree_are_not_accused():
    assert not found(model="DoRA")
    assert not found(column="gender/average")
    assert not found(model="FT4", column="emotion/average")  # 88.42 and 88.43: rounding


def test_a_contradiction_says_where_and_what():
    text = str(found(model="FT4", column="overall", table="4.14", other=82.94)[0])
    assert text == "FT4, overall: Table 4.14 prints 80.56, but Table 4.7 prints 82.94"


def test_a_mean_of_figures_that_are_not_printed_is_not_guessed():
    assert recompute("LoRA", "overall", [table for table in THESIS if table.number == "4.13"]) is None


def test_a_table_that_contradicts_nothing_gives_an_empty_list():
    table = Table("1", "", ("age/utkface", "age/fairface", "age/average"), {"A": (60.0, 61.0, 60.5), "B": (60.0, "-", 61.0)}, "multi")
    assert contradictions([table]) == []
