"""The 7 basic expressions as movements of mouth, brows and lids (after the action units of FACS)."""

from dataclasses import dataclass, fields

import numpy as np

EXPRESSIONS = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear")


@dataclass(frozen=True)
class Expression:
    """Movement of each part; 0 at rest, about 1 at full strength."""

    jaw: float = 0.0  # the jaw drops (AU 26, 27)
    stretch: float = 0.0  # the mouth widens (AU 20); negative purses it
    corner: float = 0.0  # the mouth corners rise (AU 12); negative lowers them (AU 15)
    upper: float = 0.0  # the upper lip rises (AU 10)
    lower: float = 0.0  # the lower lip drops and shows the teeth (AU 16, 25)
    press: float = 0.0  # the lips get thin (AU 23, 24); negative pouts
    # inner, outer: inner and outer ends of the brows rise (AU 1, 2).
    inner: float = 0.0
    outer: float = 0.0
    furrow: float = 0.0  # the brows draw together (AU 4)
    lid: float = 0.0  # the upper lids rise (AU 5); -1 closes the eyes
    squint: float = 0.0  # the lower lids rise (AU 7)
    wrinkle: float = 0.0  # the nose wrinkles (AU 9)
    cheek: float = 0.0  # the cheeks rise and the fold beside the mouth deepens (AU 6)
    skew: float = 0.0  # left minus right difference of the mouth


_VARIANTS: dict[str, tuple[Expression, ...]] = {
    "neutral": (Expression(),),
    "happiness": (
        Expression(corner=0.95, stretch=0.75, cheek=0.9, squint=0.5, upper=0.25, lower=0.35, jaw=0.15),
        Expression(corner=1.0, stretch=0.85, cheek=1.0, squint=0.75, upper=0.35, lower=0.45, jaw=0.5),
        Expression(corner=0.85, stretch=0.6, cheek=0.7, squint=0.35, outer=0.1),
    ),
    "surprise": (
        Expression(jaw=0.95, stretch=-1.3, inner=0.95, outer=1.0, lid=0.8, press=-0.1),
        Expression(jaw=0.6, stretch=-1.1, inner=1.0, outer=0.95, lid=0.7),
    ),
    "sadness": (
        Expression(corner=-0.9, inner=0.95, outer=-0.45, furrow=0.35, lid=-0.35, press=-0.25),
        Expression(corner=-1.0, inner=0.8, outer=-0.5, furrow=0.5, lid=-0.45, squint=0.3, stretch=-0.15),
    ),
    "anger": (
        Expression(inner=-1.0, outer=0.15, furrow=1.0, squint=0.55, lid=0.15, press=0.9, corner=-0.4),
        Expression(
            inner=-1.0, outer=0.25, furrow=1.0, squint=0.45, lid=0.3, upper=0.5, lower=1.0, jaw=0.3, corner=-0.25
        ),
    ),
    "disgust": (
        Expression(wrinkle=1.0, upper=1.0, corner=-0.55, inner=-0.55, outer=-0.3, furrow=0.55, squint=0.85, cheek=0.5),
        Expression(
            wrinkle=0.9, upper=0.9, corner=-0.6, inner=-0.45, furrow=0.4, squint=0.8, cheek=0.4, jaw=0.25, skew=0.5
        ),
    ),
    "fear": (
        Expression(inner=1.0, outer=0.35, furrow=0.8, lid=1.0, stretch=0.75, corner=-0.45, jaw=0.3, lower=0.7),
        Expression(inner=1.0, outer=0.45, furrow=0.9, lid=0.95, stretch=0.6, corner=-0.5, jaw=0.55, lower=0.5),
    ),
}


def sample_expression(rng: np.random.Generator, name: str) -> Expression:
    """One of the variants of `name` at a random strength, with the small asymmetries of living faces."""
    variants = _VARIANTS[name]
    base = variants[int(rng.integers(len(variants)))]
    strength = rng.uniform(0.65, 1.1)
    noise = np.clip(rng.standard_normal(len(fields(Expression))), -2, 2) * 0.06
    values = {
        f.name: float(strength * getattr(base, f.name) + e) for f, e in zip(fields(Expression), noise, strict=True)
    }
    for part in ("jaw", "upper", "lower", "squint", "wrinkle", "cheek"):
        values[part] = max(0.0, values[part]) if abs(values[part]) > 0.08 else 0.0
    return Expression(**values)
