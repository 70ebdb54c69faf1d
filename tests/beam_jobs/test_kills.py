"""Killed and interrupted builds: they leave nothing that looks complete, and the next start ends as if none was."""

import dataclasses
import functools
import os
import pathlib
import random
import resource
import signal
import subprocess
import sys
import time

import processes
import pytest
from small_photos import contents, photo, write_photos

from beam_jobs import build_output
from carbrand import errors, files
from carbrand.data import manifest

ENDS_WITHIN_S = 20  # a hang takes for ever
_DRAWN = random.Random(3)
MOMENTS = [_DRAWN.random() for _ in range(20)]  # as parts of the time that a build takes


@dataclasses.dataclass
class Build:
    """A build in a process of its own, with its workers."""

    process: subprocess.Popen
    mark: str
    folder: pathlib.Path

    @classmethod
    def start(cls, source, folder, workers, max_file_bytes=resource.RLIM_INFINITY):
        mark = f"kills-{random.SystemRandom().getrandbits(64)}"
        carbrand = pathlib.Path(sys.executable).with_name("carbrand")
        command = [carbrand, "build", "--input", source, "--output", folder]
        command += ["--workers", str(workers)] if workers else []
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        limit = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (max_file_bytes, resource.RLIM_INFINITY))
        process = subprocess.Popen(command, env=os.environ | {"CARBRAND_TEST": mark}, preexec_fn=limit, **pipes)
        return cls(process, mark, folder)

    @property
    def workers(self):
        return sorted(processes.with_mark(self.mark) - {self.process.pid})

    def wait_until(self, condition):
        """True, or False if the build ends before."""
        while self.process.poll() is None:
            if condition():
                return True
            time.sleep(0.005)
        return False

    def has_progress(self, count):
        path = self.folder / build_output.WORK_FOLDER / "progress"
        return path.exists() and path.stat().st_size >= count

    def end(self, timeout_s=ENDS_WITHIN_S):
        """Exit code and lines of stderr; no process is left."""
        _, error = self.process.communicate(timeout=timeout_s)
        deadline = time.monotonic() + 0.2  # the kernel's time to end them
        while processes.with_mark(self.mark) and time.monotonic() < deadline:
            time.sleep(0.005)
        assert not processes.with_mark(self.mark)
        return self.process.returncode, error.splitlines()


@pytest.fixture
def start(tmp_path):
    """Starts builds, of which nothing survives the test."""
    builds = []

    def start_build(source, workers, **limits):
        builds.append(Build.start(source, tmp_path / "out", workers, **limits))
        return builds[-1]

    yield start_build
    for build in builds:
        for pid in processes.with_mark(build.mark):
            os.kill(pid, signal.SIGKILL)
        build.process.communicate()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Enough small photos that two workers are busy for some seconds."""
    return write_photos(tmp_path_factory.mktemp("kills") / "photos", 600)


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_workers_end_with_their_driver(source, start, signal_number):
    build = start(source, 2)
    assert build.wait_until(lambda: build.has_progress(50))
    assert len(build.workers) == 2
    build.process.send_signal(signal_number)
    assert build.end() == (-signal_number, [])


@pytest.mark.parametrize(
    "workers", [None, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)]
)
def test_an_interrupted_build_says_so_and_ends(source, start, workers):
    build = start(source, workers)
    assert build.wait_until(lambda: build.has_progress(50))
    for pid in processes.with_mark(build.mark):  # as a terminal does at Ctrl-C
        os.kill(pid, signal.SIGINT)
    assert build.end() == (130, ["Interrupted."])


def test_a_killed_worker_ends_the_build_with_one_line(source, start):
    build = start(source, 2)
    assert build.wait_until(lambda: build.has_progress(50))
    os.kill(build.workers[0], signal.SIGKILL)
    assert_worker_was_missed(build)


@pytest.mark.slow
def test_a_disk_that_is_too_full_for_the_log_of_workers_ends_the_build(start, tmp_path):
    for number in range(8):
        path = tmp_path / "photos" / ("audi", "bmw")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photo(number, (900, 700)))  # over 20 kB in the cache
    with build_output.locked(tmp_path / "out"):  # as a stopped build leaves it
        (tmp_path / "out" / build_output.WORK_FOLDER / "workers.log").write_bytes(bytes(20_000))
    code, (line,) = start(tmp_path / "photos", 2, max_file_bytes=20_000).end()
    assert code == errors.BuildError.exit_code
    assert line.startswith("BuildError: disk full while building in ")


def assert_worker_was_missed(build):
    code, (line,) = build.end()
    assert code == errors.BuildError.exit_code
    assert line.startswith("BuildError: a worker process died (Worker subprocess exited with return code -9)")
    assert line.endswith("Run the same command again, with fewer --workers; what was done is kept in the cache.")


@dataclasses.dataclass(frozen=True)
class Whole:
    """What a build takes that nobody disturbs: from its start, in seconds."""

    tree: dict
    seconds: float
    cpu_s: float
    workers_begin_s: float
    workers_end_s: float


def tree(folder):
    """The hash of every file but those of the work folder, which a build leaves that is killed at its very end."""
    found = {name: files.sha256(content) for name, content in contents(folder).items()}
    return {name: digest for name, digest in found.items() if not name.startswith(build_output.WORK_FOLDER)}


def children_cpu_s():
    """Of all processes that this one has waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def watch_whole(source, folder, workers):
    begun, cpu_s, seen = time.monotonic(), children_cpu_s(), []
    build = Build.start(source, folder, workers)
    while build.process.poll() is None:
        if build.workers:
            seen.append(time.monotonic() - begun)
        time.sleep(0.02)
    seconds = time.monotonic() - begun
    assert build.end() == (0, [])
    return Whole(tree(folder), seconds, children_cpu_s() - cpu_s, *((seen[0], seen[-1]) if seen else (0, 0)))


@pytest.fixture(scope="module")
def makes20(real_data):
    return real_data / "makes20"


@pytest.fixture(scope="module")
def whole(makes20, tmp_path_factory):
    """By number of workers, None for the default: the undisturbed build."""
    found = {n: watch_whole(makes20, tmp_path_factory.mktemp("whole") / "out", n) for n in (None, 2)}
    assert found[None].tree == found[2].tree
    return found


def assert_second_start_ends_well(build, start, makes20, workers, expected):
    """Or the first had made everything before it was killed."""
    if (build.folder / manifest.FILE_NAME).exists():
        assert tree(build.folder) == expected
        return
    assert start(makes20, workers).end(timeout_s=120) == (0, [])
    assert not (build.folder / build_output.WORK_FOLDER).exists()
    assert tree(build.folder) == expected


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "moment"), list(zip([None, 2] * 5, MOMENTS[:10], strict=True)))
def test_a_build_whose_driver_is_killed_goes_on(makes20, whole, start, workers, moment):
    build = start(makes20, workers)
    time.sleep(moment * whole[workers].seconds)
    build.process.kill()
    code, lines = build.end()
    assert (code, lines) in ((-signal.SIGKILL, []), (0, []))
    assert_second_start_ends_well(build, start, makes20, workers, whole[workers].tree)


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS[10:])
def test_a_build_of_which_a_worker_is_killed_goes_on(makes20, whole, start, moment):
    build = start(makes20, 2)
    begun = time.monotonic()
    kill_after_s = whole[2].workers_begin_s + moment * (whole[2].workers_end_s - whole[2].workers_begin_s)
    is_time = build.wait_until(lambda: build.workers and time.monotonic() - begun >= kill_after_s)
    if is_time and build.workers:
        os.kill(random.choice(build.workers), signal.SIGKILL)
        if build.process.wait(ENDS_WITHIN_S) != 0:  # else it had just done all its work
            assert_worker_was_missed(build)
    assert_second_start_ends_well(build, start, makes20, 2, whole[2].tree)


@pytest.mark.slow
def test_a_build_killed_half_way_costs_less_than_80_percent_again(makes20, whole, start, tmp_path):
    # A whole build takes 7.4 CPU-seconds, of which 1.9 are to start Beam, however few the photos; the second start 5.2.
    build = start(makes20, None)
    assert build.wait_until(lambda: build.has_progress(800))  # of 1,600
    build.process.kill()
    build.end()
    before = children_cpu_s()
    assert_second_start_ends_well(build, start, makes20, None, whole[None].tree)
    second_cpu_s = children_cpu_s() - before
    whole_cpu_s = watch_whole(makes20, tmp_path / "whole", None).cpu_s  # now: others may load the machine by turns
    print(f"second start: {second_cpu_s:.1f} of {whole_cpu_s:.1f} CPU-seconds, {second_cpu_s / whole_cpu_s:.0%}")
    assert second_cpu_s < 0.8 * whole_cpu_s
