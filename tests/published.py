"""The thesis's six data sets as their authors publish them, small: drawn faces, every layout with its oddities."""

from __future__ import annotations

from pathlib import Path

import cv2

from jaxface.data.synthetic import draw_face
from jaxface.data.tasks import AGE

SIZE = 40


def draw(path: Path, seed: int) -> dict[str, int]:
    """Writes a drawn face as a JPEG; its labels, and its years of age."""
    path.parent.mkdir(parents=True, exist_ok=True)
    face = draw_face(seed, 0, size=SIZE, missing=0.0)
    cv2.imwrite(str(path), cv2.cvtColor(face.image, cv2.COLOR_RGB2BGR))
    return {**face.labels, "years": int(face.years)}


def write_lagenda(folder: Path, count: int = 20) -> None:
    """Scenes with a box for each face; some faces not seen, some labels missing."""
    rows = ["img_name,age,gender,face_x0,face_y0,face_x1,face_y1,person_x0,person_y0,person_x1,person_y1"]
    for index in range(count):
        labels = draw(folder / f"images/{index}.jpg", seed=1000 + index)
        rows.append(f"{index}.jpg,{labels['years']},{'MF'[labels['gender']]},2,2,38,38,0,0,40,40")
    rows += ["0.jpg,44,F,-1,-1,-1,-1,0,0,40,40", "1.jpg,-1,-1,2,2,30,30,0,0,40,40"]
    (folder / "lagenda_annotation.csv").write_text("\n".join(rows) + "\n")


def write_fairface(folder: Path, train: int = 30, test: int = 18) -> None:
    """Two tables; the oldest are `more than 70`."""
    for split, count, first in (("train", train, 2000), ("val", test, 3000)):
        rows = ["file,age,gender,race,service_test"]
        for index in range(1, count + 1):
            labels = draw(folder / f"{split}/{index}.jpg", seed=first + index)
            age = AGE.classes[labels["age"]].replace("70+", "more than 70")
            rows.append(f"{split}/{index}.jpg,{age},{('Male', 'Female')[labels['gender']]},East Asian,{index % 2 == 0}")
        (folder / f"fairface_label_{split}.csv").write_text("\n".join(rows) + "\n")


def write_raf_db(folder: Path, train: int = 40, test: int = 20) -> None:
    """Aligned crops, one list, and the manual annotations; of some faces the gender is unsure."""
    lines = []
    for split, count, first in (("train", train, 4000), ("test", test, 5000)):
        for index in range(1, count + 1):
            name = f"{split}_{index:05d}"
            labels = draw(folder / f"basic/Image/aligned/{name}_aligned.jpg", seed=first + index)
            lines.append(f"{name}.jpg {labels['emotion'] + 1}")
            path = folder / f"basic/Annotation/manual/{name}_manu_attri.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("1.5\t2\n" * 5 + f"{2 if index % 9 == 0 else labels['gender']}\n0\n2\n")
    path = folder / "basic/EmoLabel/list_patition_label.txt"
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(lines) + "\n")


def write_celeba_hq(folder: Path, train: int = 12, test: int = 3) -> None:
    """Two lines of header, and as many attributes as there are names."""
    numbers = [*range(train), *range(29_999, 29_999 - test, -1)]
    lines = []
    for number in numbers:
        labels = draw(folder / f"CelebA-HQ-img/{number}.jpg", seed=6000 + number)
        lines.append(f"{number}.jpg  -1  {-1 if labels['gender'] else 1} ")
    header = f"{len(numbers)}\nYoung Male \n"
    (folder / "CelebAMask-HQ-attribute-anno.txt").write_text(header + "\n".join(lines) + "\n")


def write_utkface(folder: Path, count: int = 18) -> None:
    """Crops whose names say age and gender; one name lacks a field."""
    for index in range(count):
        scratch = folder / "scratch.jpg"
        labels = draw(scratch, seed=7000 + index)
        scratch.rename(folder / f"{labels['years']}_{labels['gender']}_0_201701{index:02d}.jpg.chip.jpg")
    draw(folder / "61_1_20170109142408075.jpg.chip.jpg", seed=1)


def write_vggface2(folder: Path, persons: int = 4, photos: int = 5) -> None:
    """Blanks after the commas of the people's table; boxes beside; ages in a table of the user's, some of them missing."""
    people, boxes, ages = ["Class_ID, Name, Sample_Num, Flag, Gender"], ["NAME_ID,X,Y,W,H"], ["path,age"]
    for person in range(persons):
        name = f"n{person:06d}"
        people.append(f'{name}, "Somebody, {person}", {photos}, 0, {"mf"[person % 2]}')
        for photo in range(photos):
            labels = draw(folder / f"test/{name}/{photo:04d}_01.jpg", seed=8000 + 100 * person + photo)
            boxes.append(f'"{name}/{photo:04d}_01",1,1,38,38')
            ages.append(f"test/{name}/{photo:04d}_01.jpg,{labels['years'] if photo else ''}")
    draw(folder / "test/n000077/0001_01.jpg", seed=2)
    (folder / "identity_meta.csv").write_text("\n".join(people) + "\n")
    (folder / "bb_landmark").mkdir()
    (folder / "bb_landmark/loose_bb_test.csv").write_text("\n".join(boxes) + "\n")
    (folder / "ages.csv").write_text("\n".join(ages) + "\n")


def write_published(folder: Path) -> None:
    """All six, each below its name."""
    for write in (write_lagenda, write_fairface, write_raf_db, write_celeba_hq, write_utkface, write_vggface2):
        below = folder / write.__name__.removeprefix("write_")
        below.mkdir(parents=True)
        write(below)
