import base64
import collections
import concurrent.futures
import errno
import io
import json
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import PIL.Image
import pytest
import requests
from running_server import serving

from carbrand import exported
from carbrand.errors import ConfigError, DataError
from carbrand.monitoring import monitor
from carbrand.serving import serve
from carbrand.serving.predictor import Predictor


@pytest.fixture(scope="module")
def log_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("prediction_log")


@pytest.fixture(scope="module")
def server(tiny_model, log_dir):
    options = ("--log", log_dir, "--max_body_mib", 1, "--max_pixels", 4_000_000, "--timeout_s", 5, "--drain_s", 0.2)
    with serving(tiny_model, *options) as running:
        yield running


@pytest.fixture(scope="module")
def photos(drawn_photos):
    return [path.read_bytes() for path in sorted(drawn_photos.glob("*/0*.jpg"))[:12]]


@pytest.fixture(scope="module")
def expected(tiny_model, photos):
    return Predictor(tiny_model).predict(photos)


def b64(photo):
    return {"b64": base64.b64encode(photo).decode()}


def post(server, path, **arguments):
    return requests.post(server.url + path, timeout=60, **arguments)


PREDICT, CLASSIFY = "/v1/models/carbrand:predict", "/v1/models/carbrand:classify"


def test_rows_as_tensorflow_serving_takes_and_gives_them(server, photos, expected):
    answer = post(server, PREDICT, json={"instances": [b64(photo) for photo in photos]})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json().keys() == {"predictions"}
    rows = answer.json()["predictions"]
    assert rows[0].keys() == {"brand", "probability", "probabilities", "logits", "unknown_score"}
    assert [row["brand"] for row in rows] == [result.brand for result in expected]
    found = [row["probabilities"] for row in rows]
    np.testing.assert_allclose(found, [result.probabilities for result in expected], atol=1e-5)


def test_rows_with_the_name_of_the_input(server, photos):
    named = post(
        server, PREDICT, json={"instances": [{"encoded": b64(photos[0])}], "signature_name": "serving_default"}
    )
    bare = post(server, "/v1/models/carbrand/versions/1:predict", json={"instances": [b64(photos[0])]})
    assert named.json()["predictions"][0]["brand"] == bare.json()["predictions"][0]["brand"]


@pytest.mark.parametrize("wrap", [lambda rows: rows, lambda rows: {"encoded": rows}])
def test_columns_as_tensorflow_serving_takes_and_gives_them(server, photos, expected, wrap):
    answer = post(server, PREDICT, json={"inputs": wrap([b64(photo) for photo in photos[:3]])}).json()
    assert answer.keys() == {"outputs"}
    assert answer["outputs"]["brand"] == [result.brand for result in expected[:3]]
    assert np.shape(answer["outputs"]["probabilities"]) == (3, 6)


def test_classification_as_tensorflow_serving_takes_and_gives_it(server, photos, expected):
    examples = [{"image/encoded": b64(photo)} for photo in photos[:2]]
    answer = post(server, CLASSIFY, json={"signature_name": "classify", "examples": examples}).json()
    assert answer.keys() == {"result"}
    assert len(answer["result"]) == 2
    for pairs, result in zip(answer["result"], expected, strict=False):
        scores = [score for _, score in pairs]
        assert pairs[0][0] == result.brand
        assert scores == sorted(scores, reverse=True)
        assert sum(scores) == pytest.approx(1, abs=1e-5)


def test_status_as_tensorflow_serving_gives_it(server):
    # The example of TensorFlow Serving's documentation, with version 1 instead of 123.
    state = {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    for path in ("/v1/models/carbrand", "/v1/models/carbrand/versions/1"):
        assert requests.get(server.url + path, timeout=9).json() == {"model_version_status": [state]}


def test_metadata_as_tensorflow_serving_gives_it(server):
    answer = requests.get(f"{server.url}/v1/models/carbrand/metadata", timeout=9).json()
    assert answer["model_spec"] == {"name": "carbrand", "signature_name": "", "version": "1"}
    signature = answer["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature["method_name"] == "tensorflow/serving/predict"
    dims = [{"size": "-1", "name": ""}]
    shape = {"dim": dims, "unknown_rank": False}
    assert signature["inputs"]["encoded"] == {
        "dtype": "DT_STRING", "tensor_shape": shape, "name": "serving_default_encoded:0",
    }  # fmt: skip
    assert signature["outputs"]["probabilities"]["tensor_shape"]["dim"][1]["size"] == "6"


@pytest.mark.parametrize(
    ("path", "servable"), [("half", "Latest(half)"), ("carbrand/versions/7", "Specific(carbrand, 7)")]
)
def test_another_model_is_not_found(server, photos, path, servable):
    answer = post(server, f"/v1/models/{path}:predict", json={"instances": [b64(photos[0])]})
    assert answer.status_code == 404
    assert answer.json() == {"error": f"Servable not found for request: {servable}"}


def test_uploads_by_form_and_bare(server, photos, expected):
    form = post(server, "/predict", files={"photo": ("../../etc/passwd", photos[0])}).json()
    bare = post(server, "/predict", data=photos[0], headers={"Content-Type": "image/jpeg"}).json()
    assert form == bare
    assert form["brand"] == expected[0].brand
    assert form["model_version"] == 1
    assert form["probabilities"][form["brand"]] == form["probability"]
    several = post(server, "/predict", files=[("a", photos[0]), ("b", b"no photo"), ("c", photos[1])]).json()
    assert [row.get("brand") for row in several["predictions"]] == [expected[0].brand, None, expected[1].brand]
    assert several["predictions"][1]["error"].startswith("not_an_image")


def test_the_page_is_answered_with_a_heat_map(server, photos, expected):
    answer = post(server, "/ask", files={"photo": photos[0]}).json()
    assert answer["brand"] == expected[0].brand
    assert base64.b64decode(answer["heatmap"].removeprefix("data:image/jpeg;base64,")).startswith(b"\xff\xd8")
    bad = post(server, "/ask", files={"photo": b"no photo"})
    assert (bad.status_code, bad.json().keys()) == (200, {"error"})


def test_the_examples_of_the_readme_run(server, photos, expected, tmp_path):
    (tmp_path / "photo.jpg").write_bytes(photos[0])
    readme = (pathlib.Path(__file__).parents[2] / "README.md").read_text().replace("http://127.0.0.1:8501", server.url)
    by_curl = [line.strip() for line in readme.splitlines() if line.startswith("    curl ")]
    by_requests = textwrap.dedent(re.search(r"\n(    import base64, requests\n.*?)\n\n(?!    )", readme, re.DOTALL)[1])
    assert len(by_curl) == 2
    for command in (*(["bash", "-c", line] for line in by_curl), [sys.executable, "-c", by_requests]):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert expected[0].brand in done.stdout


def test_requests_at_the_same_time_get_their_own_answers(server, photos, expected):
    def ask(number):
        answer = post(server, "/predict", files={"photo": photos[number % len(photos)]}).json()
        return list(answer["probabilities"].values())

    with concurrent.futures.ThreadPoolExecutor(12) as threads:
        found = list(threads.map(ask, range(60)))
    wanted = [expected[number % len(photos)].probabilities for number in range(60)]
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    metrics = requests.get(f"{server.url}/metrics", timeout=9).text
    batches = float(metrics.partition("carbrand_batch_photos_count ")[2].split()[0])
    passed = float(metrics.partition("carbrand_batch_photos_sum ")[2].split()[0])
    assert batches < passed


def test_health_and_metrics(server):
    assert requests.get(f"{server.url}/healthz", timeout=9).json() == {"status": "alive"}
    assert requests.get(f"{server.url}/readyz", timeout=9).json() == {"status": "ready"}
    metrics = requests.get(f"{server.url}/metrics", timeout=9).text
    assert 'carbrand_requests_total{path="/healthz",status="200"}' in metrics
    assert "carbrand_model_version 1.0" in metrics
    assert "carbrand_photos_waiting 0.0" in metrics


def _bomb():
    """A file of a few kB with 20 million pixels."""
    content = io.BytesIO()
    PIL.Image.new("1", (20_000, 1_000)).save(content, "PNG")
    return content.getvalue()


UPLOAD = {"headers": {"Content-Type": "image/jpeg"}}
ABUSE = {
    "empty": ("/predict", {"data": b"", **UPLOAD}, 400, "empty"),
    "one byte": ("/predict", {"data": b"x", **UPLOAD}, 400, "not_an_image"),
    "too large": ("/predict", {"data": b"x" * 2**21, **UPLOAD}, 413, "larger than 1048576 bytes"),
    "bomb": ("/predict", {"data": _bomb(), **UPLOAD}, 400, "too_large"),
    "type": ("/predict", {"data": b"x", "headers": {"Content-Type": "text/plain"}}, 415, "content type 'text/plain'"),
    "form": (
        "/predict",
        {"data": b"x", "headers": {"Content-Type": "multipart/form-data"}},
        400,
        "form cannot be read",
    ),
    "no file": ("/predict", {"files": {"photo": (None, "text")}}, 400, "holds no file"),
    "no JSON": (PREDICT, {"data": b"{"}, 400, "no JSON"),
    "binary": (PREDICT, {"data": b"\xff\xfe\x00"}, 400, "no JSON"),
    "deep": (PREDICT, {"data": b"[" * 200_000 + b"]" * 200_000}, 400, "too deeply nested"),
    "a list": (PREDICT, {"json": []}, 400, "no JSON object but a list"),
    "both": (PREDICT, {"json": {"instances": [], "inputs": []}}, 400, "one of 'instances' (rows) and 'inputs'"),
    "no rows": (PREDICT, {"json": {"instances": []}}, 400, "'instances' is no list with at least one photo"),
    "text": (PREDICT, {"json": {"instances": ["x"]}}, 400, "instances[0] is no {'b64'"),
    "base64": (PREDICT, {"json": {"instances": [{"b64": "x!"}]}}, 400, "instances[0] is no valid base64"),
    "input": (PREDICT, {"json": {"instances": [{"image": {"b64": ""}}]}}, 400, "the model's only input is 'encoded'"),
    "photo": (PREDICT, {"json": {"instances": [{"b64": "eA=="}]}}, 400, "photo 0: not_an_image"),
    "many": (PREDICT, {"json": {"instances": [{"b64": ""}] * 65}}, 413, "65 photos in one request: at most 64"),
    "signature": (PREDICT, {"json": {"instances": [{"b64": ""}], "signature_name": "x"}}, 400, "signature_name 'x'"),
    "classify": (CLASSIFY, {"json": {"examples": [{}]}}, 400, "this request needs signature_name 'classify'"),
    "feature": (CLASSIFY, {"json": {"signature_name": "classify", "examples": [{}]}}, 400, "has no feature 'image/en"),
    "path": ("/page/..%2f..%2fapp.py", {}, 404, "Not Found"),
    "method": ("/healthz", {"data": b"x"}, 405, "Method Not Allowed"),
}


@pytest.mark.parametrize("case", ABUSE)
def test_abuse_gets_an_answer_with_a_reason_and_hurts_nobody(server, photos, expected, case):
    path, arguments, status, reason = ABUSE[case]
    answer = post(server, path, **arguments)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    assert reason in answer.json()["error"]
    assert post(server, "/predict", files={"photo": photos[0]}).json()["brand"] == expected[0].brand


def test_200_mb_are_read_away_and_refused(server, photos, expected):
    answer = post(server, "/predict", data=bytes(200 * 2**20), **UPLOAD)
    assert answer.status_code == 413
    assert "larger than 1048576 bytes" in answer.json()["error"]
    assert post(server, "/predict", files={"photo": photos[0]}).json()["brand"] == expected[0].brand


def _connect(server):
    host, _, port = server.url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=30)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_batch": 0}, "--max_batch=0: give a whole number at least 1"),
        ({"port": 99_999}, "--port=99999: give a whole number at least 0 and at most 65535"),
        ({"timeout_s": 0}, "--timeout_s=0: give a number above 0"),
        ({"poll_s": -1}, "--poll_s=-1: give a number at least 0"),
        ({"log_dir": __file__}, "is a file. Name a folder"),
        ({"host": ""}, "--host '': names no address"),
        ({"name": "a/b"}, "--name='a/b': is part of a path"),
    ],
)
def test_options_that_cannot_work_are_told_before_the_start(tiny_model, options, message):
    with pytest.raises(ConfigError, match=message):
        serve.run(tiny_model, **options)


def test_a_port_that_another_server_took_meanwhile_is_told(tiny_model, monkeypatch):
    def refuse(self, sockets):
        raise OSError(errno.EADDRINUSE, "Address already in use")

    monkeypatch.setattr(serve._Server, "run", refuse)
    with pytest.raises(ConfigError, match=r"--host 127\.0\.0\.1 --port 0: Address already in use\. Choose another"):
        serve.run(tiny_model, port=0)


def test_a_slow_body_is_given_up(server):
    with _connect(server) as client:
        client.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: 100\r\n\r\nx")
        answer = client.recv(10_000)
        while b"}" not in answer:
            answer += client.recv(10_000)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"the body took longer than 5 s" in answer


@pytest.mark.slow
def test_a_connection_that_says_nothing_is_closed(server):
    started = time.monotonic()
    with _connect(server) as client:
        client.sendall(b"POST /predi")
        assert client.recv(10) == b""
    assert 5 < time.monotonic() - started < 20


def test_clients_that_go_away_hurt_nobody(server, photos, expected):
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(
        photos[0]
    )
    for sent in (head + photos[0], head + photos[0][:1000], head):
        for _ in range(5):
            with _connect(server) as client:
                client.sendall(sent)
    assert post(server, "/predict", files={"photo": photos[0]}).json()["brand"] == expected[0].brand


def _damaged(number, photos):
    """A photo with bits turned and its end cut off, in one of many formats."""
    random = np.random.default_rng(number)
    content = photos[number % len(photos)]
    if kind := ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF")[number % 7] * (number % 7 > 0):
        saved = io.BytesIO()
        PIL.Image.open(io.BytesIO(content)).resize((40, 30)).save(saved, kind)
        content = saved.getvalue()
    content = bytearray(content)
    for place in random.integers(0, len(content), 1 + number % 20):
        content[place] ^= 1 << (number % 8)
    return bytes(content[: random.integers(1, len(content) + 1)] if number % 2 else content)


@pytest.mark.parametrize("number", [200, pytest.param(5000, marks=pytest.mark.slow)])
def test_damaged_photos_hurt_no_neighbour(server, photos, expected, number):
    answered = collections.Counter()

    def ask(turn):
        damaged = post(server, "/predict", data=_damaged(turn, photos), **UPLOAD)
        answered[damaged.status_code] += 1
        assert "error" in damaged.json() or damaged.status_code == 200
        if turn % 5:
            return 0.0
        shares = post(server, "/predict", files={"p": photos[turn % 12]}).json()["probabilities"]
        return np.abs(np.array(list(shares.values())) - expected[turn % 12].probabilities).max()

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        assert max(threads.map(ask, range(number))) < 1e-5
    assert answered.keys() == {200, 400}


def test_every_answer_is_logged(tiny_model, photos, expected, tmp_path):
    with serving(tiny_model, "--log", tmp_path, "--keep_photos", "--drain_s", 0) as running:
        for photo in (*photos[:3], b"no photo"):
            post(running, "/predict", data=photo, **UPLOAD)
        running.stop()
    (path,) = tmp_path.glob("predictions-*.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row.get("brand") for row in rows] == [*(result.brand for result in expected[:3]), None]
    assert rows[3]["error"].startswith("not_an_image")
    assert {"time", "sha256", "bytes", "model_version", "unknown_score", "width", "mean_rgb"} <= rows[0].keys()
    assert (tmp_path / "photos" / rows[0]["sha256"][:2] / rows[0]["sha256"]).read_bytes() == photos[0]
    found = monitor.run(tiny_model, tmp_path, tmp_path / "monitoring")
    assert (found.facts["photos"], found.failures) == (3, {"not_an_image": 1})


def test_a_key_is_asked_for(tiny_model, photos):
    with serving(tiny_model, "--drain_s", 0, api_key="schlüssel") as running:
        assert requests.get(f"{running.url}/healthz", timeout=9).status_code == 200
        assert requests.get(f"{running.url}/metrics", timeout=9).status_code == 401
        wrong = post(running, "/predict", files={"p": photos[0]}, headers={"Authorization": "Bearer wrong"})
        assert (wrong.status_code, "send the key" in wrong.json()["error"]) == (401, True)
        right = post(
            running, "/predict", files={"p": photos[0]}, headers={"Authorization": "Bearer schlüssel".encode()}
        )
        assert right.status_code == 200


def _clients(url, photos, number, stop, *, until_refused=False):
    """Asks from `number` threads, with a connection each, until `stop`; all statuses and versions, and all failures."""
    statuses, versions, failures = collections.Counter(), collections.Counter(), []

    def ask(client):
        session = requests.Session()
        for turn in range(1_000_000):
            if stop.is_set():
                return
            try:
                answer = session.post(f"{url}/predict", files={"p": photos[(client + turn) % 12]}, timeout=60)
            except requests.ConnectionError as error:
                if until_refused and "refused" in str(error).lower():
                    return
                failures.append(repr(error))
                return
            statuses[answer.status_code] += 1
            versions[answer.json().get("model_version")] += 1
            if answer.headers.get("connection") == "close":
                time.sleep(0.05)

    threads = [threading.Thread(target=ask, args=(client,)) for client in range(number)]
    for thread in threads:
        thread.start()
    return threads, statuses, versions, failures


@pytest.mark.slow
def test_sigterm_under_load_loses_no_request(tiny_model, photos):
    stop = threading.Event()
    with serving(tiny_model, "--drain_s", 2) as running:
        threads, statuses, _, failures = _clients(running.url, photos, 8, stop)
        time.sleep(2)
        running.process.send_signal(signal.SIGTERM)
        while (ready := requests.get(f"{running.url}/readyz", timeout=9)).status_code == 200:
            time.sleep(0.05)
        assert (ready.status_code, ready.json()) == (503, {"error": "draining"})
        stop.set()  # as a load balancer does that has seen this
        for thread in threads:
            thread.join()
        assert running.process.wait(timeout=60) == -signal.SIGTERM
        assert "all requests are answered" in running.process.stdout.read()
    assert failures == []
    assert statuses.keys() == {200}
    assert statuses[200] > 8


@pytest.mark.slow
def test_a_new_version_takes_over_without_a_failed_request(tiny_model, photos, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model / "1")
    stop = threading.Event()
    with serving(model, "--drain_s", 0, "--poll_s", 0.2) as running:
        threads, statuses, versions, failures = _clients(running.url, photos, 4, stop)
        time.sleep(1)
        (model / "3").mkdir()  # one that is being copied, so the next one is 4
        with exported.new_version(model) as folder:
            shutil.copytree(tiny_model, folder, dirs_exist_ok=True)
        deadline = time.monotonic() + 60
        while versions[4] < 20 and time.monotonic() < deadline:
            time.sleep(0.1)
        stop.set()
        for thread in threads:
            thread.join()
        status = requests.get(f"{running.url}/v1/models/carbrand", timeout=9).json()
    assert failures == []
    assert statuses.keys() == {200}
    assert versions[1] >= 1
    assert versions[4] >= 20
    assert status["model_version_status"][0]["version"] == "4"


@pytest.mark.slow
def test_a_new_version_that_is_damaged_is_not_taken_up(tiny_model, photos, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model / "1")
    with serving(model, "--drain_s", 0, "--poll_s", 0.1) as running:
        (model / "2").mkdir()
        (model / "2" / exported.MANIFEST).write_text("{")
        time.sleep(1.5)
        assert post(running, "/predict", files={"p": photos[0]}).json()["model_version"] == 1
        written = running.stop()
    assert written.count("version 2 cannot be loaded, 1 stays") == 1


@pytest.mark.slow
def test_too_many_requests_are_told_to_come_back(tiny_model, photos):
    with serving(tiny_model, "--max_waiting", 1, "--drain_s", 0) as running:

        def ask(_):
            return post(running, "/predict", files={"p": photos[0]})

        with concurrent.futures.ThreadPoolExecutor(12) as threads:
            answers = list(threads.map(ask, range(60)))
    statuses = {answer.status_code for answer in answers}
    assert statuses == {200, 503}
    full = next(answer for answer in answers if answer.status_code == 503)
    assert full.headers["retry-after"] == "1"
    assert full.json() == {"error": "too many photos are waiting"}


@pytest.mark.parametrize("name", ["saved_model.pb", "variables/variables.data-00000-of-00001"])
@pytest.mark.parametrize("length", [0, 2000])
def test_a_damaged_graph_is_told_before_the_start(tiny_model, tmp_path, name, length):
    shutil.copytree(tiny_model, tmp_path / "model")
    path = exported.find(tmp_path / "model") / name
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(DataError, match=r"the graph cannot be loaded \(.*\)\. Export the run again"):
        serve.run(tmp_path / "model", port=0)


def test_a_port_that_is_taken_raises(tiny_model):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match=r"--host 127.0.0.1 --port \d+: Address already in use. Choose another"):
            serve.run(tiny_model, port=taken.getsockname()[1])
