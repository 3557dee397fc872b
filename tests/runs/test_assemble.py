"""Single-task runs as one model."""

import sys
from functools import cache

import jax
import numpy as np
import pytest
from trained_run import write_trained_run

from jaxface.assemble import main
from jaxface.errors import UserError
from jaxface.runs.assemble import assemble
from jaxface.runs.model import load_run
from tiny_encoder import random_images

TASKS = ("emotion", "age", "gender")


@pytest.fixture(scope="module")
def singles(tmp_path_factory):
    """Per method a run of each task, with parts of its own."""

    @cache
    def make(method):
        folders = [tmp_path_factory.mktemp(f"{method}-{task}") for task in TASKS]
        return [
            write_trained_run(folder, method, seed=seed, tasks=(folder.name.split("-")[1][:-1],)) for seed, folder in enumerate(folders)
        ]

    return make


@pytest.mark.parametrize(("method", "assembled"), [("lp", "lp"), ("ap", "ap_per_task")])
def test_each_task_answers_as_its_own_run(singles, tmp_path, monkeypatch, capsys, method, assembled):
    monkeypatch.setattr(sys, "argv", ["assemble", *map(str, singles(method)), "--out", str(tmp_path / "all")])
    main()
    assert capsys.readouterr().out == f"wrote {tmp_path / 'all'}: {assembled} for emotion, age, gender\n"
    run = jax.jit(lambda model, images: model(images))
    together = run(load_run(tmp_path / "all")[1], random_images())
    for task, folder in zip(TASKS, singles(method), strict=True):
        alone = run(load_run(folder)[1], random_images())[task]
        # another program of the same products: the compiler may add in another order
        np.testing.assert_allclose(together[task], alone, rtol=0, atol=2e-6 * float(np.abs(alone).max()))
    assert not np.array_equal(together["age"][:, :2], together["gender"])


def test_what_does_not_fit_together_is_refused(singles, tmp_path):
    lp, ap = singles("lp"), singles("ap")
    other = write_trained_run(tmp_path, "dora", tasks=("age",))
    for runs, message in (
        (lp[:1], "at least two runs"),
        ([lp[0], ap[1]], "differ in their method"),
        ([lp[0], tmp_path / "nowhere"], "not a run folder"),
        ([other, lp[0]], "is dora: only lp and ap"),
    ):
        with pytest.raises(UserError, match=message):
            assemble(runs, tmp_path / "out")
    assert not (tmp_path / "out").exists()
