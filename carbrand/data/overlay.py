"""A heat map laid over the photo that it belongs to."""

import io

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from carbrand.data.opencv import cv2

OPACITY = 0.5  # of the map over the photo
_COLORS = matplotlib.colormaps["inferno"](np.linspace(0, 1, 256))[:, :3]


def pixels(image: NDArray[np.uint8], heat: NDArray[np.floating]) -> NDArray[np.uint8]:
    """A photo [H, W, 3] with its map [h, w] laid over it: bright where the brand was seen."""
    height, width = image.shape[:2]
    heat = np.clip(cv2.resize(heat.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC), 0, 1)
    colors = _COLORS[np.round(255 * heat).astype(np.uint8)]
    return ((1 - OPACITY) * image + OPACITY * 255 * colors).astype(np.uint8)


def jpeg(image: NDArray[np.uint8], heat: NDArray[np.floating]) -> bytes:
    """`pixels` as a JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels(image, heat)).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()
