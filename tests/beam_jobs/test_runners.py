import os
import pathlib
import pickle
import signal
import subprocess
import sys
import textwrap

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import (
    DirectOptions,
    GoogleCloudOptions,
    PipelineOptions,
    StandardOptions,
)

from beam_jobs import runners
from carbrand import errors


@pytest.fixture(autouse=True)
def _workers_can_import_this_file(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(pathlib.Path(__file__).parent))


def options(*beam_args, workers=None, num_photos=10):
    return runners.make_options(num_photos, workers=workers, beam_args=beam_args)


def raise_data_error(_):
    raise errors.DataError("bmw/1.jpg: [broken]. Remove it.")


def raise_disk_full(_):
    raise OSError(28, "No space left on device", "shard")


def raise_no_permission(_):
    raise PermissionError(13, "Permission denied", "/photos/l'été/1.jpg")


def raise_bug(_):
    raise ZeroDivisionError("a bug")


def run_step(step, folder, workers=1):
    def build(pipeline):
        _ = pipeline | beam.Create([1, 2]) | beam.Reshuffle() | beam.Map(step)

    runners.run(build, options(workers=workers), folder=str(folder))


def test_few_photos_stay_in_one_process():
    assert options().view_as(StandardOptions).runner == "FnApiRunner"
    assert options().view_as(DirectOptions).direct_num_workers == 1


def test_views_of_the_options_are_made_once_and_know_of_one_another():
    made = options("--job_name=cars")
    view = made.view_as(StandardOptions)
    assert made.view_as(StandardOptions) is view
    view.streaming = True
    assert made.view_as(PipelineOptions).get_all_options()["streaming"] is True
    assert pickle.loads(pickle.dumps(made)).view_as(GoogleCloudOptions).job_name == "cars"


def test_many_photos_use_every_core():
    many = options(num_photos=100_000).view_as(DirectOptions)
    assert many.direct_num_workers == len(os.sched_getaffinity(0))


def test_another_runner_is_passed_on():
    passed = options("--runner=FlinkRunner", "--flink_master=host:8081")
    assert passed.view_as(StandardOptions).runner == "FlinkRunner"


@pytest.mark.parametrize("runner", ["DirectRunner", "PrismRunner", "apache_beam.runners.DirectRunner"])
def test_runners_that_download_programs_are_refused(runner):
    with pytest.raises(errors.ConfigError, match=f"--runner={runner}: it downloads a program"):
        options(f"--runner={runner}")


def test_multi_threading_is_refused():
    with pytest.raises(errors.ConfigError, match="silently loses photos"):
        options("--direct_running_mode=multi_threading")


@pytest.mark.parametrize("argument", ["--tempp_location=/x", "--num_wrkers"])
def test_an_option_that_beam_does_not_know_raises(argument):
    name = argument.partition("=")[0]
    with pytest.raises(errors.ConfigError, match=rf"{name}: no option of Apache Beam .*\. Check its spelling"):
        options(argument)


def test_a_value_that_does_not_fit_raises():
    with pytest.raises(errors.ConfigError, match="Beam refuses its options: --direct_num_workers=two"):
        options("--direct_num_workers=two")


def test_no_workers_raises():
    with pytest.raises(errors.ConfigError, match="--workers=0: give a whole number at least 1"):
        options(workers=0)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_in_a_step_arrives_as_it_was_raised(tmp_path, workers):
    with pytest.raises(errors.DataError, match=r"^bmw/1\.jpg: \[broken\]\. Remove it\.$"):
        run_step(raise_data_error, tmp_path, workers)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_in_a_step_is_one_line(tmp_path, workers):
    with pytest.raises(errors.BuildError, match=r"disk full while building in .*: \d+ MiB free\. Free space, then run"):
        run_step(raise_disk_full, tmp_path, workers)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_path_that_a_step_cannot_use_is_one_line(tmp_path, workers):
    with pytest.raises(errors.BuildError, match=r"^/photos/l'été/1\.jpg: Permission denied\. Look at this path\.$"):
        run_step(raise_no_permission, tmp_path, workers)


def test_a_bug_keeps_its_trace(tmp_path):
    with pytest.raises(Exception, match="a bug"):
        run_step(raise_bug, tmp_path)


def test_a_killed_worker_ends_the_process_with_one_line(tmp_path):
    (tmp_path / "deadly.py").write_text(
        textwrap.dedent("""
            import os, signal

            def kill(number):
                os.kill(os.getpid(), signal.SIGKILL)
        """)
    )
    code = textwrap.dedent(f"""
        from beam_jobs import runners
        import apache_beam as beam, deadly
        options = runners.make_options(1, workers=2, beam_args=())
        build = lambda pipeline: pipeline | beam.Create([1, 2, 3]) | beam.Reshuffle() | beam.Map(deadly.kill)
        runners.run(build, options, folder={str(tmp_path)!r})
    """)
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert ended.returncode == errors.BuildError.exit_code
    assert "BuildError: a worker process died (Worker subprocess exited with return code" in ended.stderr
    assert f"return code {-signal.SIGKILL}" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_grpc_adds_no_lines_of_its_own():
    code = textwrap.dedent("""
        from beam_jobs import runners
        import grpc
        from concurrent import futures
        grpc.server(futures.ThreadPoolExecutor(1)).add_insecure_port("192.0.2.1:1")  # no address of this machine
    """)
    environment = {name: value for name, value in os.environ.items() if name != "GRPC_VERBOSITY"}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert "RuntimeError: Failed to bind to address 192.0.2.1:1" in ended.stderr
    assert ended.stderr.startswith("Traceback")
