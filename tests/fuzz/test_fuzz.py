"""A short, fixed part of `make fuzz`: nothing but errors with a sentence comes out of a reader."""

import pytest

from tests.fuzz.engine import attack
from tests.fuzz.readers import READERS


@pytest.mark.parametrize("reader", READERS)
def test_damaged_files_are_errors_with_a_sentence(reader: str) -> None:
    """Mutated files of every kind end in one sentence, within 5 s and 1 GiB."""
    tried, failure = attack(reader, 4 if reader.startswith("report") else 25, 1)
    assert failure is None, f"input {tried}: {failure.said} ({failure.key}): {failure.data[:200]!r}"
