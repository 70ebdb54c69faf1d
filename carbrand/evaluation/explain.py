"""Photos -> a picture that shows beside each where the most probable brands were seen in it."""

import os
import pathlib
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from carbrand import files
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
      ConfigError: `output` has another format, or the model does not know one of `brands`.
      DataError: One of `photos` cannot be used.
    """
    contact_sheet.format_of(output)
    files.check_new(output, photos)
    encoded = [_read(pathlib.Path(photo)) for photo in photos]
    model = trained.load(run_dir, model_dir, which)
    unknown = [brand for brand in brands if brand not in model.brands]
    if unknown:
        raise ConfigError(f"--brand={unknown[0]}: the model knows {', '.join(model.brands)}.")
    network = model.make_model()
    to_logits, maps = logits_model(network), heatmap.make(network)
    sheet = ContactSheet(model.preprocess.height_width)
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
