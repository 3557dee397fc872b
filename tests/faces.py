"""Small data sets on disk, in the layouts that users have."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from jaxface.data.synthetic import draw_face
from jaxface.data.tasks import AGE, EMOTION, GENDER


def write_photo(path: Path, seed: int, size: int = 48) -> dict[str, int]:
    """Writes a drawn face as a JPEG and returns its labels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    face = draw_face(seed, 0, size=size)
    cv2.imwrite(str(path), cv2.cvtColor(face.image, cv2.COLOR_RGB2BGR))
    return face.labels


def write_raf_db(folder: Path, train: int = 12, test: int = 4) -> None:
    """A data set in RAF-DB's layout."""
    lines = []
    for split, count in (("train", train), ("test", test)):
        for index in range(count):
            name = f"{split}_{index + 1:05d}"
            labels = write_photo(folder / "basic/Image/aligned" / f"{name}_aligned.jpg", seed=len(lines))
            lines.append(f"{name}.jpg {labels['emotion'] + 1}")
    (folder / "basic/EmoLabel").mkdir(parents=True)
    (folder / "basic/EmoLabel/list_patition_label.txt").write_text("\n".join(lines) + "\n")


def write_manifest(folder: Path, count: int = 24) -> Path:
    """A table with `path,age,gender,emotion,split`, a third of the labels left out."""
    rows = ["path,age,gender,emotion,split"]
    for index in range(count):
        labels = write_photo(folder / f"photos/{index}.jpg", seed=index)
        cells = ["" if index % 3 == column else task.classes[labels[task.name]] for column, task in enumerate((AGE, GENDER, EMOTION))]
        rows.append(f"photos/{index}.jpg,{','.join(cells)},{'test' if index % 4 == 3 else 'train'}")
    path = folder / "manifest.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """uint8 [height, width, 3]"""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_video(path: Path, frames: int, size: int = 64, rate: float = 10.0) -> None:
    """A grey video whose frame k has the brightness 10 k + 20."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), rate, (size, size))
    for number in range(frames):
        writer.write(np.full((size, size, 3), 10 * number + 20, np.uint8))
    writer.release()


def write_network_like_yunet(path):
    """Random answers for each cell of each grid, under the names that OpenCV's detector asks for."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper, random = onnx.helper, np.random.default_rng(0)
    nodes, constants, outputs = [], [], []
    for stride in (8, 16, 32):
        nodes.append(helper.make_node("AveragePool", ["image"], [f"cells_{stride}"], kernel_shape=[stride] * 2, strides=[stride] * 2))
        for what, count, spread in (("cls", 1, 0.02), ("obj", 1, 0.02), ("bbox", 4, 0.005), ("kps", 10, 0.005)):
            name = f"{what}_{stride}"
            kernel = random.normal(0, spread, (count, 3, 1, 1)).astype(np.float32)
            shape = np.array([1, -1, count])
            constants += [onnx.numpy_helper.from_array(array, f"{name}_{i}") for i, array in enumerate((kernel, shape))]
            last = "Sigmoid" if count == 1 else "Identity"
            steps = [("Conv", [f"{name}_0"], {}), ("Transpose", [], {"perm": [0, 2, 3, 1]}), ("Reshape", [f"{name}_1"], {}), (last, [], {})]
            x = f"cells_{stride}"
            for index, (kind, more, attributes) in enumerate(steps):
                y = name if index == len(steps) - 1 else f"{name}_step{index}"
                nodes.append(helper.make_node(kind, [x, *more], [y], **attributes))
                x = y
            outputs.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, (640 // stride) ** 2, count]))
    image = helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, [1, 3, 640, 640])
    graph = helper.make_graph(nodes, "like_yunet", [image], outputs, constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
