"""Accuracy and loss on the validation split while a run goes on, and a picture of what is most wrong there."""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

from carbrand.data import manifest, records
from carbrand.data.contact_sheet import Cell, ContactSheet
from carbrand.data.reader import RecordReader
from carbrand.training import features, temperature
from carbrand.training.losses import cross_entropy
from carbrand.training.progress import Progress, Quiet
from carbrand.training.settings import Phase
from carbrand.training.trainer import Trainer, Validation

ERRORS_PICTURE = "validation_errors.png"
_MAX_ERRORS = 24


class Validator:
    """Validates the network of a phase, with the averages of its weights where the run keeps some."""

    def __init__(
        self, trainer: Trainer, phase: Phase, network: keras.Model, make_batches: Callable[..., tf.data.Dataset]
    ) -> None:
        """`make_batches` is what `batches.source` returns for the phase."""
        self._trainer, self._phase = trainer, phase
        self._forward = features.make_forward(network, trainer.strategy)
        self._batches = make_batches("validation", is_training=False)
        self._labels = manifest.load_index(trainer.data, "validation")["label"]
        self._logits = np.zeros([0, network.output.shape[-1]], np.float32)

    def validate(self, progress: Progress | Quiet) -> None:
        """Adds what is found at the present step to the run's validations."""
        trainer, labels = self._trainer, self._labels
        with trainer.average.in_use():
            outputs = features.outputs(self._forward, self._batches, len(labels), trainer.strategy)
            self._logits = np.concatenate(list(outputs))
        accuracy = float((self._logits.argmax(-1) == labels).mean())
        loss = float(self._losses().mean())
        trainer.validations.append(Validation(trainer.step, accuracy, loss, temperature.fit(labels, self._logits)))
        progress.log_validation(trainer.step, phase=self._phase.name, accuracy=accuracy, loss=loss)

    def show_errors(self, progress: Progress | Quiet) -> None:
        """Draws the photos that the last validation got most wrong, to a file of the run and to TensorBoard."""
        trainer, guesses = self._trainer, self._logits.argmax(-1)
        wrong = np.flatnonzero(guesses != self._labels)
        shown = wrong[np.argsort(-self._losses()[wrong], kind="stable")][:_MAX_ERRORS]
        sheet = ContactSheet(trainer.settings.preprocess.height_width)
        sheet.add_heading(f"The worst errors on the validation split at step {trainer.step:,}")
        sheet.add_text([f"{len(shown)} of {len(wrong)} errors in {len(guesses)} photos, the highest loss first"])
        sheet.add_photos([self._cell(int(number), int(guesses[number])) for number in shown])
        path = trainer.run / ERRORS_PICTURE
        sheet.write(path)
        with Image.open(path) as picture:
            progress.show_picture(trainer.step, "validation/errors", np.asarray(picture.convert("RGB")))

    def _cell(self, number: int, guess: int) -> Cell:
        trainer, brands = self._trainer, self._trainer.manifest.brands
        record = RecordReader(trainer.data, "validation").read(number)
        image = trainer.settings.preprocess(tf.constant(bytes(records.parse_bytes(record, "image/encoded")))).numpy()
        name = bytes(records.parse_bytes(record, "image/filename")).decode().rpartition("/")[2]
        return Cell(image, [f"{brands[self._labels[number]]}, not", brands[guess]], name)

    def _losses(self) -> np.ndarray:
        targets = tf.one_hot(self._labels, self._logits.shape[-1])
        return cross_entropy(targets, tf.constant(self._logits)).numpy()
