"""Tables of plain text line up."""

from graftax.evaluate.tables import aligned


def test_columns_stand_left_or_right():
    assert aligned([["name", "n", "note"], ["a", "12", "x"]], left=(0, 2)) == ["name   n  note", "a     12  x   "]
