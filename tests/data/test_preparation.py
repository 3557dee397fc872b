import io
import json

import cv2
import numpy as np
import pytest
from faces import noise, write_manifest, write_raf_db

from jaxface.data.cropping import Cropping, cut_face
from jaxface.data.images import decode, encode
from jaxface.data.preparation import prepare, prepare_synthetic
from jaxface.data.records import Record, open_records, read_labels, read_summary
from jaxface.data.sources.base import SOURCES, Source, register_source, validates
from jaxface.data.tasks import TASKS, Task, register_task
from jaxface.errors import UserError


def test_raf_db_becomes_records_with_their_labels_and_bytes(tmp_path):
    write_raf_db(tmp_path / "raf")
    summary = prepare("raf_db", tmp_path / "raf", tmp_path / "out")
    assert summary["splits"]["test"]["records"] == 4
    assert sum(split["records"] for split in summary["splits"].values()) == 16
    records, labels = open_records(tmp_path / "out", "test"), read_labels(tmp_path / "out", "test")
    lines = (tmp_path / "raf/basic/EmoLabel/list_patition_label.txt").read_text().splitlines()[12:]
    assert [f"{r['id']} {r['labels']['emotion'] + 1}" for r in (records[i] for i in range(4))] == lines
    assert [records[i]["labels"]["emotion"] for i in range(4)] == labels["emotion"].tolist()
    assert set(labels["age"]) == {-1}
    assert records[0]["image"] == (tmp_path / "raf/basic/Image/aligned/test_00001_aligned.jpg").read_bytes()


def test_preparing_leaves_no_folder_behind_and_asks_no_other_machine(tmp_path, monkeypatch):
    def asked(*_):
        raise AssertionError("the network was asked")

    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr("socket.socket.connect", asked)
    monkeypatch.setattr("socket.getaddrinfo", asked)
    monkeypatch.setattr("tensorflow_datasets.core.utils.gcs_utils._is_gcs_disabled", False)
    prepare_synthetic(tmp_path / "out", style="paint", count=4, test_count=2, size=16)
    assert {path.name for path in tmp_path.iterdir()} == {"temporary", "out"}
    assert not list((tmp_path / "temporary").iterdir())


def test_a_manifest_may_leave_labels_out_and_give_ages_in_years(tmp_path):
    write_manifest(tmp_path / "m", 6)
    table = tmp_path / "m" / "years.csv"
    table.write_text(
        "path,age,gender,emotion,split,box_x0,box_y0,box_x1,box_y1\n"
        "photos/0.jpg,34,F,,train,,,,\nphotos/1.jpg,20-25,,Happy,test,4,4,30,30\nphotos/2.jpg,70+,m,,test,,,,\n"
    )
    prepare("manifest", table, tmp_path / "out")
    labels = read_labels(tmp_path / "out", "test")
    assert labels["age"].tolist() == [3, 8]
    assert labels["gender"].tolist() == [-1, 0]
    assert labels["emotion"].tolist() == [3, -1]
    assert decode(open_records(tmp_path / "out", "test")[0]["image"]).shape == (36, 36, 3)  # 26 pixels and a fifth on each side


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("path,age\na.jpg,200", r"years.csv:2: age '200' is out of range"),
        ("path,age\na.jpg,-5", r"years.csv:2: age '-5' is out of range"),
        ("path,age\na.jpg,25-35", r"years.csv:2: age '25-35' straddles two groups"),
        ("path,emotion\na.jpg,bored", r"years.csv:2: emotion 'bored' is out of range; known: surprise"),
        ("path,gender,split\na.jpg,male,dev", r"years.csv:2: split 'dev'; known: train"),
        ("where,age\na.jpg,3", r"expected a column path .* found where, age"),
        ("path,age\n../a.jpg,3", r"years.csv:2: ../a.jpg lies outside"),
        ("path,age,box_x0\na.jpg,3,5", r"years.csv: column 'box_x0': a face box is four columns"),
    ],
)
def test_a_wrong_row_is_named_with_its_line(tmp_path, rows, message):
    (tmp_path / "years.csv").write_text(rows + "\n")
    with pytest.raises(UserError, match=message):
        prepare("manifest", tmp_path / "years.csv", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_unreadable_images_among_good_ones_are_left_out_counted_and_listed(tmp_path):
    write_raf_db(tmp_path / "raf")
    images = tmp_path / "raf/basic/Image/aligned"
    whole = (images / "train_00003_aligned.jpg").read_bytes()
    (images / "train_00003_aligned.jpg").write_bytes(whole[: len(whole) // 2])
    (images / "train_00004_aligned.jpg").write_bytes(b"")
    (images / "train_00005_aligned.jpg").write_bytes(b"not an image")
    (images / "train_00006_aligned.jpg").unlink()
    dropped = prepare("raf_db", tmp_path / "raf", tmp_path / "out")["dropped"]
    reasons = {entry["id"]: entry["reason"] for entry in dropped["files"]}
    assert dropped["count"] == 4
    assert reasons == {
        "train_00003.jpg": "the file is cut off",
        "train_00004.jpg": "the file is empty",
        "train_00005.jpg": "cannot be decoded as an image",
        "train_00006.jpg": "No such file or directory",
    }
    assert json.loads((tmp_path / "out/summary.json").read_text())["dropped"] == dropped


def test_a_set_is_prepared_once_and_never_over_another(tmp_path):
    write_raf_db(tmp_path / "raf")
    prepare("raf_db", tmp_path / "raf", tmp_path / "out")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert prepare("raf_db", tmp_path / "raf", tmp_path / "out") == read_summary(tmp_path / "out")
    assert before == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    with pytest.raises(UserError, match=r"holds another prepared set \(different: source\)"):
        prepare("manifest", tmp_path / "m.csv", tmp_path / "out")


def test_a_set_cut_off_while_it_was_put_together_is_put_together_anew(tmp_path, monkeypatch):
    def die(*_):
        raise KeyboardInterrupt

    write_raf_db(tmp_path / "raf")
    with monkeypatch.context() as patch:
        patch.setattr("jaxface.data.preparation.record_digests", die)
        with pytest.raises(KeyboardInterrupt):
            prepare("raf_db", tmp_path / "raf", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    again, fresh = (prepare("raf_db", tmp_path / "raf", tmp_path / name) for name in ("out", "fresh"))
    assert again["splits"] == fresh["splits"]
    assert {path.name: path.stat().st_size for path in (tmp_path / "out").iterdir()} == {
        path.name: path.stat().st_size for path in (tmp_path / "fresh").iterdir()
    }


def test_new_records_never_move_old_ones_between_train_and_validation(tmp_path):
    few, many = ([Record(f"{i}.jpg", "train", b"") for i in range(n)] for n in (500, 1000))
    assert [validates(record) for record in few] == [validates(record) for record in many][:500]
    assert np.mean([validates(record) for record in many]) == pytest.approx(0.2, abs=0.04)
    assert len({validates(Record(f"{i}.jpg", "train", b"", person="ann")) for i in range(50)}) == 1


def test_a_source_of_ones_own_is_a_few_lines(tmp_path):
    cv2.imwrite(str(tmp_path / "a.jpg"), noise(20, 20))
    with SOURCES.temporarily():

        @register_source("mine")
        class Mine(Source):
            def records(self, folder, options):
                yield Record("a", "test", folder / "a.jpg", {"gender": 1})

        prepare("mine", tmp_path, tmp_path / "out")
    assert open_records(tmp_path / "out", "test")[0]["source"] == "mine"


def test_drawn_faces_have_all_labels_in_the_test_split_only(tmp_path):
    prepare_synthetic(tmp_path / "drawn", style="paint", count=40, test_count=10, size=16, seed=0, missing=0.5)
    assert all((values >= 0).all() for values in read_labels(tmp_path / "drawn", "test").values())
    assert any((values < 0).any() for values in read_labels(tmp_path / "drawn", "train").values())


def test_a_turned_photo_is_stored_as_it_is_shown():
    from PIL import Image

    image = np.zeros((20, 40, 3), np.uint8)
    image[:, :20] = 255
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(image).save(buffer, "JPEG", exif=exif)
    turned, plain = (cut_face(Record("a", "train", data), Cropping(), 0.2)[0] for data in (buffer.getvalue(), encode(image)))
    stored = cv2.imdecode(np.frombuffer(turned, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    assert stored.shape == (40, 20, 3)
    assert stored[:18].mean() > 250
    assert stored[22:].mean() < 5
    assert plain == encode(image)


def test_persons_in_two_splits_are_named(tmp_path, capsys):
    from rich.console import Console

    from jaxface.prepare import show

    rows = ["path,gender,split,Person_ID"]
    for index in range(10):
        cv2.imwrite(str(tmp_path / f"{index}.png"), noise(32, 32, index))
        rows.append(f"{index}.png,m,{'test' if index < 5 else 'train'},p{index % 5 if index < 9 else ''}")
    (tmp_path / "manifest.csv").write_text("\n".join(rows) + "\n")
    summary = prepare("manifest", tmp_path, tmp_path / "out")
    shared = sorted(name for names in summary["persons"].values() for name in names)
    assert shared == ["p0", "p1", "p2", "p3"]
    capsys.readouterr()
    show(summary, tmp_path / "out", Console())
    assert "the same person is in " in capsys.readouterr().err


def manifest_of(folder, rows):
    (folder / "manifest.csv").write_text("path,gender,split\n" + "".join(f"{name},{gender},test\n" for name, gender in rows.items()))


def test_a_set_follows_its_table_and_files_and_is_left_alone_where_nothing_has_changed(tmp_path, capsys):
    rows = {f"{index}.png": "m" for index in range(4)}
    for index, name in enumerate([*rows, "new.png"]):
        cv2.imwrite(str(tmp_path / name), noise(32, 32, index))

    def prepared():
        manifest_of(tmp_path, rows)
        before = (tmp_path / "out").stat().st_ino if (tmp_path / "out").exists() else 0
        prepare("manifest", tmp_path, tmp_path / "out")
        records = open_records(tmp_path / "out", "test")
        images = [decode(records[index]["image"]) for index in range(len(records))]
        return (tmp_path / "out").stat().st_ino != before, read_labels(tmp_path / "out", "test")["gender"].tolist(), images

    assert prepared()[:2] == (True, [0, 0, 0, 0])
    assert prepared()[:2] == (False, [0, 0, 0, 0])
    rows["1.png"] = "f"
    assert prepared()[:2] == (True, [0, 1, 0, 0])
    rows["new.png"] = "f"
    assert prepared()[:2] == (True, [0, 1, 0, 0, 1])
    cv2.imwrite(str(tmp_path / "2.png"), noise(32, 32, 77))
    again, _, images = prepared()
    assert again
    assert np.array_equal(images[2][..., ::-1], noise(32, 32, 77))
    assert capsys.readouterr().err.count("have changed since it was prepared") == 3
    (tmp_path / "2.png").unlink()
    assert len(prepared()[1]) == 4
    assert {path.name for path in tmp_path.iterdir()} == {*rows, "manifest.csv", "out"} - {"2.png"}


def test_a_file_replaced_by_one_of_its_size_and_time_is_noticed_by_content(tmp_path):
    import os

    manifest_of(tmp_path, {"a.bmp": "m", "b.bmp": "m"})
    for index, name in enumerate(("a.bmp", "b.bmp")):
        cv2.imwrite(str(tmp_path / name), noise(32, 32, index))
    stamp = (tmp_path / "a.bmp").stat().st_mtime_ns
    first = [prepare("manifest", tmp_path, tmp_path / name, content=name == "hashed")["content"] for name in ("hashed", "timed")]
    cv2.imwrite(str(tmp_path / "a.bmp"), noise(32, 32, 9))
    os.utime(tmp_path / "a.bmp", ns=(stamp, stamp))
    second = [prepare("manifest", tmp_path, tmp_path / name, content=name == "hashed")["content"] for name in ("hashed", "timed")]
    assert [a == b for a, b in zip(first, second, strict=True)] == [False, True]


def test_a_folder_that_has_moved_is_the_same_set_and_another_ones_is_refused(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        cv2.imwrite(str(tmp_path / name / "a.png"), noise(32, 32, len(name) + ord(name[0])))
        manifest_of(tmp_path / name, {"a.png": "m"})
    prepare("manifest", tmp_path / "one", tmp_path / "out")
    (tmp_path / "one").rename(tmp_path / "moved")
    inode = (tmp_path / "out").stat().st_ino
    prepare("manifest", tmp_path / "moved", tmp_path / "out")
    assert (tmp_path / "out").stat().st_ino == inode
    with pytest.raises(UserError, match=r"holds another prepared set \(different: folder\)"):
        prepare("manifest", tmp_path / "two", tmp_path / "out")


def test_a_set_of_before_an_option_had_its_default(tmp_path):
    manifest_of(tmp_path, {"a.png": "m"})
    cv2.imwrite(str(tmp_path / "a.png"), noise(32, 32, 0))
    prepare("manifest", tmp_path, tmp_path / "out")
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    del summary["crop"]["damaged"]
    (tmp_path / "out/summary.json").write_text(json.dumps(summary))
    (tmp_path / "out/digests.json").unlink(missing_ok=True)
    prepare("manifest", tmp_path, tmp_path / "out")
    with pytest.raises(UserError, match=r"different: crop"):
        prepare("manifest", tmp_path, tmp_path / "out", cropping=Cropping(damaged="drop"))


def test_a_task_registered_after_a_set_was_prepared_is_in_the_next_one(tmp_path):
    write_manifest(tmp_path)
    prepare("manifest", tmp_path, tmp_path / "before")
    (tmp_path / "hats.csv").write_text("path,hat,split\n" + "".join(f"photos/{i}.jpg,{'yes' if i % 2 else 'no'},train\n" for i in range(8)))
    with TASKS.temporarily():
        register_task(Task("hat", ("no", "yes")))
        prepare("manifest", tmp_path / "hats.csv", tmp_path / "after")
        hats = [label for split in read_summary(tmp_path / "after")["splits"] for label in read_labels(tmp_path / "after", split)["hat"]]
    assert sorted(hats) == [0] * 4 + [1] * 4
