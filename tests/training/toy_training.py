"""`toy_training.py FOLDER LOG EPOCH_S BINDING…` writes validation rows as the real training does, in no time.

The loss is a parabola over the logarithm of the learning rate, best at 0.01, and one over the dropout, best at 0.3,
plus what falls with each epoch. Appends to LOG when it starts and when it has trained to its end.
"""

import json
import math
import pathlib
import signal
import sys
import time

EPOCHS = 4


def main():
    folder, log, epoch_s, *bindings = sys.argv[1:]
    folder = pathlib.Path(folder)
    values = dict(binding.split(" = ") for binding in bindings)
    rate, dropout = float(values["optimizer.learning_rate"]), float(values["model.dropout"])
    distance = (math.log10(rate) + 2) ** 2 + 4 * (dropout - 0.3) ** 2
    checkpoint = folder / "checkpoint.json"
    done = json.loads(checkpoint.read_text()) if checkpoint.exists() else []
    was_done = len(done)
    note(log, {"event": "start", "folder": folder.name, "done": len(done), "bindings": bindings})
    if dropout > 0.9:
        print("ConfigError: model.dropout is too much.")
        sys.exit(2)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with (folder / "metrics.jsonl").open("w") as metrics:
        for epoch in range(1, EPOCHS + 1):
            if epoch > len(done):
                time.sleep(float(epoch_s))
                row = {"split": "validation", "step": 10 * epoch, "accuracy": 1 / (1 + distance)}
                done.append({**row, "loss": distance + 1 / epoch})
            metrics.write(json.dumps(done[epoch - 1]) + "\n")
            metrics.flush()
            checkpoint.with_suffix(".tmp").write_text(json.dumps(done))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
    if was_done < EPOCHS:
        note(log, {"event": "end", "folder": folder.name})


def note(log, row):
    with pathlib.Path(log).open("a") as file:
        file.write(json.dumps(row) + "\n")


main()
