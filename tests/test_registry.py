"""The one kind of registry behind methods, kernels, tasks, losses and the rest."""

import pytest

from jaxface.errors import UserError
from jaxface.registry import Registry


@pytest.fixture
def animals():
    return Registry("animal", {"Cat": 4, "emu": 2}, others="or a FILE")


def test_a_name_that_is_close_to_a_known_one_is_told_the_nearest(animals):
    with pytest.raises(UserError, match=r"^no animal 'cta'; known: Cat, emu, or a FILE \(nearest: Cat\)$"):
        animals.get("cta")
    with pytest.raises(UserError, match=r"^no animal 'hippopotamus'; known: Cat, emu, or a FILE$"):
        animals["hippopotamus"]


def test_what_is_decorated_stays_what_it_was_and_is_found_by_its_name(animals):
    @animals.register("newt")
    class Newt: ...

    assert animals.get("newt") is Newt
    assert Newt().__class__ is Newt
    assert list(animals) == ["Cat", "emu", "newt"]


def test_an_entry_registered_anew_is_the_latest_and_the_only_one_of_its_name(animals):
    animals.add("Cat", 5)
    assert list(animals.items()) == [("emu", 2), ("Cat", 5)]
    assert len(animals) == 2


def test_what_is_registered_for_a_while_is_forgotten_even_after_an_error(animals):
    with pytest.raises(ZeroDivisionError), animals.temporarily():
        animals.add("Cat", 1 / (animals.add("owl", 2) - 2))
    with animals.temporarily():
        animals.add("Cat", 3)
        assert animals["Cat"] == 3
    assert dict(animals.items()) == {"Cat": 4, "emu": 2}
    assert "owl" not in animals
