"""Tasks of a user's own: read from files, found in tables and folders, kept beside the records."""

import json
import warnings

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from faces import noise

from jaxface.data.discovery import discover, doubts, likely_typos
from jaxface.data.pipeline import Joined, TrainBatches
from jaxface.data.preparation import prepare
from jaxface.data.records import joined_tasks, read_labels, set_tasks
from jaxface.data.sources import Reading, get_source
from jaxface.data.task_files import read_tasks, write_tasks
from jaxface.data.tasks import AGE, EMOTION, GENDER, Task
from jaxface.errors import UserError
from jaxface.report.data_sheets import write_summary_picture

FILE = """
[Größe]
kind = "regression"
unit = "cm"
within = 2
[Art]
classes = ["Rosa canina", "Röse", "Big Daisy"]
[marks]
kind = "multi-label"
classes = ["Spot", "trou"]
[stage]
kind = "ordinal"
classes = ["bud", "open", "faded"]
[years]
kind = "regression"
steps = [0, 10, 2.5]
"""


def picture(seed=0):
    return cv2.imencode(".png", noise(24, 24, seed))[1].tobytes()


def rows_of(name, folder, **options):
    tasks, records = get_source(name).read(folder, Reading(**options))
    return {task.name: task for task in tasks}, {record.id: record for record in records if hasattr(record, "labels")}


def test_a_file_of_tasks_reads_back_as_it_was_written(tmp_path):
    (tmp_path / "a.toml").write_text(FILE)
    tasks = read_tasks(tmp_path / "a.toml")
    assert [task.says for task in tasks.values()] == [
        "a number in cm",
        "classification, 3 classes",
        "several of 2 labels",
        "ordinal, 3 classes",
        "a number, in 5 steps",
    ]
    assert tasks["years"].classes == ("0", "2.5", "5", "7.5", "10")
    (tmp_path / "b.toml").write_text(write_tasks([*tasks.values(), AGE, GENDER, EMOTION]))
    again = read_tasks(tmp_path / "b.toml")
    assert list(again.values()) == [*tasks.values(), AGE, GENDER, EMOTION]
    assert again["gender"].synonyms == GENDER.synonyms


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[a]\nclasses = ['x']", "a.toml: task a: expected at least two classes"),
        ("[a]\nclasses = ['x', 'x']", "two classes are called 'x'"),
        ("[a]\nclasess = ['x', 'y']", "no attribute clasess; known: kind, classes"),
        ("[a]\nkind = 'numbers'", "no kind of task 'numbers'"),
        ("['a/b']\nclasses = ['x', 'y']", "expected a name of letters"),
        ("[a]\nclasses = ['x', 'y']\ncoarse = 'b'\ngroup = [0, 0]", "its coarse task b is not among a"),
        ("[a]\nkind = 'regression'\nsteps = [3, 1, 1]", "expected \\[first, last, step\\]"),
        ("a = 3", "expected a table \\[a\\]"),
        ("[a", "a.toml: "),
        ("", "no task in it"),
    ],
)
def test_what_is_wrong_with_a_file_of_tasks_is_one_line(tmp_path, text, message):
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(UserError, match=message) as error:
        read_tasks(tmp_path / "a.toml")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["Rose", "rose ", "Élan"] * 4, Task("x", ("Rose", "rose ", "Élan"))),
        (["1", "3", "2", "10"] * 4, Task("x", ("1", "2", "3", "10"), kind="ordinal")),
        (["0", "1"] * 4, Task("x", ("0", "1"))),
        (["1.5", "2", "2,25"], Task("x", kind="regression")),
        ([str(n) for n in range(60)], Task("x", kind="regression")),
        (["12 g", "14.5 g"], Task("x", kind="regression", unit="g")),
        (["red; blue", "blue", "none"], Task("x", ("blue", "red"), kind="multi-label")),
        (["red, blue", "blue", "red"], Task("x", ("blue", "red"), kind="multi-label")),
        (["Paris, Texas", "Rome"] * 3, Task("x", ("Paris, Texas", "Rome"))),
        ([["b"], ["a", "b"]], Task("x", ("a", "b"), kind="multi-label")),
        ([f"text {n}" for n in range(60)], "60 different texts in 60 rows"),
        (["a"] * 5, "there is nothing but 'a' in it"),
        ([], "it is empty"),
    ],
)
def test_a_column_is_what_its_cells_show(cells, expected):
    found = discover("x", cells)
    assert found == expected
    assert isinstance(found, str) or (found.kind, found.unit) == (expected.kind, expected.unit)


def test_what_deserves_a_second_look_is_said():
    counts = {"Rose": 120, "Rsoe": 1, "rose": 30, "Tulip": 90, "Lily": 4}
    assert likely_typos(counts) == [("Rsoe", "Rose"), ("rose", "Rose")]
    task = Task("kind", tuple(counts))
    assert doubts(task, list(counts.values())) == [
        "likely typos: 'Rsoe' (1) for 'Rose' (120), 'rose' (30) for 'Rose' (120)",
        "fewer than 10 records: Rsoe 1, Lily 4",
    ]
    assert "its classes are numbers" in doubts(Task("n", ("1", "2", "3")), [50, 50, 50])[0]


def test_a_table_of_five_tasks_is_prepared_with_its_missing_cells(tmp_path):
    (tmp_path / "own.toml").write_text(FILE)
    lines = ["picture;Größe (cm);Art;Marks;stage;years;split"]
    cells = ["3,5;Röse;Spot|trou;open;3", ";rosa canina;none;;9.9", "4.5 cm;;;faded;", ";Big Daisy;trou;bud;0", "5;Röse;Spot;bud;1"]
    for index, row in enumerate(cells):
        cv2.imwrite(str(tmp_path / f"{index}.png"), noise(24, 24, index))
        lines.append(f"{index}.png;{row};{'train' if index < 3 else 'validation'}")
    (tmp_path / "manifest.csv").write_text("\n".join(lines))
    reading = Reading(tasks_file=tmp_path / "own.toml", columns=("path=picture",))
    prepare("manifest", tmp_path, tmp_path / "out", options=reading)
    found = read_labels(tmp_path / "out", "train")
    np.testing.assert_array_equal(found["Größe"], [3.5, np.nan, 4.5])
    assert found["Art"].tolist() == [1, 0, -1]
    assert found["marks"].tolist() == [[1, 1], [0, 0], [-1, -1]]
    assert found["stage"].tolist() == [1, -1, 2]
    kept = set_tasks(tmp_path / "out")
    assert (kept["Größe"].center, kept["Größe"].scale, kept["Größe"].within) == (4.0, 0.5, 2.0)
    assert read_tasks(tmp_path / "out" / "tasks.toml") == kept
    batch = TrainBatches(
        Joined([tmp_path / "out"], "train", list(kept)), image_size=8, batch_size=4, seed=0, augment=None, sampling="balanced"
    )[0]
    assert {name: (values.shape, values.dtype.name) for name, values in batch["labels"].items()} == {
        "Größe": ((4,), "float32"),
        "Art": ((4,), "int32"),
        "marks": ((4, 2), "int32"),
        "stage": ((4,), "int32"),
        "years": ((4,), "float32"),
    }
    (tmp_path / "own.toml").write_text(FILE.replace("[stage]", "[stages]"))
    with pytest.raises(UserError, match=r"own.toml: no column stages; found .*Art"):
        prepare("manifest", tmp_path, tmp_path / "out2", options=reading)


@pytest.mark.parametrize("splits", [("",), ("train", "val", "Test")])
def test_a_folder_for_each_class_needs_no_table(tmp_path, splits):
    for place, split in enumerate(splits):
        for index, name in enumerate(("Big Daisy", "röse")):
            folder = tmp_path / "in" / split / name
            folder.mkdir(parents=True)
            (folder / "a.png").write_bytes(picture(10 * place + index))
            (folder / "notes.txt").write_text("x")
    tasks, records = rows_of("folders", tmp_path / "in", label="species")
    assert tasks == {"species": Task("species", ("Big Daisy", "röse"))}
    assert [record.labels["species"] for record in records.values()] == [0, 1] * len(splits)
    assert [record.split for record in records.values()][::2] == (["train"] if splits == ("",) else ["test", "train", "validation"])


def test_embedded_images_come_with_their_class_labels(tmp_path):
    features = {
        "image": {"_type": "Image"},
        "label": {"names": ["Tench", "Gold fish"], "_type": "ClassLabel"},
        "tags": {"feature": {"names": ["a;b", "c"], "_type": "ClassLabel"}, "_type": "Sequence"},
        "weight": {"dtype": "float32", "_type": "Value"},
    }
    image = pa.array([{"bytes": picture(i), "path": None} for i in range(3)])
    table = pa.table({"image": image, "label": [1, 0, -1], "tags": [[0, 1], [], [1]], "weight": pa.array([1.5, None, 2.25])})
    told = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    pq.write_table(table.replace_schema_metadata(told), tmp_path / "train-00000-of-00001.parquet")
    (tmp_path / "saved" / "test").mkdir(parents=True)
    with (
        pa.OSFile(str(tmp_path / "saved" / "test" / "data-00000-of-00001.arrow"), "wb") as sink,
        pa.ipc.new_stream(sink, table.schema) as out,
    ):
        out.write_table(table)
    (tmp_path / "saved" / "test" / "dataset_info.json").write_text(json.dumps({"features": features}))
    for name, place in (("huggingface", tmp_path / "saved"), ("manifest", tmp_path / "train-00000-of-00001.parquet")):
        tasks, records = rows_of(name, place)
        assert list(tasks.values()) == [
            Task("label", ("Tench", "Gold fish")),
            Task("tags", ("a;b", "c"), kind="multi-label"),
            Task("weight", kind="regression"),
        ]
        assert [record.labels for record in records.values()] == [
            {"label": 1, "tags": (1, 1), "weight": 1.5},
            {"label": 0, "tags": (0, 0)},
            {"tags": (0, 1), "weight": 2.25},
        ]
        assert {record.split for record in records.values()} == {"test" if name == "huggingface" else "train"}


def test_cocos_categories_are_several_labels_or_a_class_of_each_box(tmp_path):
    content = {
        "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}],
        "categories": [{"id": 7, "name": "Hot dog"}, {"id": 3, "name": "cup"}],
        "annotations": [{"image_id": 1, "category_id": c, "bbox": [2, 3, 10, 12]} for c in (3, 7)],
    }
    (tmp_path / "annotations").mkdir()
    (tmp_path / "val2017").mkdir()
    (tmp_path / "val2017" / "a.png").write_bytes(picture())
    (tmp_path / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    tasks, records = rows_of("coco", tmp_path / "annotations", label="things")
    assert tasks["things"] == Task("things", ("Hot dog", "cup"), kind="multi-label")
    assert {name: (one.labels["things"], one.split) for name, one in records.items()} == {
        "a.png": ((1, 1), "validation"),
        "b.png": ((0, 0), "validation"),
    }
    assert records["a.png"].image == tmp_path / "val2017" / "a.png"
    tasks, records = rows_of("coco", tmp_path / "annotations" / "instances_val2017.json", per="object")
    assert tasks["label"].kind == "classification"
    assert {record.box for record in records.values()} == {(2, 3, 12, 15)}
    for what, entry in (("categories", {"id": 7, "name": "pizza"}), ("images", {"id": 1, "file_name": "b.png"})):
        (tmp_path / "twice.json").write_text(json.dumps(content | {what: [*content[what], entry]}))
        with pytest.raises(UserError, match=rf"twice\.json: two of its {what} have the id {entry['id']}"):
            rows_of("coco", tmp_path / "twice.json")


def test_pictures_without_any_label_are_summed_up_in_a_picture_too(tmp_path):
    for index in range(8):
        (tmp_path / f"{index}.png").write_bytes(picture(index))
    content = {"images": [{"id": i, "file_name": f"{i}.png"} for i in range(8)], "categories": [{"id": 1, "name": "日"}], "annotations": []}
    (tmp_path / "a.json").write_text(json.dumps(content))
    prepare("coco", tmp_path / "a.json", tmp_path / "out")
    with warnings.catch_warnings(action="error"):
        write_summary_picture(tmp_path / "out")


def test_label_studios_exports_are_read_in_both_forms(tmp_path):
    (tmp_path / "upload").mkdir()
    (tmp_path / "upload" / "rose.png").write_bytes(picture())

    def entry(*results, name="rose"):
        result = [{"from_name": key, "value": value} for key, value in results]
        return {"data": {"image": f"/data/upload/1/0a1b2c3d-{name}.png"}, "annotations": [{"result": result, "was_cancelled": False}]}

    entries = [
        entry(("kind", {"choices": ["Röse"]}), ("stars", {"rating": 4}), ("tags", {"choices": ["a", "b"]})),
        entry(("kind", {"choices": ["Lily"]}), ("tags", {"choices": ["b"]}), name="lily"),
        {"data": {"image": "/data/upload/1/x.png"}, "annotations": []},
    ]
    (tmp_path / "a.json").write_text(json.dumps(entries))
    tasks, records = rows_of("label_studio", tmp_path / "a.json")
    assert list(tasks.values()) == [Task("kind", ("Lily", "Röse")), Task("tags", ("a", "b"), kind="multi-label")]
    assert [record.labels for record in records.values()] == [{"kind": 1, "tags": (1, 1)}, {"kind": 0, "tags": (0, 1)}]
    assert next(iter(records.values())).image == tmp_path / "upload" / "rose.png"
    small = [{"id": 1, "image": "/data/local-files/?d=upload/rose.png", "kind": "Röse"}, {"image": "x.png", "kind": "Lily"}]
    (tmp_path / "b.json").write_text(json.dumps(small))
    tasks, records = rows_of("label_studio", tmp_path / "b.json")
    assert next(iter(records.values())).image == tmp_path / "upload" / "rose.png"


def test_two_sets_that_mean_different_things_by_a_name_are_refused(tmp_path):
    for place, names in enumerate((("cat", "dog"), ("cat", "fox"))):
        for index, name in enumerate(names):
            folder = tmp_path / str(place) / name
            folder.mkdir(parents=True)
            for copy in range(6):
                (folder / f"{copy}.png").write_bytes(picture(20 * place + 7 * index + copy))
        prepare("folders", tmp_path / str(place), tmp_path / f"out{place}")
    with pytest.raises(UserError, match="both have a task label, of other classes"):
        joined_tasks([tmp_path / "out0", tmp_path / "out1"])
    summary = json.loads((tmp_path / "out0" / "summary.json").read_text())
    del summary["tasks"]  # a set from before tasks were described
    (tmp_path / "out0" / "digests.json").unlink()
    (tmp_path / "out0" / "summary.json").write_text(json.dumps(summary))
    assert joined_tasks([tmp_path / "out0"]) == {"label": Task("label", ("cat", "dog"))}
