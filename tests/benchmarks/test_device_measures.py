"""What is measured where a graphics card computes: its own time and memory, beside a rival that may not fit."""

import gzip
import json
import sys
from types import SimpleNamespace

import pytest

from jaxface.benchmarks import _worker, step_profile, steps
from jaxface.benchmarks._program import Program
from jaxface.errors import UserError
from jaxface.progress import Track

MIB = 2**20


def test_a_profile_counts_what_the_device_did_and_not_the_host_that_told_it(tmp_path):
    (folder := tmp_path / "plugins" / "profile" / "now").mkdir(parents=True)
    names = [
        {"ph": "M", "pid": pid, "name": "process_name", "args": {"name": name}} for pid, name in ((1, "/device:GPU:0"), (9, "/host:CPU"))
    ]
    ran = [{"ph": "X", "pid": pid, "name": "x", "dur": 1e6 * pid, "args": {"hlo_op": "dot.1"}} for pid in (1, 9)]
    for known, expected in ((names, [("dot.1", 1.0)]), (names[1:], [("dot.1", 1.0), ("dot.1", 9.0)])):  # the second: no device but the host
        (folder / "vm.trace.json.gz").write_bytes(gzip.compress(json.dumps({"traceEvents": [*known, *ran]}).encode()))
        assert list(step_profile.events(tmp_path)) == expected


def test_the_memory_of_a_process_is_its_card_s_where_it_has_one(monkeypatch):
    assert _worker.peak_memory() > 50 * MIB  # of this process on a processor
    on_card = SimpleNamespace(memory_stats=lambda: {"peak_bytes_in_use": 7 * MIB})
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "jax", SimpleNamespace(local_devices=lambda: [on_card]))
    assert _worker.peak_memory() == 7 * MIB
    cuda = SimpleNamespace(is_initialized=lambda: True, max_memory_allocated=lambda: 5 * MIB)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    assert _worker.peak_memory() == 5 * MIB


class FakeWorker:
    """Takes 2 s; a rival's raises what `error` says."""

    error = ""

    def __init__(self, maker, case, shape):
        self.rival = maker is steps.REFERENCES["torch"]

    def __enter__(self):
        if self.rival:
            raise UserError(self.error)
        return self

    def __exit__(self, *_):
        pass

    def run(self):
        return 2.0

    def peak_memory(self):
        return 3 * MIB


def test_a_rival_that_does_not_fit_beside_ours_leaves_ours_measured_and_another_fault_ends_it(monkeypatch, capsys):
    monkeypatch.setattr(steps, "Worker", FakeWorker)
    monkeypatch.setattr(FakeWorker, "error", "reference_case dora: OutOfMemoryError: CUDA out of memory. Tried to allocate 1 GiB")
    steps.main(["--against", "torch", "--cases", "dora", "--rounds", "1"])
    printed = capsys.readouterr().out
    assert "2.000" in printed
    assert "dora: reference_case dora: OutOfMemoryError" in printed
    monkeypatch.setattr(FakeWorker, "error", "the original takes timm")
    with pytest.raises(UserError, match="takes timm"), Track("steps", 1) as track:
        steps.measure(steps.Options(against="torch", cases=("dora",), rounds=1), "dora", track)


def test_an_operation_that_others_run_beside_is_counted_once_and_for_its_part():
    program = Program.of("""\
%cut (p: f32[6,40], i: s32[]) -> f32[1,40] {
  %p = f32[6,40]{1,0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %c = f32[1,40]{1,0} dynamic-slice(%p, %i, %i), dynamic_slice_sizes={1,40}
}

ENTRY %main (a: f32[6,40], i: s32[]) -> f32[1,40] {
  %a = f32[6,40]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %start = ((f32[6,40]{1,0}, s32[]), f32[1,40]{1,0}, u32[]) fusion-start(%a, %i), kind=kLoop, calls=%cut
  ROOT %done = f32[1,40]{1,0} fusion-done(%start)
}
""")
    assert program.count().bytes == 2 * 40 * 4 + 4  # the row that is read and written, and its number
