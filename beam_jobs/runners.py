"""Which Beam runner, with which options, and what its failures mean: one error line instead of a trace or a hang."""

import ast
import contextlib
import logging
import os
import re
import shlex
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

# What goes wrong in gRPC is raised too; its own lines would only hide that, and puzzle whoever stops a build by Ctrl-C.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

# Beam logs on import that packages for Google Cloud are absent; nobody here misses them.
logging.disable(logging.WARNING)
import apache_beam as beam  # noqa: E402
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, StandardOptions  # noqa: E402
from apache_beam.runners.portability.fn_api_runner import fn_runner  # noqa: E402
from apache_beam.transforms import environments  # noqa: E402

logging.disable(logging.NOTSET)

from beam_jobs import local_worker  # noqa: E402
from carbrand import checks, errors, files  # noqa: E402

LOCAL_RUNNER = "FnApiRunner"
DASK_RUNNER = "apache_beam.runners.dask.dask_runner.DaskRunner"  # Beam knows it by no shorter name

_ERROR_FROM_WORKER = re.compile(r"carbrand\.errors\.(\w+Error): (.+?)(?: \[while running .*)?$", re.MULTILINE)
# With the path as Python writes text.
_OS_ERROR_FROM_WORKER = re.compile(r"\[Errno (\d+)\] (.+): ((['\"]).*?\4)(?: -> .*)? \[while running ")

_View = TypeVar("_View", bound=PipelineOptions)


class _Options(PipelineOptions):
    """Beam's options, but each view of them is made once.

    For one pipeline Beam asks for a thousand, and makes a parser for each: a sixth of the time of a small build.
    """

    def view_as(self, cls: type[_View]) -> _View:
        """The options that `cls` declares."""
        views: dict[type, Any] = self.__dict__.setdefault("_views", {})
        if cls not in views:
            views[cls] = super().view_as(cls)
        return views[cls]


def make_options(num_photos: int, *, workers: int | None, beam_args: Sequence[str]) -> PipelineOptions:
    """The options of a pipeline over `num_photos` photos.

    Args:
        num_photos: decides, unless `workers` does, between one process and all cores.
        workers: local processes.
        beam_args: Beam's own options; `--runner` among them replaces the local runner.

    Raises:
        ConfigError: if Beam does not know an option, a value does not fit, or the runner is known to lose photos.
    """
    if workers is not None:
        checks.number("--workers", workers, at_least=1, whole=True)
    options = _parse(beam_args)
    runner = options.view_as(StandardOptions).runner
    _check_runner(runner, options.view_as(DirectOptions).direct_running_mode)
    if runner is None:
        options.view_as(StandardOptions).runner = LOCAL_RUNNER
        options.view_as(DirectOptions).direct_num_workers = workers or local_worker.default_number(num_photos)
    return options


def run(build: Callable[[beam.Pipeline], object], options: PipelineOptions, *, folder: str) -> None:
    """Builds and runs a pipeline, and waits for its end.

    Args:
        build: applies the steps to an empty pipeline.
        options: from `make_options`.
        folder: where the pipeline writes; worker processes log to its workers.log.

    Raises:
        CarbrandError: as raised in a step.
        BuildError: if the disk is full, or a step cannot use a file or folder.
        KeyboardInterrupt: at Ctrl-C.
    """
    with _quiet(), _exit_when_a_worker_dies(folder), files.full_disk_is_an_error(folder):
        pipeline = beam.Pipeline(runner=_runner(options, folder), options=options)
        build(pipeline)
        try:
            result = pipeline.run()
            result.wait_until_finish()
            if client := getattr(result, "client", None):  # Dask's, which would wait for its cluster for ever
                client.close()
        except Exception as error:
            _raise_error_of_worker(error)
            raise


def _parse(beam_args: Sequence[str]) -> PipelineOptions:
    beam_args = [re.sub(r"^(--runner=)?DaskRunner$", rf"\g<1>{DASK_RUNNER}", argument) for argument in beam_args]
    if any(DASK_RUNNER in argument for argument in beam_args):
        _load_dask()
    try:
        with _quiet():
            options = _Options(list(beam_args))
            known = options.get_all_options()
            everything = options.get_all_options(retain_unknown_options=True)
    except SystemExit as error:  # argparse has printed what it did not like
        raise errors.ConfigError(f"Beam refuses its options: {' '.join(beam_args)}") from error
    unknown = sorted(everything.keys() - known.keys())
    if unknown:  # Beam itself would only warn, and run without them.
        raise errors.ConfigError(f"--{unknown[0]}: no option of Apache Beam {beam.__version__}. Check its spelling.")
    return options


def _load_dask() -> None:
    """Makes the options of Dask's runner known to Beam."""
    try:
        import dask.distributed  # noqa: F401
        from apache_beam.runners.dask import dask_runner  # noqa: F401
    except ImportError as error:
        raise errors.ConfigError(
            f"--runner=DaskRunner: Dask is missing ({error}). Run: pip install 'carbrand[dask]'"
        ) from error


def _check_runner(runner: str | None, running_mode: str | None) -> None:
    name = (runner or "").rpartition(".")[2].lower()
    if name in ("directrunner", "prismrunner", "switchingdirectrunner"):
        raise errors.ConfigError(
            f"--runner={runner}: it downloads a program at run time. Leave --runner out to build on this machine."
        )
    if running_mode == "multi_threading":
        raise errors.ConfigError(
            "--direct_running_mode=multi_threading: Beam silently loses photos in it. Use --workers for processes."
        )


def _runner(options: PipelineOptions, folder: str) -> fn_runner.FnApiRunner | None:
    """The local runner, in this process or with worker processes, or None for the one that `options` name."""
    if options.view_as(StandardOptions).runner != LOCAL_RUNNER:
        return None
    if options.view_as(DirectOptions).direct_num_workers == 1:
        return fn_runner.FnApiRunner()
    local_worker.share_one_heap()  # this process holds what all workers exchange
    # As --direct_running_mode=multi_processing, whose workers write every step they take to stderr.
    log = shlex.quote(os.path.join(folder, "workers.log"))  # noqa: PTH118
    command = f"exec {shlex.quote(sys.executable)} -m beam_jobs.local_worker {os.getpid()} 2>>{log}"
    return fn_runner.FnApiRunner(environments.SubprocessSDKEnvironment.from_command_string(command))


def _raise_error_of_worker(error: Exception) -> None:
    """Raises the CarbrandError that a step raised: Beam passes on only its trace, or adds the step's name to it.

    Of an OSError about a path it makes a BuildError. Of Ctrl-C in a step Beam makes a RuntimeError.
    """
    trace = "".join(traceback.format_exception(error))
    if "KeyboardInterrupt [while running" in trace:
        raise KeyboardInterrupt from error
    found = _ERROR_FROM_WORKER.search(trace)
    if found:
        raise getattr(errors, found[1])(found[2]) from error
    found = _OS_ERROR_FROM_WORKER.search(trace)
    if found and int(found[1]) not in files.FULL_DISK:  # which `full_disk_is_an_error` tells of
        raise errors.BuildError(f"{ast.literal_eval(found[3])}: {found[2]}. Look at this path.") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Beam's own log lines away: errors arrive as exceptions."""
    logger = logging.getLogger("apache_beam")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _exit_when_a_worker_dies(folder: str) -> Iterator[None]:
    """Ends this process when a worker process is killed, for which Beam would wait for ever.

    Only the thread that started the worker learns of it; the main thread stands in a lock that nothing releases, so an
    exception could not reach the caller.
    """
    before = threading.excepthook

    def exit_or_pass_on(failure: threading.ExceptHookArgs) -> None:
        name = failure.thread.name if failure.thread else ""
        if name == "run_worker":
            _exit(f"a worker process died ({failure.exc_value}), perhaps for lack of memory. See {folder}/workers.log")
        elif not name.startswith(("read_grpc_client_inputs", "beam_control_read")):  # echoes of the same death
            before(failure)

    threading.excepthook = exit_or_pass_on
    try:
        yield
    finally:
        threading.excepthook = before


def _exit(what: str) -> None:
    print(
        f"BuildError: {what}. Run the same command again, with fewer --workers; what was done is kept in the cache.",
        file=sys.stderr,
        flush=True,
    )
    os._exit(errors.BuildError.exit_code)
