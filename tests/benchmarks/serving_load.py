"""`carbrand serve` under load, beside the server that most tutorials end with.

    pip install flask; apt-get install wrk
    python tests/benchmarks/serving_load.py speed --run RUN --model MODEL --photos FOLDER
    python tests/benchmarks/serving_load.py memory --model MODEL --photos FOLDER

`speed` lets 16 clients ask for `--seconds`, in turns, our server and a plain Flask app that calls `model.predict` for
one photo at a time, on the same weights: requests per second, 99th percentile, errors; the ratios are those within each
round, and their median counts. Of ours also the share of the time in which the network stands still.

`memory` asks `--requests` times, and says how much the server's memory grew after the first tenth of them.
"""

import argparse
import contextlib
import http.client
import io
import itertools
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

import psutil

CLIENTS = 16
BOUNDARY = "photo-boundary"
LUA = """
local bodies = {}
for line in io.lines(os.getenv("BODIES")) do
  local file = io.open(line, "rb"); bodies[#bodies + 1] = file:read("*a"); file:close()
end
wrk.method = "POST"
wrk.headers["Content-Type"] = "multipart/form-data; boundary=photo-boundary"
local turn = 0
request = function() turn = turn % #bodies + 1; return wrk.format(nil, "/predict", nil, bodies[turn]) end
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "memory", "flask"))
    parser.add_argument("--model", type=pathlib.Path, help="an exported model")
    parser.add_argument("--run", type=pathlib.Path, help="the run that it comes from, for speed")
    parser.add_argument("--photos", type=pathlib.Path, help="folder of photos")
    parser.add_argument("--seconds", type=int, default=60, help="of each server, in a round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--requests", type=int, default=10_000, help="for memory (default: %(default)s)")
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    {"speed": speed, "memory": memory, "flask": flask_app}[options.what](options)


def speed(options):
    ratios, rows = [], {"carbrand": [], "flask": []}
    for _ in range(options.rounds):
        for name in rows:
            with running(name, options) as (url, _):
                before = network_seconds(url) if name == "carbrand" else 0
                row = wrk(url, options)
                if name == "carbrand":
                    row["network"] = (network_seconds(url) - before) / options.seconds
            rows[name].append(row)
            print(name, row, flush=True)
        ratios.append(rows["carbrand"][-1]["rate"] / rows["flask"][-1]["rate"])
    for name, runs in rows.items():
        rate, p99 = (statistics.median(row[key] for row in runs) for key in ("rate", "p99_s"))
        print(f"{name}: {rate:.1f} requests/s, p99 {p99:.2f} s, errors {sum(row['errors'] for row in runs)}")
    idle = 1 - statistics.median(row["network"] for row in rows["carbrand"])
    print(
        f"carbrand / flask: {statistics.median(ratios):.2f}; carbrand's network stands still for {idle:.1%} of the time"
    )


def memory(options):
    bodies = [form(path.read_bytes()) for path in photos_in(options.photos)]
    asked, sizes = itertools.count(), {}
    with running("carbrand", options) as (url, process):
        host = url.removeprefix("http://")

        def ask():
            connection = http.client.HTTPConnection(host)
            while (number := next(asked)) < options.requests:
                connection.request("POST", "/predict", bodies[number % len(bodies)], FORM)
                response = connection.getresponse()
                response.read()
                assert response.status == 200
                if number % (options.requests // 10) == 0:
                    sizes[number] = process.memory_info().rss / 2**20

        threads = [threading.Thread(target=ask) for _ in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        sizes[options.requests] = process.memory_info().rss / 2**20
    print(", ".join(f"{number}: {size:.0f} MiB" for number, size in sorted(sizes.items())))
    first = sizes[options.requests // 10]
    print(f"growth after the first tenth: {sizes[options.requests] / first - 1:.1%}")


@contextlib.contextmanager
def running(name, options):
    """The address and the process of a server that is warm."""
    if name == "carbrand":
        command = ["-m", "carbrand", "serve", "--model", options.model, "--port", "0", "--drain_s", "0"]
    else:
        command = [__file__, "flask", "--run", options.run, "--port", "8599"]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    process = subprocess.Popen(
        [sys.executable, *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    )
    try:
        url = next(found[1] for line in process.stdout if (found := re.search(r"(http://127\S+?)/?\s*$", line)))
        threading.Thread(target=process.stdout.read, daemon=True).start()
        warm_up(url, form(photos_in(options.photos)[0].read_bytes()))
        yield url, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


def warm_up(url, body):
    for _ in range(5):
        for attempt in range(100):
            try:
                urllib.request.urlopen(urllib.request.Request(f"{url}/predict", body, FORM)).read()
                break
            except OSError:
                if attempt == 99:
                    raise
                time.sleep(0.1)


def wrk(url, options):
    with tempfile.TemporaryDirectory() as folder:
        script, bodies = pathlib.Path(folder, "post.lua"), pathlib.Path(folder, "bodies")
        script.write_text(LUA)
        paths = []
        for number, path in enumerate(photos_in(options.photos)):
            paths.append(pathlib.Path(folder, f"{number}.body"))
            paths[-1].write_bytes(form(path.read_bytes()))
        bodies.write_text("".join(f"{path}\n" for path in paths))
        command = ["wrk", "-t1", f"-c{CLIENTS}", f"-d{options.seconds}s", "--timeout", "60s", "--latency"]
        text = subprocess.run(
            [*command, "-s", script, url],
            env={**os.environ, "BODIES": str(bodies)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    failed = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    broken = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    p99, unit = re.search(r"99%\s+([\d.]+)(us|ms|s|m)", text).groups()
    return {
        "rate": float(re.search(r"Requests/sec:\s+([\d.]+)", text)[1]),
        "p99_s": float(p99) * {"us": 1e-6, "ms": 1e-3, "s": 1, "m": 60}[unit],
        "errors": (int(failed[1]) if failed else 0) + (sum(map(int, broken.groups())) if broken else 0),
    }


def network_seconds(url):
    text = urllib.request.urlopen(f"{url}/metrics").read().decode()
    return float(text.partition("carbrand_network_seconds_sum ")[2].split()[0])


FORM = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


def form(photo):
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="photo"; filename="photo.jpg"\r\n\r\n'
    return head.encode() + photo + f"\r\n--{BOUNDARY}--\r\n".encode()


def photos_in(folder):
    return sorted(path for path in folder.rglob("*.jpg"))[:: max(1, len(list(folder.rglob("*.jpg"))) // 100)][:100]


def flask_app(options):
    import flask
    import numpy as np
    import PIL.Image

    from carbrand.training import checkpoint

    model, meta = checkpoint.load_model(options.run)
    size = meta["config"]["preprocess"]["image_size_px"]
    app = flask.Flask(__name__)

    @app.post("/predict")
    def predict():
        image = PIL.Image.open(io.BytesIO(flask.request.files["photo"].read())).convert("RGB").resize((size, size))
        probabilities = model.predict(np.asarray(image)[np.newaxis], verbose=0)[0]
        best = int(probabilities.argmax())
        return flask.jsonify(brand=meta["brands"][best], probability=float(probabilities[best]))

    print(f"http://127.0.0.1:{options.port}", flush=True)
    app.run(port=options.port)


if __name__ == "__main__":
    main()
