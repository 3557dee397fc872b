"""Each data set in the layout that its authors publish, with its oddities."""

import os
import shutil

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from faces import noise, write_raf_db

from jaxface.data.images import decode
from jaxface.data.preparation import prepare
from jaxface.data.records import Record, open_records, read_labels
from jaxface.data.sources import SOURCES, Reading, get_source
from jaxface.data.sources.base import sort_into_splits, validates
from jaxface.errors import UserError


def photo(path, height=48, width=48):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), noise(height, width))


def read(name, folder, **options):
    """The records by id, and the skipped entries by id."""
    source = get_source(name)
    by_split, skipped = sort_into_splits(source, source.records(folder, Reading(**options)))
    return {record.id: record for records in by_split.values() for record in records}, {entry.id: entry.reason for entry in skipped}


def write_fairface(folder):
    header = "file,age,gender,race,service_test\n"
    (folder / "fairface_label_train.csv").write_text(
        header + "train/1.jpg,50-59,Male,East Asian,True\ntrain/2.jpg,more than 70,Female,Latino_Hispanic,False\n"
    )
    (folder / "fairface_label_val.csv").write_text(header + "val/1.jpg,0-2,Female,Middle Eastern,False\n")
    for name in ("train/1.jpg", "train/2.jpg", "val/1.jpg"):
        photo(folder / name)


def test_fairface_has_more_than_70_and_its_validation_set_tests(tmp_path):
    write_fairface(tmp_path)
    records, _ = read("fairface", tmp_path)
    assert records["train/1.jpg"].labels == {"age": 6, "gender": 0}
    assert records["train/2.jpg"].labels == {"age": 8, "gender": 1}
    assert records["val/1.jpg"] == Record("val/1.jpg", "test", tmp_path / "val/1.jpg", {"age": 0, "gender": 1})
    assert records["train/1.jpg"].split in ("train", "validation")
    (tmp_path / "fairface_label_val.csv").write_text("file,age,race\nval/1.jpg,0-2,White\n")
    with pytest.raises(UserError, match=r"fairface_label_val.csv: no column gender; found file, age, race"):
        read("fairface", tmp_path)


@pytest.mark.parametrize("suffix", ["", ".chip.jpg"])
def test_utkface_reads_labels_off_names_and_lists_the_names_that_lack_a_field(tmp_path, suffix):
    odd = ("61_1_20170109142408075.jpg", "39_1_20170116174525125.jpg", "61_3_20170109150557335.jpg")
    for name in ("26_1_2_20170116184024662.jpg", "1_0_0_20161219140623097.jpg", "116_1_4_20170120134744096.jpg", *odd):
        photo(tmp_path / f"part1/{name}{suffix}")
    (tmp_path / "part1/.DS_Store").write_text("x")
    records, skipped = read("utkface", tmp_path)
    assert {name.partition("/")[2].partition("_")[0]: record.labels for name, record in records.items()} == {
        "26": {"age": 3, "age_years": 26, "gender": 1},
        "1": {"age": 0, "age_years": 1, "gender": 0},
        "116": {"age": 8, "age_years": 100, "gender": 1},
    }
    assert {record.split for record in records.values()} == {"test"}
    assert {record.is_crop for record in records.values()} == {bool(suffix)}  # whole photos need a detector
    assert skipped == {f"part1/{name}{suffix}": "the name is not [age]_[gender]_[race]_[date]" for name in odd}


def test_utkface_takes_the_photos_the_thesis_counts_unless_told_to_take_the_crops(tmp_path):
    for suffix in ("", ".chip.jpg"):
        photo(tmp_path / f"26_1_2_20170116184024662.jpg{suffix}")
    assert [(name, record.is_crop) for name, record in read("utkface", tmp_path)[0].items()] == [("26_1_2_20170116184024662.jpg", False)]
    (name,) = read("utkface", tmp_path, images="crops")[0]
    assert name.endswith(".chip.jpg")


def write_lagenda(folder):
    persons = "person_x0,person_y0,person_x1,person_y1"
    (folder / "lagenda_annotation.csv").write_text(
        f"img_name,age,gender,face_x0,face_y0,face_x1,face_y1,{persons}\n"
        "a.jpg,31,F,20,10,40,30,0,0,60,90\n"
        "a.jpg,7,M,60,12,80,36,50,0,90,90\n"
        "b.jpg,44,F,-1,-1,-1,-1,3,3,50,80\n"  # seen from behind
        "b.jpg,-1,M,10,10,40,40,3,3,50,80\n"  # age not known
        "b.jpg,-1,-1,20,20,50,50,3,3,50,80\n"
        "a.jpg,31,F,20,10,40,30,0,0,60,90\n"
    )
    for name in ("a", "b"):
        photo(folder / f"{name}.jpg", 100, 120)


def test_lagenda_is_one_record_a_face_and_skips_rows_without_face_or_label(tmp_path):
    write_lagenda(tmp_path)
    records, skipped = read("lagenda", tmp_path)
    assert {name: record.labels for name, record in records.items()} == {
        "a.jpg@20,10,40,30": {"age": 4, "age_years": 31, "gender": 1},
        "a.jpg@60,12,80,36": {"age": 1, "age_years": 7, "gender": 0},
        "b.jpg@10,10,40,40": {"gender": 0},
    }
    assert skipped == {
        "b.jpg (row 4)": "no face box",
        "b.jpg@20,20,50,50 (row 6)": "no label",
        "a.jpg@20,10,40,30 (row 7)": "listed twice",
    }
    assert len({records[name].split for name in records if name.startswith("a.jpg")}) == 1  # faces of one photo stay together
    summary = prepare("lagenda", tmp_path, tmp_path.parent / f"{tmp_path.name}-out")
    split = records["b.jpg@10,10,40,40"].split
    examples = open_records(tmp_path.parent / f"{tmp_path.name}-out", split)
    image = next(example["image"] for example in (examples[i] for i in range(len(examples))) if example["id"] == "b.jpg@10,10,40,40")
    assert decode(image).shape == (42, 42, 3)
    assert summary["dropped"]["reasons"] == {"no face box": 1, "no label": 1, "listed twice": 1}


def write_celeba_hq(folder):
    lines = [f"{i}.jpg  -1  1 {-1 if i % 2 else 1}" for i in range(4)]
    (folder / "CelebAMask-HQ-attribute-anno.txt").write_text("4\n5_o_Clock_Shadow Arched_Eyebrows Male \n" + "\n".join(lines) + "\n")
    for i in range(4):
        photo(folder / f"CelebA-HQ-img/{i}.jpg")


def test_celeba_hq_has_two_lines_of_header_and_one_attribute_of_use(tmp_path):
    write_celeba_hq(tmp_path)
    records, _ = read("celeba_hq", tmp_path)
    assert [records[f"{i}.jpg"].labels["gender"] for i in range(4)] == [0, 1, 0, 1]
    assert {record.split for record in records.values()} <= {"train", "validation"}
    (tmp_path / "CelebA-HQ-to-CelebA-mapping.txt").write_text(
        "idx   orig_idx   orig_file\n" + "".join(f"{i}   {i + 90}   0000{i + 90}.jpg\n" for i in range(4))
    )
    (tmp_path / "identity_CelebA.txt").write_text("000090.jpg 7\n000091.jpg 7\n000092.jpg 8\n")
    assert [read("celeba_hq", tmp_path)[0][f"{i}.jpg"].person for i in range(4)] == ["celeba 7", "celeba 7", "celeba 8", ""]
    (tmp_path / "CelebAMask-HQ-attribute-anno.txt").write_text("5\nYoung Male\n0.jpg 1 1\n")
    with pytest.raises(UserError, match="first line says 5 images, 1 are listed"):
        read("celeba_hq", tmp_path)
    (tmp_path / "CelebAMask-HQ-attribute-anno.txt").write_text("1\nYoung Male\n0.jpg 1\n")
    with pytest.raises(UserError, match=r"anno.txt:3: 1 attributes, expected 2"):
        read("celeba_hq", tmp_path)


def test_the_last_images_of_celeba_hq_test_as_the_theses_counts_say(tmp_path):
    lines = [f"{i}.jpg  1" for i in (0, 27_999, 28_000, 29_999)]
    (tmp_path / "CelebAMask-HQ-attribute-anno.txt").write_text("4\nMale\n" + "\n".join(lines) + "\n")
    (tmp_path / "CelebA-HQ-img").mkdir()
    tested = {
        held_out: {name for name, r in read("celeba_hq", tmp_path, held_out=held_out)[0].items() if r.split == "test"}
        for held_out in (0, 1)
    }
    assert tested == {0: set(), 1: {"29999.jpg"}}
    assert {name for name, r in read("celeba_hq", tmp_path)[0].items() if r.split == "test"} == {"28000.jpg", "29999.jpg"}


def write_vggface2(folder):
    (folder / "identity_meta.csv").write_text(
        'Class_ID, Name, Sample_Num, Flag, Gender\nn000001, "14th_Dalai_Lama", 424, 0, m\nn000009, "Abbas, Mahmoud", 99, 0, f\n'
    )
    for name in ("n000001/0001_01", "n000001/0002_01", "n000009/0001_01", "n000077/0001_01"):
        photo(folder / f"test/{name}.jpg", 90, 80)


def test_vggface2_tests_with_persons_genders_boxes_and_ages_of_ones_own(tmp_path):
    write_vggface2(tmp_path)
    records, skipped = read("vggface2", tmp_path)
    assert {name: (r.labels, r.person, r.split, r.box, r.is_crop) for name, r in records.items()} == {
        "n000001/0001_01.jpg": ({"gender": 0}, "n000001", "test", None, False),
        "n000001/0002_01.jpg": ({"gender": 0}, "n000001", "test", None, False),
        "n000009/0001_01.jpg": ({"gender": 1}, "n000009", "test", None, False),
    }
    assert skipped == {"n000077/0001_01": "the person is not in identity_meta.csv"}
    (tmp_path / "bb_landmark").mkdir()
    (tmp_path / "bb_landmark/loose_bb_test.csv").write_text('NAME_ID,X,Y,W,H\n"n000001/0001_01",10,12,40,50\n')
    (tmp_path / "ages.csv").write_text("image,years\ntest/n000001/0001_01.jpg,61.5\nn000009/0001_01.jpg,\n")
    records, _ = read("vggface2", tmp_path, ages=tmp_path / "ages.csv", path_column="image", age_column="years")
    assert records["n000001/0001_01.jpg"].box == (10, 12, 50, 62)
    assert records["n000001/0001_01.jpg"].labels == {"gender": 0, "age": 7, "age_years": 61}
    assert records["n000009/0001_01.jpg"].labels == {"gender": 1}
    with pytest.raises(UserError, match=r"ages.csv: no column photos; found image, years"):
        read("vggface2", tmp_path, ages=tmp_path / "ages.csv", path_column="photos", age_column="years")


def test_raf_db_takes_original_photos_by_their_boxes_where_no_aligned_ones_are(tmp_path):
    write_raf_db(tmp_path, train=2, test=1)
    for name, gender in (("train_00001", 1), ("train_00002", 2), ("test_00001", 2)):
        path = tmp_path / f"basic/Annotation/manual/{name}_manu_attri.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("1.5\t2\n" * 5 + f"{gender}\n0\n2\n")
    records, skipped = read("raf_db", tmp_path)
    assert skipped == {"train_00002.jpg": "the gender is unsure"}
    assert records["train_00001.jpg"].is_crop
    assert records["train_00001.jpg"].labels["gender"] == 1
    assert "gender" not in records["test_00001.jpg"].labels  # unsure
    (tmp_path / "basic/Image/aligned").rename(tmp_path / "basic/Image/original")
    (tmp_path / "basic/Annotation/boundingbox").mkdir()
    (tmp_path / "basic/Annotation/boundingbox/train_00001_boundingbox.txt").write_text("3.5 4 40 44.25\n")
    records, skipped = read("raf_db", tmp_path, unsure="keep")
    assert not skipped
    assert records["train_00001.jpg"].image == tmp_path / "basic/Image/original/train_00001.jpg"
    assert records["train_00001.jpg"].box == (3.5, 4, 40, 44.25)
    assert (records["train_00002.jpg"].box, records["train_00002.jpg"].is_crop) == (None, False)


def test_a_parquet_manifest_is_read_as_a_csv_one_is(tmp_path):
    columns = {"path": ["a.jpg", "b.jpg"], "age": [34.0, None], "gender": ["F", "male"], "split": ["test", "test"], "box_x0": [None, 1.5]}
    columns |= {name: [None, value] for name, value in (("box_y0", 2.0), ("box_x1", 30.0), ("box_y1", 40.0))}
    pa.parquet.write_table(pa.table(columns), tmp_path / "manifest.parquet")
    records, _ = read("manifest", tmp_path)
    assert records["a.jpg"].labels == {"age": 4, "age_years": 34, "gender": 1}
    assert records["b.jpg@1.5,2,30,40"].box == (1.5, 2, 30, 40)


def test_ranges_over_two_groups_are_refused_unless_told_how(tmp_path):
    (tmp_path / "manifest.csv").write_text("path,age,gender\na.jpg,25-35,m\nb.jpg,18-20,\n")
    with pytest.raises(UserError, match=r"manifest.csv:2: age '25-35' straddles two groups .* see --read.straddling"):
        read("manifest", tmp_path)
    assert [r.labels for r in read("manifest", tmp_path, straddling="middle")[0].values()] == [{"age": 4, "gender": 0}, {"age": 2}]
    assert [r.labels for r in read("manifest", tmp_path, straddling="missing")[0].values()] == [{"gender": 0}, {}]


def test_a_set_with_a_validation_split_of_its_own_keeps_it(tmp_path):
    names = "".join(f"{i}.jpg,3,{'validation' if i == 0 else 'train'}\n" for i in range(50))
    (tmp_path / "manifest.csv").write_text("path,age,split\n" + names)
    assert [record.id for record in read("manifest", tmp_path)[0].values() if record.split == "validation"] == ["0.jpg"]


def test_every_class_gives_its_fifth_to_validation_as_far_as_chance_does():
    counts = {0: 1290, 1: 281, 2: 717, 3: 4772, 4: 1982, 5: 705, 6: 2524}  # RAF-DB's training set
    for label, count in counts.items():
        share = np.mean([validates(Record(f"train_{label}_{i:05d}.jpg", "train", b"")) for i in range(count)])
        assert share == pytest.approx(0.2, abs=4 * (0.16 / count) ** 0.5)


@pytest.mark.parametrize(
    ("header", "row", "expected"),
    [
        ("Path,Age,GENDER,Split", "a.jpg,31,F,Test", Record("a.jpg", "test", b"", {"age": 4, "age_years": 31, "gender": 1})),
        (
            "filename,years,sex,Expression",
            "a.jpg,31,Woman,Happiness",
            Record("a.jpg", "", b"", {"age": 4, "age_years": 31, "gender": 1, "emotion": 3}),
        ),
        ("image,sex,Person ID,subset", "a.jpg,male,p1,val", Record("a.jpg", "validation", b"", {"gender": 0}, person="p1")),
        ("img_path;emotion;split", "a.jpg;anger;training", Record("a.jpg", "train", b"", {"emotion": 5})),
        (
            "path,gender,x,y,w,h,split",
            "a.jpg,m,20,10,50,60,test",
            Record("a.jpg@20,10,70,70", "test", b"", {"gender": 0}, (20, 10, 70, 70)),
        ),
        (
            "path,gender,Box_X0,Box_Y0,Box_X1,Box_Y1,split",
            "a.jpg,m,1,2,3,4,test",
            Record("a.jpg@1,2,3,4", "test", b"", {"gender": 0}, (1, 2, 3, 4)),
        ),
        (
            "path,gender,width,height,bbox_left,bbox_top,bbox_width,bbox_height,split",
            "a.jpg,m,9,9,1,2,3,4,test",
            Record("a.jpg@1,2,4,6", "test", b"", {"gender": 0}, (1, 2, 4, 6)),
        ),
        ("path,age", "a.jpg,3_9", Record("a.jpg", "", b"", {"age": 1})),
        ("path,age", 'a.jpg,"(25, 29)"', Record("a.jpg", "", b"", {"age": 3})),
        ("path,age", "a.jpg,more than 75", Record("a.jpg", "", b"", {"age": 8})),
        ("path,age,age_years", "a.jpg,30-39,34", Record("a.jpg", "", b"", {"age": 4, "age_years": 34})),
    ],
)
def test_columns_and_cells_go_by_their_usual_names(tmp_path, header, row, expected):
    (tmp_path / "manifest.csv").write_text(f"{header}\n{row}\n")
    (record,) = read("manifest", tmp_path)[0].values()
    assert (record.id, record.labels, record.box, record.person) == (expected.id, expected.labels, expected.box, expected.person)
    assert record.split == expected.split or not expected.split


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("path,age,age", "two columns 'age': remove one"),
        ("path,gender,Sex", "columns 'gender' and 'Sex' are both gender"),
        ("path,gender,note,Note", "two columns 'Note'"),
        ("path,gender,splitt", "column 'splitt': if it is split, name it so"),
        ("path,gendre,age", "column 'gendre': if it is gender"),
        ("path,age,x,y,w", "column 'x': a face box is four columns"),
        ("path,age,bbox", "column 'bbox': expected a face box as four columns"),
        ("path,age,x0,y0,x1,y1,x2,y2", "column 'x2': a face box is four columns"),
        ("path,age,x,y,w,h,box_x0,box_y0,box_x1,box_y1", "two face boxes, x, y, w, h and box_x0"),
    ],
)
def test_names_twice_and_near_misses_are_refused(tmp_path, header, message):
    (tmp_path / "manifest.csv").write_text(f"{header}\n")
    with pytest.raises(UserError, match=message):
        read("manifest", tmp_path)


@pytest.mark.parametrize("age", ["9-Mar", "1e1", "3__9", "29-20", "60+", "-3", "nan", "150", "0x10", "٣", "more than 60"])
def test_an_age_that_only_nearly_is_one_is_refused(tmp_path, age):
    (tmp_path / "manifest.csv").write_text(f"path,age\na.jpg,{age}\n")
    with pytest.raises(UserError, match=r"manifest.csv:2: age .* (is out of range|straddles)"):
        read("manifest", tmp_path)


def test_what_was_read_by_another_name_and_what_was_not_is_one_line(tmp_path, capsys):
    (tmp_path / "manifest.csv").write_text("file,sex,race,mood\na.jpg,woman,x,y\nb.jpg,WOMAN,x,y\nc.jpg,Male,x,y\n")
    read("manifest", tmp_path)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.partition("manifest.csv: ")[2] == (
        "read file as path, sex as gender, woman as female, WOMAN as female; did not read the columns race, mood"
    )


def test_an_absolute_path_is_where_it_says(tmp_path):
    photo(tmp_path / "elsewhere/a.jpg")
    (tmp_path / "table").mkdir()
    (tmp_path / "table/manifest.csv").write_text(f"path,gender,split\n{tmp_path}/elsewhere/a.jpg,m,test\n")
    assert prepare("manifest", tmp_path / "table", tmp_path / "out")["splits"]["test"]["records"] == 1


def test_classes_with_capitals_are_read_and_told_apart():
    from jaxface.data.cells import read_label
    from jaxface.data.tasks import TASKS, Task

    with TASKS.temporarily():
        TASKS.add("glasses", Task("glasses", ("None", "Sun Glasses", "sun-glasses")))
        assert [read_label("glasses", text, "here") for text in ("None", "none", "Sun Glasses", "sun-glasses")] == [0, 0, 1, 2]


def test_parquet_cells_are_what_csv_cells_are(tmp_path):
    columns = {"Path": [b"a.jpg", b"b.jpg"], "years": [float("nan"), 34.0], "sex": pa.array(["f", "m"]).dictionary_encode()}
    pa.parquet.write_table(pa.table(columns), tmp_path / "manifest.parquet")
    assert [r.labels for r in read("manifest", tmp_path)[0].values()] == [{"gender": 1}, {"age": 4, "age_years": 34, "gender": 0}]
    doubled = pa.table([pa.array(["a.jpg"]), pa.array(["f"]), pa.array(["m"])], names=["path", "gender", "gender"])
    pa.parquet.write_table(doubled, tmp_path / "manifest.parquet")
    with pytest.raises(UserError, match="two columns 'gender'"):
        read("manifest", tmp_path)


def test_an_option_that_a_source_does_not_look_at_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"held_out 0: source raf_db does not take it; it takes images, unsure"):
        prepare("raf_db", tmp_path, tmp_path / "out", options=Reading(held_out=0))
    assert not (tmp_path / "out").exists()


def test_a_column_that_is_not_read_cannot_be_in_the_way(tmp_path):
    far = pa.array([2**60, None], pa.timestamp("us"))  # in the year 38,000, which Python does not know
    table = pa.table({"path": ["a.jpg", None], "gender": ["f", None], "taken": far})
    pa.parquet.write_table(table, tmp_path / "manifest.parquet")
    assert [r.labels for r in read("manifest", tmp_path)[0].values()] == [{"gender": 1}]
    pa.parquet.write_table(table.rename_columns(["path", "gender", "age"]), tmp_path / "manifest.parquet")
    with pytest.raises(UserError, match=r"manifest.parquet: cannot be read \(date value out of range\)"):
        read("manifest", tmp_path)
    (tmp_path / "long.csv").write_text(f"path,gender,notes\na.jpg,f,{200_000 * 'x'}\n")
    assert [r.labels for r in read("manifest", tmp_path / "long.csv")[0].values()] == [{"gender": 1}]


def test_a_table_in_utf_16_is_read_and_one_that_can_be_read_only_once_is_refused(tmp_path):
    (tmp_path / "manifest.csv").write_text("path\tsex\n\u00e9.jpg\tf\n", encoding="utf-16")  # as spreadsheets write "Unicode text"
    assert {r.id: r.labels for r in read("manifest", tmp_path)[0].values()} == {"\u00e9.jpg": {"gender": 1}}
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(UserError, match=r"pipe\.csv: no file but"):
        read("manifest", tmp_path / "pipe.csv")


def test_utkface_takes_any_case_of_the_suffix(tmp_path):
    for name in ("25_0_1_x.JPG", "31_1_0_20170109.jpeg"):
        photo(tmp_path / f"{name[:-4]}x.jpg")
        (tmp_path / f"{name[:-4]}x.jpg").rename(tmp_path / name)
    records, skipped = read("utkface", tmp_path)
    assert (sorted(records), skipped) == (["25_0_1_x.JPG", "31_1_0_20170109.jpeg"], {})


def test_the_faces_of_a_photo_and_the_photos_of_a_person_stay_on_one_side_of_the_split():
    def sides(records):
        return {validates(Record(name, "train", b"", person=person)) for name, person in records}

    photos = [[(f"{i}.jpg@{box}", "") for box in ("0,0,9,9", "10,0,19,9", "20,0,29,9")] for i in range(40)]
    assert all(len(sides(faces)) == 1 for faces in photos)
    assert len(sides(faces[0] for faces in photos)) == 2
    persons = [[(f"{i}/{k}.jpg@1,2,3,4", f"person {i}") for k in range(4)] for i in range(40)]
    assert all(len(sides(faces)) == 1 for faces in persons)
    assert len(sides(faces[0] for faces in persons)) == 2


def test_names_that_are_no_utf_8_are_written_out_and_kept(tmp_path):
    photo(tmp_path / "x.jpg")
    shutil.copy(tmp_path / "x.jpg", os.fsencode(tmp_path) + b"/30_1_2_20170116184024662.jpg.chip.jpg")
    shutil.copy(tmp_path / "x.jpg", os.fsencode(tmp_path) + b"/caf\xe9.jpg.chip.jpg")
    records, skipped = read("utkface", tmp_path)
    assert list(records) == ["30_1_2_20170116184024662.jpg.chip.jpg"]
    assert list(skipped) == ["caf\\xe9.jpg.chip.jpg"]


@pytest.mark.parametrize("name", sorted(set(SOURCES) - {"synthetic"}))
def test_a_folder_of_something_else_is_refused_with_what_was_expected(name, tmp_path):
    (tmp_path / "readme.txt").write_text("x")
    with pytest.raises(UserError, match=r"is missing: .* needs|holds no record.*it needs"):
        prepare(name, tmp_path, tmp_path.parent / "out")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"path,age\ncaf\xe9.jpg,3\n", "manifest.csv: cannot be read .*: save it as UTF-8"),
        (b"", "manifest.csv: cannot be read|expected a column path"),
        (b"path,age\na.jpg,3,4\n", "manifest.csv:2: 3 cells, but 2 columns"),
        (b"path,age\nx/../../a.jpg,3\n", "manifest.csv:2: x/../../a.jpg lies outside"),
    ],
)
def test_a_table_that_cannot_be_trusted_is_one_clear_line(text, message, tmp_path):
    (tmp_path / "manifest.csv").write_bytes(text)
    with pytest.raises(UserError, match=message) as error:
        read("manifest", tmp_path)
    assert "\n" not in str(error.value)


def test_prepared_labels_are_the_sources(tmp_path):
    write_fairface(tmp_path)
    prepare("fairface", tmp_path, tmp_path / "out")
    assert read_labels(tmp_path / "out", "test")["age"].tolist() == [0]
    assert read_labels(tmp_path / "out", "test")["emotion"].tolist() == [-1]
