"""Requests in batches: what happens to one is not its neighbours' business."""

import threading

import numpy as np
import pytest

from jaxface.prediction.batching import Batcher

CROP = np.zeros((2, 2, 3), np.uint8)


class Model:
    """Answers each crop with its first pixel, once `go` is set; a crop of 255 breaks it."""

    batch_size = 4

    def __init__(self):
        self.go = threading.Event()

    def classify(self, crops):
        self.go.wait(30)
        if any(crop.max() == 255 for crop in crops):
            raise RuntimeError("out of memory")
        return [int(crop[0, 0, 0]) for crop in crops]

    def answers(self, logits, count):
        return logits[:count]


@pytest.fixture
def batcher():
    made = Batcher(Model())
    yield made
    made.predictor.go.set()
    made.close()


def test_a_request_that_is_given_up_leaves_its_neighbours_their_answers(batcher):
    first = batcher.submit([CROP])  # the model is busy with it, or about to be
    others = [batcher.submit([CROP + number]) for number in range(1, 6)]
    assert others[2].cancel()
    batcher.predictor.go.set()
    assert first.result(30) == [0]
    assert [future.result(30) for future in others if not future.cancelled()] == [[1], [2], [4], [5]]
    assert batcher.submit([CROP + 7]).result(30) == [7]


def test_a_request_that_breaks_the_model_fails_alone(batcher):
    futures = [batcher.submit([CROP + value]) for value in (1, 255, 3)]
    batcher.predictor.go.set()
    assert (futures[0].result(30), futures[2].result(30)) == ([1], [3])
    with pytest.raises(RuntimeError, match="out of memory"):
        futures[1].result(30)
    assert batcher.submit([CROP + 9, CROP + 8]).result(30) == [9, 8]


def test_a_request_that_is_answered_already_takes_no_second_answer(batcher):
    batcher.predictor.go.set()
    assert batcher.submit([]).result(1) == []
    future = batcher.submit([CROP + 5])
    assert future.result(30) == [5]
    assert not future.cancel()
