"""Files made to hurt: each is one true line, with little memory."""

import json
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from jaxface.errors import UserError
from small_models import KINDS, random_tensors
from weights_convert.checkpoint import read_checkpoint, write_checkpoint
from weights_convert.tensor_files import write_tensors


def safetensors(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(shape, start, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def zipped(path, entries, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return path


HEADERS = {
    "metadata of depth 10^6": (b'{"__metadata__":{"config":' + b"[" * 10**6, b""),
    "a whole header of depth 10^6": (b'{"a":' * 10**6, b""),
    "overlapping tensors": ({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, b"0" * 12),
    "a hole between tensors": ({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, b"0" * 12),
    "bytes after the last tensor": ({"a": entry([1], 0, 4)}, b"0" * 8),
    "a key twice": (
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        b"0" * 4,
    ),
    "a shape whose product overflows": ({"a": entry([2**40, 2**40], 0, 0)}, b""),
    "a negative side": ({"a": entry([-1, -4], 0, 16)}, b"0" * 16),
    "a side that is a text": ({"a": entry(["4"], 0, 16)}, b"0" * 16),
    "a side that is a float": ({"a": entry([4.0], 0, 16)}, b"0" * 16),
    "a side that is true": ({"a": entry([True], 0, 4)}, b"0" * 4),
    "offsets the wrong way round": ({"a": entry([1], 4, 0)}, b"0" * 4),
    "three offsets": ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}}, b"0" * 8),
    "a data type that is a list": ({"a": entry([1], 0, 4, ["F32"])}, b"0" * 4),
    "an unknown data type": ({"a": entry([1], 0, 1, "F8_E4M3")}, b"0"),
    "a tensor without a shape": ({"a": {"dtype": "F32", "data_offsets": [0, 4]}}, b"0" * 4),
    "metadata of numbers": ({"__metadata__": {"a": 3}}, b""),
    "a list": (b"{}"[:1] + b"[1,2,3]"[1:], b""),
    "a name with line breaks": ({"a\nerror: all is well": entry([1], 0, 4)}, b"0" * 4),
    "a name of 10^5 characters": ({"a" * 10**5: entry([1], 0, 4)}, b"0" * 4),
    "a block of number 10^9": ({"patch_embed.proj.weight": entry([1], 0, 4), "blocks.999999999.norm1.weight": entry([1], 4, 8)}, b"0" * 8),
    "a number of 10^4 digits": (b'{"a":{"dtype":"F32","shape":[' + b"9" * 10**4 + b'],"data_offsets":[0,4]}}', b"0" * 4),
    "no UTF-8": (b'{"\xff\xfe":1}', b""),
    "10^4 tensors of no bytes": ({f"t{i}": entry([0], 0, 0) for i in range(10_000)}, b""),
    "a number in the place of a tensor": ({"a": 1}, b""),
    "a header longer than any model's": (b'{"a":"' + b"x" * 9 * 2**20 + b'"}', b""),
}


def complaint_within_limits(path):
    """The error's text, if it took little memory."""
    size = path.stat().st_size
    tracemalloc.start()
    with pytest.raises(UserError) as caught:
        read_checkpoint(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    text = str(caught.value)
    assert text.isprintable()
    assert len(text) < 1500
    assert peak < 1.3 * size + 32 * 2**20, f"{peak:,} bytes for a file of {size:,}"
    return text


@pytest.mark.parametrize("what", HEADERS)
def test_a_spoilt_safetensors_header_is_one_line(tmp_path, what):
    text = complaint_within_limits(safetensors(tmp_path / "a.safetensors", *HEADERS[what]))
    assert str(tmp_path / "a.safetensors") in text


def test_metadata_that_lies_about_the_model_is_one_line(tmp_path):
    towers = KINDS["lang"]
    tensors = {f"visual.{name}": [array] for name, array in random_tensors(towers).items()}
    for vision, message in (
        ({"width": 64, "depth": 10**9, "heads": 2, "mlp_width": 256, "patch": 8, "image_size": 32}, "depth|1000"),
        ({"width": 0, "depth": 2, "heads": 2, "mlp_width": 256, "patch": 8, "image_size": 32}, "width"),
        ({"width": "64", "depth": 2, "heads": 2, "mlp_width": 256, "patch": 8, "image_size": 32}, "width"),
        ({"more": 1}, "the metadata's configuration cannot be read"),
    ):
        write_tensors(tmp_path / "a.safetensors", tensors, metadata={"config": json.dumps({"vision": vision})})
        with pytest.raises(UserError, match=message) as caught:
            read_checkpoint(tmp_path / "a.safetensors")
        assert str(caught.value).isprintable()


def test_a_pickle_or_a_list_of_entries_longer_than_any_models_is_not_opened(tmp_path):
    bomb = zipped(tmp_path / "bomb.pt", [("archive/data.pkl", b"\x80\x02" + bytes(300 * 2**20))], zipfile.ZIP_DEFLATED)
    assert "longer than that of any model" in complaint_within_limits(bomb)
    order = [("archive/data.pkl", b"\x80\x02}."), ("archive/byteorder", bytes(64 * 2**20))]
    assert "byteorder" in complaint_within_limits(zipped(tmp_path / "order.pt", order, zipfile.ZIP_DEFLATED))
    many = zipped(tmp_path / "many.pt", ((f"archive/data/{i:060}", b"") for i in range(45_000)))
    assert "its list of entries is longer" in complaint_within_limits(many)
    slow = zipped(tmp_path / "slow.pt", [("archive/data.pkl", b"\x80\x02" + b"N0" * 2**19 + b".")])
    assert "broken" in complaint_within_limits(slow)


@pytest.mark.parametrize(
    "pickled",
    [
        b"\x80\x02" + b"(" * 1000 + b"t" * 999 + b".",
        b"\x80\x02}q\x00(X\x05\x00\x00\x00modelh\x00u.",  # a dictionary that holds itself
        b"\x80\x02cargparse\nNamespace\n)\x81}X\x01\x00\x00\x00aK\x01sb.",
        b"\x80\x02cbuiltins\nexec\n(X\x04\x00\x00\x00passtR.",
        b"\x80\x02X\xff\xff\xff\x7fabc.",
        b"\x80\x02csubprocess\nPopen\n.",
        b"\x80\x02" + b"(" * 10**6 + b"t" * 10**6 + b".",
    ],
    ids=["nested tuples", "itself", "a namespace alone", "exec", "a text of 2 GB", "Popen", "tuples 10^6 deep"],
)
def test_a_pickle_that_holds_no_weights_is_one_line(tmp_path, pickled):
    complaint_within_limits(zipped(tmp_path / "a.pt", [("archive/data.pkl", pickled)]))


def test_an_entry_twice_and_a_file_that_is_none_are_one_line(tmp_path):
    whole = tmp_path / "a.pt"
    write_checkpoint(whole, KINDS["lang"], random_tensors(KINDS["lang"]))
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(whole, "a") as archive:
        archive.writestr("archive/data/0", b"other bytes")
    assert "an entry stands in it twice" in complaint_within_limits(whole)
    for content in (b"\x80\x02" + bytes(100), b"PK\x03\x04" + bytes(100), bytes(100), np.random.default_rng(0).bytes(5000)):
        (tmp_path / "b.pt").write_bytes(content)
        complaint_within_limits(tmp_path / "b.pt")
