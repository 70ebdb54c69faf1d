"""Photos -> a picture that shows beside each where the most probable brands were seen in it."""

import os
import pathlib
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from carbrand import checks, files
from carbrand.data import contact_sheet, images, overlay
from carbrand.data.contact_sheet import Cell, ContactSheet
from carbrand.errors import ConfigError, DataError
from carbrand.evaluation import heatmap, trained
from carbrand.evaluation.trained import Trained
from carbrand.training import temperature
from carbrand.training.model import logits_model

NUM_BRANDS = 3


def run(
    photos: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    run_dir: str | os.PathLike[str] | None = None,
    model_dir: str | os.PathLike[str] | None = None,
    which: str = "latest",
    brands: Sequence[str] = (),
) -> None:
    """Writes the picture.

    Args:
      photos: Files.
      output: The picture, .png or .jpg.
      run_dir: A run; or
      model_dir: An exported model.
      which: "latest" or "best" checkpoint of the run, see `checkpoint.load_run`.
      brands: Whose heat maps are shown; by default the three most probable ones of each photo.

    Raises:
      ConfigError: `output` has another format, is in no folder, or is a JPEG that would be too high; or the model does
        not know one of `brands`.
      DataError: One of `photos` cannot be used.
    """
    contact_sheet.format_of(output)
    checks.folder("folder of --output", pathlib.Path(output).parent)
    files.check_new(output, photos)
    encoded = [_read(pathlib.Path(photo)) for photo in photos]
    model = trained.load(run_dir, model_dir, which)
    unknown = [brand for brand in brands if brand not in model.brands]
    if unknown:
        raise ConfigError(f"--brand={unknown[0]}: the model knows {', '.join(model.brands)}.")
    sheet = ContactSheet(model.preprocess.height_width)
    num_cells = 1 + (len(brands) or min(NUM_BRANDS, len(model.brands)))
    _check_height(output, len(photos), -(-num_cells // sheet.columns) * model.preprocess.height_width[0])
    network = model.make_model()
    to_logits, maps = logits_model(network), heatmap.make(network)
    for photo, content in zip(photos, encoded, strict=True):
        image = _image(str(photo), content, model)
        shares = temperature.probabilities(to_logits(image[np.newaxis], training=False), model.temperature)[0]
        best = np.argsort(-shares, kind="stable")[:NUM_BRANDS].tolist()
        labels = [model.brands.index(brand) for brand in brands] or best
        heats = maps(np.repeat(image[np.newaxis], len(labels), axis=0), np.array(labels))
        cells = [
            Cell(overlay.pixels(image, heat), [model.brands[label], f"{100 * shares[label]:.1f} %"])
            for label, heat in zip(labels, heats, strict=True)
        ]
        sheet.add_heading(f"{photo}: {model.brands[best[0]]}")
        sheet.add_photos([Cell(image, ["the model sees"]), *cells])
    sheet.write(output)


def _check_height(output: str | os.PathLike[str], num_photos: int, height_px: int) -> None:
    """Raises ConfigError if photos that take `height_px` each, besides their captions, cannot be in one picture."""
    if contact_sheet.format_of(output) == "JPEG" and num_photos * height_px > contact_sheet.MAX_JPEG_PX:
        raise ConfigError(
            f"{output}: a JPEG cannot be {num_photos * height_px} px high, which {num_photos} photos need at least. "
            "Take fewer photos, or a .png."
        )


def _read(path: pathlib.Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). Give files of photos.") from error


def _image(name: str, content: bytes, model: Trained) -> np.ndarray:
    """The model's input [H, W, 3] uint8, by the same way that a photo takes through the dataset build."""
    try:
        normalised = images.normalise(content, resize_short_px=model.resize_short_px, jpeg_quality=model.jpeg_quality)
    except images.Rejected as error:
        raise DataError(f"{name}: {error.reason}: {error.detail}. Give another photo.") from error
    return model.preprocess(tf.constant(normalised.encoded)).numpy()
