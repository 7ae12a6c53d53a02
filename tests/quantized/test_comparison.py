"""The table of what quantised weights cost."""

from training.instructions import INSTRUCTIONS
from training.quantization import compare, table


def test_fewer_bits_are_farther_from_the_edit_without() -> None:
    [sepia] = [instruction for instruction in INSTRUCTIONS if instruction.name == "sepia"]
    whole, int8, q4 = compare("builtin:tiny", [("int8", "none"), ("Q4_0", "none")], 1, [sepia], steps=2)
    assert whole.own_db == 60
    assert 60 > int8.own_db > q4.own_db > 20
    assert all(0 <= row.confirmed <= 1 for row in (whole, int8, q4))
    assert table([whole, int8, q4]).splitlines()[4].startswith("| GGUF Q4_0 | none | ")
