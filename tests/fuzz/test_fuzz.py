"""A short, fixed part of `make fuzz`: nothing but errors with a sentence comes out of a reader."""

import pytest

from tests.fuzz.engine import attack
from tests.fuzz.readers import READERS

#: Readers with a fault that is not fixed yet, by its line in docs/reliability.md.
KNOWN: dict[str, str] = {}


@pytest.mark.parametrize(
    "reader",
    [
        pytest.param(name, marks=pytest.mark.xfail(reason=KNOWN[name], strict=True) if name in KNOWN else ())
        for name in READERS
    ],
)
def test_damaged_files_are_errors_with_a_sentence(reader: str) -> None:
    """Mutated files of every kind end in one sentence, within 5 s and 1 GiB."""
    tried, failure = attack(reader, 4 if reader.startswith("report") else 25, 1)
    assert failure is None, f"input {tried}: {failure.said} ({failure.key}): {failure.data[:200]!r}"
