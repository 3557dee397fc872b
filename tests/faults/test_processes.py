"""Two processes of one run: what they agree on, and what happens to one when the other dies."""

import os
import signal
import socket
import subprocess
import sys

import pytest

PROCESS = """
import os, signal, sys, time
from jaxface import cluster
from jaxface.runs.config import ClusterOptions
from jaxface.cluster import connect, end_together, from_first, maximum, of_first
from jaxface.errors import UserError
from jaxface.training.stopping import StopRequest

cluster.SILENCE, cluster.PATIENCE = 6, 0.1  # seconds: they are waited for

def refuse():
    time.sleep(0.5)
    raise UserError(f"by {number}")

address, number = sys.argv[1], int(sys.argv[2])
connect(ClusterOptions(address, 2, number))
print("told", from_first({"by": number, "shapes": [(1,), (2, number)]}))
try:
    of_first(refuse)
except UserError as error:
    print("refused", error)
with end_together(), StopRequest() as stop:
    for step in range(4):
        if (step, number) == (1, 1):
            os.kill(os.getpid(), signal.SIGTERM)
        stop.exchange()
        print("step", step, "heard", stop.heard, "alone", stop.alone, flush=True)
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    while True:
        maximum(0)()
"""


@pytest.fixture(scope="module")
def ended():
    """Exit status, output and errors of both processes; the second kills itself."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    words = [sys.executable, "-c", PROCESS, address]
    processes = [
        subprocess.Popen([*words, str(number)], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for number in (0, 1)
    ]
    outputs = [process.communicate(timeout=200) for process in processes]
    return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]


def test_all_processes_have_the_first_ones_value(ended):
    assert all("told {'by': 0, 'shapes': [(1,), (2, 0)]}" in output for _, output, _ in ended)


def test_what_the_first_one_refuses_after_a_while_all_refuse(ended):
    assert all("refused by 0\n" in output for _, output, _ in ended)


def test_all_processes_hear_of_a_stop_after_the_same_step(ended):
    heard = [[line for line in output.splitlines() if line.startswith("step")] for _, output, _ in ended]
    assert heard[0] == heard[1] == [f"step {step} heard {15 if step > 1 else 0} alone 0" for step in range(4)]


def test_a_process_whose_companion_dies_ends_and_says_why(ended):
    (survivor, _, errors), (victim, _, _) = ended
    assert victim == -signal.SIGKILL
    assert survivor in (2, -signal.SIGABRT)  # by the failed exchange, or by JAX's own watch over the processes
    assert "another process of this run is gone" in errors or "another task died" in errors
