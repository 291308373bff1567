"""Settings as fields: checked, documented, and handed to those who make options of them."""

from dataclasses import dataclass

import pytest

from ncsn_fast.support.settings import check_settings, documented, setting, settings_of


@documented
@dataclass(frozen=True)
class Oven:
    """An oven."""

    degrees: int = setting(180, "How hot.", "In °C.", command=200, least=50, free=True)
    grill: bool | str = setting("auto", choices=("auto", True, False))
    program: str | None = setting(None, choices=("bread", "cake"), none="off")

    def __post_init__(self) -> None:
        check_settings(self)


def test_a_setting_is_a_field_with_its_default():
    assert Oven() == Oven(180, "auto", None)
    table = settings_of(Oven)
    assert list(table) == ["degrees", "grill", "program"]
    assert [what.kind for what in table.values()] == [int, bool, str]
    assert [what.command_default for what in table.values()] == [200, "auto", "off"]
    assert [what.free for what in table.values()] == [True, False, False]


def test_the_settings_are_in_the_documentation():
    assert Oven.__doc__.startswith("An oven.\n\nAttributes:\n    degrees: How hot. In °C.\n")


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"degrees": 49}, "degrees = 49: give a whole number of at least 50"),
        ({"degrees": None}, "degrees = None"),
        ({"grill": 3}, "grill = 3: choose 'auto', True or False"),
        ({"program": "off"}, "program = 'off': choose 'bread', 'cake' or None"),
    ],
)
def test_what_is_not_as_it_should_be_is_refused(keywords, message):
    with pytest.raises(ValueError, match=message):
        Oven(**keywords)
