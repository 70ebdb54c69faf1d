"""A run's newest checkpoint -> a folder that needs no carbrand to serve: encoded photos in, brands out."""

import os
import pathlib
import shutil
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import carbrand
from carbrand import exported
from carbrand.data import manifest, records
from carbrand.data.preprocess import Preprocess
from carbrand.data.reader import RecordReader
from carbrand.errors import ConfigError, GateError
from carbrand.training import checkpoint

MAX_PARITY_DIFFERENCE = 1e-5  # between the run's probabilities and the exported graph's
_PARITY_PHOTOS = 64


class ServingModule(tf.Module):
    """The exported graph. `weights` holds each variable once, in the order of `Exported.variables`."""

    def __init__(self, model: keras.Model, brands: tuple[str, ...], preprocess: Preprocess) -> None:
        super().__init__()
        self.weights = [variable.value for variable in model.variables]
        self._brands = tf.constant(brands)
        # A function, not the model itself, which would be tracked too and store each variable a second time.
        self._forward = lambda images: model(images, training=False)
        self._preprocess = preprocess

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="encoded")])
    def predict(self, encoded: tf.Tensor) -> dict[str, tf.Tensor]:
        """Encoded photos [B] string -> brand [B] string, probability [B] float32, probabilities [B, C] float32."""
        images = tf.map_fn(
            self._preprocess, encoded, fn_output_signature=tf.TensorSpec((*self._preprocess.height_width, 3), tf.uint8)
        )
        probabilities = self._forward(images)
        return {
            "brand": tf.gather(self._brands, tf.argmax(probabilities, -1)),
            "probability": tf.reduce_max(probabilities, -1),
            "probabilities": probabilities,
        }


def run(
    run_dir: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    data: str | os.PathLike[str] | None = None,
    which: str = "latest",
    overwrite: bool = False,
) -> pathlib.Path:
    """Exports a checkpoint of `run_dir` to the folder `output`.

    Args:
      run_dir: A run with at least one checkpoint.
      output: A new folder; `exported` says what it holds.
      data: Records on whose test photos the exported graph is compared with the run.
      which: "latest" or "best" checkpoint, see `checkpoint.load_run`.
      overwrite: Replace an older export.

    Raises:
      ConfigError: `output` exists.
      GateError: The exported graph's probabilities differ from the run's.
    """
    output = pathlib.Path(output)
    if output.exists() and not output.is_dir():
        raise ConfigError(f"--output={output}: is a file. Name a folder.")
    if output.exists() and any(output.iterdir()) and not overwrite:
        raise ConfigError(f"--output={output}: exists and is not empty. Give another folder, or --overwrite.")
    model, meta = checkpoint.load_model(run_dir, which)
    brands, preprocess = tuple(meta["brands"]), Preprocess(**meta["config"]["preprocess"])
    (output / exported.MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(exported.saved_model(output), ignore_errors=True)
    module = ServingModule(model, brands, preprocess)
    tf.saved_model.save(module, str(exported.saved_model(output)), signatures={"serving_default": module.predict})
    if data is not None:
        _check_parity(model, preprocess, output, data)
    exported.write(output, _describe(model, meta, brands, run_dir))
    return output


def _describe(model: keras.Model, meta: dict[str, Any], brands: tuple[str, ...], run_dir: Any) -> exported.Exported:
    facts = {"run": pathlib.Path(run_dir).name, "step": meta["step"], "trained_on": meta["dataset"]}
    return exported.Exported(
        brands=brands,
        model=meta["config"]["model"],
        preprocess=meta["config"]["preprocess"],
        resize_short_px=meta["resize_short_px"],
        jpeg_quality=meta["jpeg_quality"],
        variables=tuple(variable.path for variable in model.variables),
        temperature=checkpoint.temperature(meta),
        facts={**facts, "carbrand_version": carbrand.__version__, "tensorflow_version": tf.__version__},
    )


def _check_parity(model: keras.Model, preprocess: Preprocess, output: pathlib.Path, data: Any) -> None:
    split = "test" if manifest.load(data).splits["test"].num_examples else "validation"
    reader = RecordReader(data, split)
    encoded = [
        records.decode(tf.constant(reader.read(n)))["image/encoded"] for n in range(min(_PARITY_PHOTOS, len(reader)))
    ]
    ours = model(tf.stack([preprocess(photo) for photo in encoded]), training=False).numpy()
    signature = tf.saved_model.load(str(exported.saved_model(output))).signatures["serving_default"]
    theirs = signature(tf.stack(encoded))["probabilities"].numpy()
    difference = float(np.abs(ours - theirs).max())
    if not difference <= MAX_PARITY_DIFFERENCE:
        raise GateError(
            f"{output}: the exported graph's probabilities differ from the run's by {difference:.3g} on {len(encoded)} "
            f"photos; at most {MAX_PARITY_DIFFERENCE:g} is allowed. The export was not completed."
        )
