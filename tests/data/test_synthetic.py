import numpy as np
import pytest

from jaxface.data.synthetic import STYLES, Style, draw_face, years_of
from jaxface.data.tasks import AGE, EMOTION, GENDER, MISSING, age_group
from jaxface.errors import UserError


@pytest.mark.parametrize("style", sorted(STYLES))
def test_a_face_is_a_function_of_seed_index_and_style(style):
    one, same, other = draw_face(3, 5, style=style), draw_face(3, 5, style=style), draw_face(3, 6, style=style)
    assert np.array_equal(one.image, same.image)
    assert one.labels == same.labels
    assert not np.array_equal(one.image, other.image)
    assert one.image.shape == (60, 60, 3)
    assert one.image.dtype == np.uint8


def test_the_drawn_years_fall_into_the_labelled_group():
    for index in range(60):
        face = draw_face(0, index, size=16)
        assert age_group(face.years) == face.labels["age"]
    assert years_of(0) == 0
    assert years_of(9) == 90


def test_every_class_of_every_task_is_drawn_about_equally_often():
    labels = [draw_face(1, index, size=8).labels for index in range(900)]
    for task in (AGE, GENDER, EMOTION):
        counts = np.bincount([label[task.name] for label in labels], minlength=task.num_classes)
        expected = 900 / task.num_classes
        assert np.abs(counts - expected).max() < 4.5 * np.sqrt(expected)


def test_a_third_of_the_labels_can_be_left_out_but_never_all_of_a_face():
    labels = [tuple(draw_face(1, index, size=8, missing=0.5).labels.values()) for index in range(400)]
    share = np.mean(np.array(labels) == MISSING)
    assert share == pytest.approx(1 / 3, abs=0.06)  # half of the two that may go
    assert all(any(label != MISSING for label in face) for face in labels)


def test_a_style_of_ones_own_is_one_entry():
    with STYLES.temporarily():
        STYLES.add("negative", Style(ink=(0, 0, 0), line=0.02, stretch=(1, 1), finish=lambda image, rng: 255 - image))
        assert draw_face(0, 0, style="negative").image.shape == (60, 60, 3)
    with pytest.raises(UserError, match=r"no drawing style 'negative'; known: paint, charcoal"):
        draw_face(0, 0, style="negative")
