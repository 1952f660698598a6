"""Hybrid-36 residue numbers, counted through."""

import pytest

from contactlm.structure.pdb_columns import decode_number, from_columns, to_columns

DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def successor(columns: str) -> str:
    """The next hybrid-36 number: counting up in base 36, from 9999 to A000 and from ZZZZ to a000."""
    if columns in ("9999", "ZZZZ"):
        return {"9999": "A000", "ZZZZ": "a000"}[columns]
    digits = DIGITS[:10] if columns.isdecimal() else DIGITS if columns == columns.upper() else DIGITS.lower()
    head, last = columns[:-1], digits.index(columns[-1])
    return successor(head) + digits[0] if last == len(digits) - 1 else head + digits[last + 1]


@pytest.mark.parametrize(
    ("start", "value"), [("0000", 0), ("9990", 9990), ("AZZ0", 10000 + 36**3 - 36), ("ZZY0", None)]
)
def test_counting_through(start, value):
    columns = start
    first = decode_number(columns)
    assert value is None or first == value
    for count in range(200):
        assert decode_number(columns) == first + count
        columns = successor(columns)


def test_the_ends_of_the_range():
    assert [decode_number(n) for n in ("-999", "  -1", "A000", "ZZZZ", "a000", "zzzz")] == [
        *(-999, -1, 10000),
        *(10000 + 26 * 36**3 - 1, 10000 + 26 * 36**3, 10000 + 2 * 26 * 36**3 - 1),
    ]


@pytest.mark.parametrize("columns", ["", "    ", "12?4", "Ab00", "A00", "1.5", "ÄA00", "A-00"])
def test_what_is_no_number(columns):
    with pytest.raises(ValueError, match="invalid literal"):
        decode_number(columns)


@pytest.mark.parametrize("number", [10000, 12345, 10000 + 2 * 26 * 36**3 - 1])
@pytest.mark.parametrize("icode", [" ", "A", "ÿ"])
def test_columns_carry_number_and_insertion_code(number, icode):
    columns = to_columns(number, icode)
    assert len(columns) == 5
    assert from_columns(int(columns[:4]), columns[4]) == (number, icode)
    assert from_columns(-5, icode) == (-5, icode)
