"""The folder of compiled programs: one for each compiler and processor, bounded, and the user's to turn off."""

import os
import sys

import pytest

from jaxface.compiled import bound, use_compiled_programs


@pytest.fixture
def environment(monkeypatch, tmp_path):
    """An environment of its own, of a process that has not imported JAX."""
    monkeypatch.delitem(sys.modules, "jax", raising=False)
    found = {"XDG_CACHE_HOME": str(tmp_path)}
    monkeypatch.setattr(os, "environ", found)
    return found


def test_programs_are_kept_in_the_users_cache_folder_by_compiler_and_processor(environment, tmp_path, monkeypatch):
    folders = []
    for version, abilities in (("1", "a"), ("1", "b"), ("2", "a"), ("1", "a")):
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        monkeypatch.setattr("jaxface.compiled.version", lambda name, version=version: version)
        monkeypatch.setattr("jaxface.compiled.abilities", lambda abilities=abilities: abilities)
        use_compiled_programs()
        folders.append(environment["JAX_COMPILATION_CACHE_DIR"])
    assert len(set(folders)) == 3
    assert folders[0] == folders[3] == str(tmp_path / "jaxface" / "compiled" / "1-a")


@pytest.mark.parametrize(
    ("told", "kept"),
    [({"JAXFACE_COMPILED": "off"}, None), ({"JAX_COMPILATION_CACHE_DIR": "/mine"}, "/mine"), ({"XDG_CACHE_HOME": "/proc/nowhere"}, None)],
)
def test_what_the_user_says_stands_and_what_cannot_be_written_is_left_out(environment, told, kept):
    environment |= told
    use_compiled_programs()
    assert environment.get("JAX_COMPILATION_CACHE_DIR") == kept


def test_the_oldest_programs_go_first(tmp_path):
    for index in range(5):
        path = tmp_path / f"version{index % 2}" / str(index)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(100))
        os.utime(path, (index, index))
    bound(tmp_path, 250)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["3", "4"]
