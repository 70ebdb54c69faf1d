"""Prediction logs for tests."""

import json


def row(number, **changes):
    """What a server logs of one photo."""
    return {
        "time": f"2026-11-{1 + number % 20:02d}T12:00:00.000+00:00",
        "sha256": f"{number:064x}",
        "bytes": 1000,
        "model_version": 1,
        "brand": "audi",
        "probability": 0.5,
        "unknown_score": 0.5,
        "is_unknown": False,
        "probabilities": {},
        "width": 300,
        "height": 200,
        "mean_rgb": [100, 100, 100],
        "perceptual_hash": "",
        **changes,
    }


def write(folder, rows, name="predictions-1.jsonl"):
    """A log of these rows; texts are written as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = (line if isinstance(line, str) else json.dumps(line) for line in rows)
    (folder / name).write_text("".join(f"{line}\n" for line in lines))
    return folder
