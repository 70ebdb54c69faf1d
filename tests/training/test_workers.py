import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from carbrand.errors import ConfigError, WorkerError
from carbrand.training import checkpoint, launcher, workers
from carbrand.training.hardware import Hardware, make_training_strategy
from carbrand.training.workers import Workers

SCRIPT = pathlib.Path(__file__).with_name("tiny_training.py")


def free_addresses(count):
    return launcher._free_addresses(count)


@pytest.fixture
def tf_config(monkeypatch):
    return lambda text: monkeypatch.setenv(workers.TF_CONFIG, text if isinstance(text, str) else json.dumps(text))


def test_a_process_alone_is_the_chief(monkeypatch):
    monkeypatch.delenv(workers.TF_CONFIG, raising=False)
    assert workers.here() == Workers()
    assert workers.here().count == 1
    assert workers.here().is_chief


def test_place_among_workers_is_read_as_it_is_written(tf_config):
    tf_config(workers.tf_config(("a:1", "b:2", "c:3"), 2))
    assert workers.here() == Workers(("a:1", "b:2", "c:3"), 2)
    assert not workers.here().is_chief


def test_who_measures_is_alone(tf_config):
    tf_config(workers.tf_config(("a:1", "b:2"), 1))
    with workers.none() as alone:
        assert alone == workers.here() == Workers()
    assert workers.here().index == 1


@pytest.mark.parametrize(("addresses", "count"), [(("a:1", "b:2", "a:3"), 2), (("a:1", "b:2", "c:3"), 1)])
def test_workers_of_one_host_share_its_memory(addresses, count):
    assert Workers(addresses, 2).count_here == count


def test_a_cluster_of_one_is_no_cluster(tf_config):
    tf_config(workers.tf_config(("a:1",), 0))
    assert workers.here() == Workers()


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        {"cluster": {"worker": ["a:1", "b:2"]}},
        {"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "worker", "index": 2}},
        {"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "evaluator", "index": 0}},
        {"cluster": {"worker": ["a:1", "b"]}, "task": {"type": "worker", "index": 0}},
        {"cluster": {"worker": ["a:1", "b:99999"]}, "task": {"type": "worker", "index": 0}},
        {"cluster": {"worker": ["a:1", "b:²"]}, "task": {"type": "worker", "index": 0}},
        {"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "worker", "index": 1e400}},
        {"cluster": {"worker": ["a:1", "b:2"], "ps": ["c:3"]}, "task": {"type": "worker", "index": 0}},
    ],
)
def test_another_tf_config_raises(tf_config, text):
    tf_config(text)
    with pytest.raises(ConfigError, match=r'TF_CONFIG=.*: give \{"cluster"'):
        workers.here()


def test_replicas_cannot_be_chosen_among_workers(tf_config):
    tf_config(workers.tf_config(("a:1", "b:2"), 0))
    with pytest.raises(ConfigError, match="hardware.replicas=2 with 2 workers: .* Set it to 0"):
        make_training_strategy(Hardware(replicas=2))


def test_workers_go_on_once_all_are_there():
    addresses, arrived, went_on = free_addresses(3), [], []

    def worker(index, delay_s):
        time.sleep(delay_s)
        arrived.append(index)
        workers.rendezvous(Workers(addresses, index), 30)
        went_on.append(len(arrived))

    threads = [threading.Thread(target=worker, args=pair) for pair in ((1, 0.0), (0, 0.3), (2, 0.6))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert went_on == [3, 3, 3]


@pytest.mark.parametrize(
    ("index", "missing"), [(0, r"worker 1 \(localhost:\d+\)"), (1, r"worker 0 \(localhost:\d+\) to gather all")]
)
def test_a_worker_alone_says_whom_it_waits_for_and_gives_up(monkeypatch, caplog, index, missing):
    monkeypatch.setattr(workers, "_TELL_EVERY_S", 0.4)
    with pytest.raises(WorkerError, match=rf"Waited 1 s for {missing}\. Start all workers"):
        workers.rendezvous(Workers(free_addresses(2), index), 1)
    told = [record.getMessage() for record in caplog.records if record.getMessage().startswith("Waiting for worker")]
    assert len(told) == 2


def test_a_port_that_is_taken_is_named():
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(WorkerError, match=f"TF_CONFIG: port {port} is not free here"):
            workers.rendezvous(Workers((f"localhost:{port}", "localhost:1"), 0), 1)


def launched(code, count=2, **options):
    """Runs Python code in each of some workers that know their index."""
    start = "import json, os, signal, sys, time\nindex = json.loads(os.environ['TF_CONFIG'])['task']['index']\n"
    return launcher.run([sys.executable, "-S", "-E", "-c", start + code], count, **options)


def test_workers_that_end_well_give_no_error(tmp_path):
    code = f"open({str(tmp_path)!r} + f'/{{index}}', 'w').write(os.environ['TF_CONFIG'])"
    assert launched(code, 3) == 0
    configs = [json.loads((tmp_path / str(index)).read_text()) for index in range(3)]
    assert [config["task"]["index"] for config in configs] == [0, 1, 2]
    assert len(set(configs[0]["cluster"]["worker"])) == 3
    assert all(config["cluster"] == configs[0]["cluster"] for config in configs)


@pytest.mark.parametrize(
    ("fails", "message"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", r"worker 1: killed by SIGKILL; the others were ended"),
        ("sys.exit('OSError: out of disk')", r"worker 1: OSError: out of disk; the others"),
    ],
)
def test_a_worker_that_fails_ends_the_others(fails, message):
    start = time.monotonic()
    with pytest.raises(WorkerError, match=message):
        launched(f"if index == 1:\n  {fails}\ntime.sleep(60)")
    assert time.monotonic() - start < 10


def test_a_worker_that_is_deaf_is_killed():
    start = time.monotonic()
    with pytest.raises(WorkerError, match="worker 1: exit code 1; the others"):
        launched("if index == 1: sys.exit(1)\nsignal.signal(15, signal.SIG_IGN); time.sleep(60)", grace_s=0.5)
    assert time.monotonic() - start < 10


def test_what_the_chief_has_said_itself_is_not_said_again():
    assert launched("sys.exit(2)") == 2


def test_a_signal_reaches_all_workers():
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
    assert launched("signal.signal(15, lambda *_: sys.exit(143))\ntime.sleep(60)") == 143


def test_workers_die_with_the_launcher(tmp_path):
    worker = f"import os, time; open({str(tmp_path)!r} + f'/{{os.getpid()}}', 'w'); time.sleep(60)"
    code = f"import sys; from carbrand.training import launcher; launcher.run([sys.executable, '-c', {worker!r}], 2)"
    process = subprocess.Popen([sys.executable, "-c", code])
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
    process.kill()
    process.wait()
    for path in tmp_path.iterdir():
        wait_until(lambda path=path: not is_running(int(path.name)))


def is_running(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition, seconds=60):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_workers_within_workers_raise(tf_config):
    tf_config(workers.tf_config(("a:1", "b:2"), 0))
    with pytest.raises(ConfigError, match="--workers=2: TF_CONFIG is set"):
        launched("")


def test_gpus_are_shared_evenly(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,6,7")
    assert launcher._shares_of_gpus(2) == [{"CUDA_VISIBLE_DEVICES": "3,5"}, {"CUDA_VISIBLE_DEVICES": "6,7"}]
    with pytest.raises(ConfigError, match="--workers=3 cannot share 4 GPUs evenly"):
        launcher._shares_of_gpus(3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert launcher._shares_of_gpus(2) == [{}, {}]


def training(records, run_dir, **options):
    values = [f"{name}={value!r}" for name, value in {"epochs": 6, "checkpoint_every_s": 0, **options}.items()]
    return [sys.executable, str(SCRIPT), str(records), str(run_dir), *values]


def launch(command):
    """A launcher of two workers in a process of its own."""
    code = f"import sys; sys.argv[1:]\nfrom carbrand.training import launcher\nsys.exit(launcher.run({command!r}, 2))"
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)


def newest_step(run_dir):
    return max((int(path.name[5:14]) for path in (run_dir / checkpoint.FOLDER).glob("step-*.npz")), default=0)


def pids_of(run_dir):
    """Of the processes that train in a run: worker index -> number."""
    found = {}
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().split(b"\0")
            environment = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(run_dir).encode() in command and str(SCRIPT).encode() in command:
            config = next((x for x in environment if x.startswith(b"TF_CONFIG=")), None)
            if config:
                found[json.loads(config.partition(b"=")[2])["task"]["index"]] = int(folder.name)
    return found


@pytest.fixture(scope="module")
def pair(drawn_records, tmp_path_factory):
    """A run of two workers."""
    run_dir = tmp_path_factory.mktemp("pair") / "run"
    process = launch(training(drawn_records, run_dir))
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors
    return run_dir


def losses(run_dir):
    rows = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [(row["step"], row["loss"], row["accuracy"]) for row in rows if row["split"] == "validation"]


@pytest.mark.slow
def test_two_workers_equal_two_replicas(pair, drawn_records, tmp_path):
    subprocess.run(training(drawn_records, tmp_path / "replicas", replicas=2), check=True)
    ours, theirs = checkpoint.load_latest(pair), checkpoint.load_latest(tmp_path / "replicas")
    assert ours.meta["step"] == theirs.meta["step"] == 33
    for part in ("model", "optimizer", "average"):
        assert getattr(ours, part).keys() == getattr(theirs, part).keys()
        for name, array in getattr(ours, part).items():
            np.testing.assert_allclose(array, getattr(theirs, part)[name], rtol=1e-5, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(losses(pair), losses(tmp_path / "replicas"), rtol=1e-5)


@pytest.mark.slow
def test_a_killed_worker_ends_the_pair_which_then_goes_on_to_the_same_result(pair, drawn_records, tmp_path):
    run_dir = tmp_path / "run"
    for index, step in ((1, 5), (0, 15)):
        process = launch(training(drawn_records, run_dir))
        wait_until(lambda step=step: newest_step(run_dir) >= step)
        os.kill(pids_of(run_dir)[index], signal.SIGKILL)
        killed_at = time.monotonic()
        _, errors = process.communicate(timeout=60)
        assert time.monotonic() - killed_at < 60
        assert process.returncode == 1
        assert f"worker {index}: killed by SIGKILL; the others were ended" in errors
        assert not pids_of(run_dir)
    process = launch(training(drawn_records, run_dir))
    assert process.wait(timeout=120) == 0
    assert_same(run_dir, pair)


def assert_same(ours, theirs):
    ours, theirs = checkpoint.load_latest(ours), checkpoint.load_latest(theirs)
    assert ours.meta["step"] == theirs.meta["step"]
    for part in ("model", "optimizer", "extra", "average"):
        for name, array in getattr(ours, part).items():
            np.testing.assert_array_equal(array, getattr(theirs, part)[name], err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_without_a_launcher_a_worker_notices_that_the_other_is_gone(drawn_records, tmp_path, killed):
    addresses, command = free_addresses(2), training(drawn_records, tmp_path / "run", epochs=200)
    processes = []
    for index in range(2):
        environment = {**os.environ, workers.TF_CONFIG: workers.tf_config(addresses, index)}
        processes.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    wait_until(lambda: newest_step(tmp_path / "run") >= 3)
    processes[killed].kill()
    killed_at = time.monotonic()
    _, errors = processes[1 - killed].communicate(timeout=60)
    assert time.monotonic() - killed_at < 60
    assert processes[1 - killed].returncode == 1
    last = errors.splitlines()[-1]
    assert last.startswith(f"WorkerError: worker {1 - killed}: another one is gone")
    assert "run holds its last checkpoint: give the same command again" in last
    processes[killed].communicate()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_after_the_same_step_of_all_workers(pair, drawn_records, tmp_path, number, code):
    process = launch(training(drawn_records, tmp_path / "run", checkpoint_every_s=1000))
    wait_until(lambda: (tmp_path / "run" / "metrics.jsonl").exists())
    time.sleep(2)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert "the state is saved" in errors
    assert newest_step(tmp_path / "run") > 0
    process = launch(training(drawn_records, tmp_path / "run", checkpoint_every_s=1000))
    assert process.wait(timeout=120) == 0
    assert_same(tmp_path / "run", pair)
