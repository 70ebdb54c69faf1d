import io

import numpy as np
import PIL.Image
import pytest

from carbrand.data import overlay


def test_the_overlay_is_bright_where_the_map_is():
    heat = np.zeros((4, 4), np.float32)
    heat[0, 0] = 1
    with PIL.Image.open(io.BytesIO(overlay.jpeg(np.full((80, 120, 3), 100, np.uint8), heat))) as picture:
        pixels = np.asarray(picture.convert("L")).astype(int)
    assert pixels.shape == (80, 120)
    assert pixels[:10, :15].mean() > pixels[40:, 60:].mean() + 60
    assert pixels[40:, 60:].mean() == pytest.approx(50, abs=3)  # half of the photo, half of black
