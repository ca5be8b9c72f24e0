"""Constants that decide what a run sees, as literals: whoever changes one changes this file too."""

from dataclasses import asdict

from facessl.views.spec import FRA_VIEWS, VGGFACE2_MEAN, VGGFACE2_STD


def test_fra_views_are_the_released_ones() -> None:
    both = {
        "size": 1.0,
        "scale": (0.2, 1.0),
        "ratio": (3 / 4, 4 / 3),
        "flip": 0.5,
        "jitter": (0.4, 0.4, 0.2, 0.1),
        "jitter_p": 0.8,
        "grayscale": 0.2,
        "blur_sigma": (0.1, 2.0),
        "solarize_threshold": 128,
    }
    assert [asdict(view) for view in FRA_VIEWS] == [
        both | {"blur": 1.0, "solarize": 0.0},
        both | {"blur": 0.1, "solarize": 0.2},
    ]


def test_vggface2_normalisation_is_the_released_one() -> None:
    assert VGGFACE2_MEAN == (0.5231, 0.4044, 0.3489)
    assert VGGFACE2_STD == (0.2536, 0.2194, 0.2070)
