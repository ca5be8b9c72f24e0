"""docs/reliability.md is what the marks of the tests say."""

from tests.reliability import PAGE, page


def test_the_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "make reliability"
