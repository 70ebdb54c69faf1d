"""TensorFlow Serving's REST interface: bodies of requests -> photos, results -> bodies of answers.

The contract is that of TensorFlow Serving's documentation ("RESTful API"), for a model with the signatures of `graph`:
what a client sends here and gets here is what it sends to and gets from TensorFlow Serving.
"""

import base64
import binascii
import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from google.protobuf import json_format
from tensorflow.core.protobuf import saved_model_pb2

from carbrand.exported import EXAMPLE_FEATURE
from carbrand.serving.predictor import Prediction, digits

PREDICT, CLASSIFY = "serving_default", "classify"  # names of signatures
_INPUT = "encoded"


class BadRequestError(Exception):
    """A request that cannot be answered; the text says why."""


@dataclasses.dataclass(frozen=True)
class PredictRequest:
    """The photos of a request, and whether it came, and wants its answer, by columns instead of by rows."""

    photos: list[bytes]
    is_columnar: bool


def parse_predict(body: bytes) -> PredictRequest:
    """The body of a `:predict` request.

    Raises:
      BadRequestError: It is none.
    """
    content = _parse(body)
    _check_signature(content, PREDICT)
    if ("instances" in content) == ("inputs" in content):
        raise BadRequestError("the body needs one of 'instances' (rows) and 'inputs' (columns)")
    if "instances" in content:
        rows = _list(content["instances"], "instances")
        return PredictRequest([_bytes(row, f"instances[{i}]") for i, row in enumerate(rows)], is_columnar=False)
    inputs = content["inputs"]
    if isinstance(inputs, dict) and "b64" not in inputs:
        inputs = _only(inputs, "inputs")
    rows = [inputs] if isinstance(inputs, dict) else _list(inputs, "inputs")
    return PredictRequest([_bytes(row, f"inputs[{i}]") for i, row in enumerate(rows)], is_columnar=True)


def parse_classify(body: bytes) -> list[bytes]:
    """The photos in the body of a `:classify` request.

    Raises:
      BadRequestError: It is none.
    """
    content = _parse(body)
    _check_signature(content, CLASSIFY)
    context = content.get("context", {})
    if not isinstance(context, dict):
        raise BadRequestError("'context' is no object")
    photos = []
    for i, example in enumerate(_list(content.get("examples"), "examples")):
        features = {**context, **example} if isinstance(example, dict) else {}
        if EXAMPLE_FEATURE not in features:
            raise BadRequestError(f"examples[{i}] has no feature {EXAMPLE_FEATURE!r}")
        photos.append(_bytes(features[EXAMPLE_FEATURE], f"examples[{i}]"))
    return photos


def predict_answer(request: PredictRequest, results: Sequence[Prediction]) -> dict[str, Any]:
    """The body for the results of `request`."""
    rows = [_outputs(result) for result in results]
    if request.is_columnar:
        return {"outputs": {name: [row[name] for row in rows] for name in rows[0]}}
    return {"predictions": rows}


def classify_answer(brands: Sequence[str], results: Sequence[Prediction]) -> dict[str, Any]:
    """The body for classified photos: brands and their probabilities, the most probable one first."""
    return {"result": [_sorted(brands, result) for result in results]}


def status_answer(version: int) -> dict[str, Any]:
    """The body of a model's status."""
    status = {"error_code": "OK", "error_message": ""}
    return {"model_version_status": [{"version": str(version), "state": "AVAILABLE", "status": status}]}


def metadata_answer(name: str, version: int, signatures: Mapping[str, Any]) -> dict[str, Any]:
    """The body of a model's metadata; `signatures` by name, see `signatures`."""
    return {
        "model_spec": {"name": name, "signature_name": "", "version": str(version)},
        "metadata": {"signature_def": {"signature_def": signatures}},
    }


def signatures(version_folder: pathlib.Path) -> dict[str, Any]:
    """The signatures of a SavedModel by name, as metadata has them."""
    content = saved_model_pb2.SavedModel.FromString((version_folder / "saved_model.pb").read_bytes())
    return {
        name: json_format.MessageToDict(
            signature, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
        for name, signature in content.meta_graphs[0].signature_def.items()
    }


def _parse(body: bytes) -> dict[str, Any]:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        text = "too deeply nested" if isinstance(error, RecursionError) else str(error)
        raise BadRequestError(f"the body is no JSON: {text}") from error
    if not isinstance(content, dict):
        raise BadRequestError(f"the body is no JSON object but a {type(content).__name__}")
    return content


def _check_signature(content: dict[str, Any], expected: str) -> None:
    name = content.get("signature_name") or "serving_default"
    if name != expected:
        raise BadRequestError(f"signature_name {name!r}: this request needs signature_name {expected!r}")


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise BadRequestError(f"{where!r} is no list with at least one photo")
    return value


def _bytes(value: Any, where: str) -> bytes:
    """A photo, bare or as the only input of the signature."""
    if isinstance(value, dict) and "b64" not in value:
        value = _only(value, where)
    if not isinstance(value, dict) or not isinstance(value.get("b64"), str):
        raise BadRequestError(f"{where} is no {{'b64': …}} with the photo in base64")
    try:
        return base64.b64decode(value["b64"], validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRequestError(f"{where} is no valid base64: {error}") from error


def _only(value: dict[str, Any], where: str) -> Any:
    if value.keys() != {_INPUT}:
        given = ", ".join(map(repr, sorted(value)[:5])) or "nothing"
        raise BadRequestError(f"{where} has {given}; the model's only input is {_INPUT!r}")
    return value[_INPUT]


def _outputs(result: Prediction) -> dict[str, Any]:
    """What the graph's `serving_default` puts out for one photo."""
    return {
        "brand": result.brand,
        "probability": digits(result.probability),
        "probabilities": [digits(p) for p in result.probabilities],
        "logits": [digits(p) for p in result.logits],
        "unknown_score": digits(result.unknown_score),
    }


def _sorted(brands: Sequence[str], result: Prediction) -> list[list[Any]]:
    order = np.argsort(-result.probabilities, kind="stable")
    return [[brands[label], digits(result.probabilities[label])] for label in order.tolist()]
