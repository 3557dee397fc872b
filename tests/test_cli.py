"""What every command line has in common."""

import pytest

from jaxface.cli import parse
from jaxface.errors import UserError
from jaxface.runs.config import Config


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--seed", "1", "--seed", "2"], "--seed: given twice; say it once"),
        (["--data.max-repeat=1", "--data.max_repeat", "2"], "--data.max_repeat: given twice, before as --data.max-repeat; say it once"),
        (["--report", "--no-report"], "--no-report: given twice, before as --report; say it once"),
        (["--data.fullcolor", "--data.no-fullcolor"], "--data.no-fullcolor: given twice, before as --data.fullcolor; say it once"),
    ],
)
def test_an_option_that_is_given_twice_is_refused_in_one_line(words, said):
    with pytest.raises(UserError) as caught:
        parse(Config, args=words)
    assert str(caught.value) == said


def test_options_of_one_value_are_none():
    config = parse(Config, args=["--data.max-repeat", "2", "--data.workers", "2", "--name=x"])
    assert (config.data.max_repeat, config.data.workers) == (2, 2)
