"""YuNet, by OpenCV, from a model file that the user names (Wu et al., MIR 2023)."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from facessl.core.errors import ConfigError


class YuNet:
    """Faces of photos at their full size, on the CPU whatever the `device`.

    `model` is a YuNet .onnx file, as OpenCV's FaceDetectorYN takes it. ConfigError: it is not.
    """

    MIN_SCORE = 0.6

    def __init__(self, model: str | Path | None = None, device: str = "cpu") -> None:
        if model is None:
            raise ConfigError("the detector yunet needs its weights: name a YuNet .onnx file with --model FILE")
        if not Path(model).is_file():
            raise ConfigError(f"the face detector's model {model} does not exist: name a YuNet .onnx file")
        try:
            self.network = cv2.FaceDetectorYN.create(str(model), "", (320, 320))
        except cv2.error as error:
            reason = str(error).strip().splitlines()[-1]
            raise ConfigError(
                f"the face detector's model {model} cannot be read as YuNet by OpenCV: {reason}"
            ) from None

    def __call__(self, photos: Sequence[np.ndarray], *, min_score: float, smallest: float) -> list[np.ndarray]:
        """Find faces: per photo (n, 15) float32 rows as `MTCNN` gives them. `smallest` has no effect."""
        return [self._one(photo, min_score) for photo in photos]

    def _one(self, photo: np.ndarray, min_score: float) -> np.ndarray:
        self.network.setInputSize((photo.shape[1], photo.shape[0]))
        self.network.setScoreThreshold(min_score)
        _, faces = self.network.detect(cv2.cvtColor(photo, cv2.COLOR_RGB2BGR))
        rows = np.zeros((0, 15), np.float32) if faces is None else faces.astype(np.float32)
        corners = np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:4]], 1)
        # The person's right eye comes first: the one on the image's left.
        return np.concatenate([corners, rows[:, 14:15], rows[:, 4:14]], 1)
