"""Programs compiled for a graphics card that is not there: what their kernels move, counted by hand, and a step where the compiler is."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

from jaxface.benchmarks._gpu_kernels import COPIES, KINDS, PRODUCTS, block_kernels
from jaxface.benchmarks._program import Program
from jaxface.benchmarks.gpu_program import main, picture, read_rows
from jaxface.errors import UserError

PROGRAM = """\
%body (p: (s32[], bf16[6,40,8], f32[40,8])) -> (s32[], bf16[6,40,8], f32[40,8]) {
  %p = (s32[], bf16[6,40,8]{2,1,0}, f32[40,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %stack = bf16[6,40,8]{2,1,0} get-tuple-element(%p), index=1
  %x = f32[40,8]{1,0} get-tuple-element(%p), index=2
  %cut = bf16[1,40,8]{2,1,0} dynamic-slice(%stack, %i, %i, %i), dynamic_slice_sizes={1,40,8}
  %w = bf16[40,8]{1,0} bitcast(%cut)
  %gemm = (f32[40,8]{1,0}, s8[1000]{0}) custom-call(%x, %w), custom_call_target="__cublas$gemm"
  %y = f32[40,8]{1,0} get-tuple-element(%gemm), index=0
  ROOT %t = (s32[], bf16[6,40,8]{2,1,0}, f32[40,8]{1,0}) tuple(%i, %stack, %y)
}

%condition (c: (s32[], bf16[6,40,8], f32[40,8])) -> pred[] {
  ROOT %less = pred[] parameter(0)
}

ENTRY %main (a: (s32[], bf16[6,40,8], f32[40,8])) -> (s32[], bf16[6,40,8], f32[40,8]) {
  %a = (s32[], bf16[6,40,8]{2,1,0}, f32[40,8]{1,0}) parameter(0)
  ROOT %loop = (s32[], bf16[6,40,8]{2,1,0}, f32[40,8]{1,0}) while(%a), condition=%condition, body=%body, """ + (
    'backend_config={"known_trip_count":{"n":"6"}}\n}\n'
)


def test_a_loop_s_kernels_move_one_slice_and_no_scratch_memory():
    (times, cut), (_, gemm) = block_kernels(Program.of(PROGRAM), wide=40 * 8)
    assert (times, cut.bytes, cut.kind) == (6, 2 * (40 * 8 * 2), COPIES)
    assert (gemm.bytes, gemm.kind, gemm.wide32) == (40 * 8 * (4 + 2 + 4), PRODUCTS, True)


def run(*words):
    command = [sys.executable, "-m", "jaxface.bench", "compile", "--variant", "PE-Core-T16-384", "--batch-size", "2", *words]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.skipif(find_spec("jax_cuda12_plugin") is None, reason="needs the extra gpu-compile")
def test_a_step_is_compiled_for_a_card_that_is_not_there():
    done = run("--cases", "dora", "--json")
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)
    assert (row["case"], row["device"], row["batch_size"], row["float32_products"]) == ("dora", "h100", 2, [])
    assert row["bytes_per_block"] > row["product_bytes_per_block"] > 0
    assert row["kernels_per_block"] > 50
    assert row["temporary_bytes"] > 0


@pytest.mark.skipif(find_spec("jax_cuda12_plugin") is not None, reason="the compiler is installed")
def test_without_the_compiler_one_line_says_what_to_install():
    with pytest.raises(UserError, match=r"pip install 'jaxface\[gpu-compile\]'"):
        main(["--variant", "PE-Core-T16-384", "--batch-size", "2", "--cases", "lp"])


def test_an_unknown_card_is_one_line():
    with pytest.raises(UserError, match="h100"):
        main(["--device", "h1000"])


def test_a_picture_stands_beside_what_an_earlier_program_moved(tmp_path):
    row = {"case": "dora", "bytes_by_kind": dict.fromkeys(KINDS, 2e9)}
    (earlier := tmp_path / "earlier.jsonl").write_text(json.dumps(row | {"bytes_by_kind": dict.fromkeys(KINDS, 3e9)}) + "\n")
    axes = picture([row], read_rows(earlier)).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["dora, before", "dora"]
    assert [text.get_text().strip() for text in axes.texts] == ["15.0", "10.0"]
    earlier.write_text('{"case": "dora"}\n')
    with pytest.raises(UserError, match=r"--before .*earlier.jsonl"):
        read_rows(earlier)
