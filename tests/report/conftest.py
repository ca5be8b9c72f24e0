"""What the tests of reports share."""

import pytest
from markupsafe import Markup

from facessl.report import curves


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Curves take a second a page; tests of the rest go without."""
    drawn = Markup("<figcaption><b>{}</b></figcaption>")
    monkeypatch.setattr(curves, "curve", lambda title, *_, **__: drawn.format(title))
