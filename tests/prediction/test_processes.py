"""A job in several processes of one machine."""

import os
import sys

import pytest

from jaxface.errors import UserError
from jaxface.prediction.processes import commands, run_all


@pytest.mark.parametrize("told", [["--processes", "2"], ["--processes=2"]])
def test_each_process_has_the_jobs_words_and_a_shard(told):
    first, second = commands(["run", *told, "photos", "--out", "o.csv"], 2)
    assert first[1:] == ["-m", "jaxface.predict", "run", "photos", "--out", "o.csv", "--shard", "0/2"]
    assert second[-1] == "1/2"


def test_processes_part_the_cores_and_a_failure_is_one_line(tmp_path):
    script = "import os, sys; print(sorted(os.sched_getaffinity(0)), file=open(sys.argv[1], 'w')); sys.exit(int(sys.argv[2]))"
    waits = "import time; time.sleep(0.3); " + script  # until its cores have been parted
    with pytest.raises(UserError, match=r"shards 1/2 \(status 3\) did not end well; the same command goes on"):
        run_all([[sys.executable, "-c", waits, str(tmp_path / str(index)), str(3 * index)] for index in range(2)])
    parts = [set(eval((tmp_path / str(index)).read_text())) for index in range(2)]
    assert parts[0] | parts[1] == os.sched_getaffinity(0)
    assert not parts[0] & parts[1] or len(os.sched_getaffinity(0)) < 2
