"""Files in buckets and on HDFS, through Beam's file systems, and on this machine: one way to be `sources.Files`."""

import contextlib
from collections.abc import Iterator
from typing import BinaryIO

from beam_jobs import runners
from carbrand import errors
from carbrand.data import local_files, paths, sources

filesystem = runners.beam.io.filesystem
FileSystems = runners.beam.io.filesystems.FileSystems

_EXTRAS = {"gs": "gcp", "s3": "aws", "hdfs": "hadoop", "azfs": "azure"}  # of apache-beam, by scheme


def set_options(options: runners.PipelineOptions) -> None:
    """Passes on Beam's options, in which some file systems find their server, for what is read before a pipeline."""
    FileSystems.set_options(options)


def is_remote(uri: str) -> bool:
    """Whether `uri` is not a path on this machine."""
    return paths.is_remote(uri)


def read(uri: str, max_bytes: int) -> bytes:
    """The first `max_bytes` of a remote file.

    Raises:
        ConfigError: if Beam's package for such URIs is not installed.
        NotFoundError: if there is no such file.
        DataError: if there is no permission to read it.
        BuildError: if it cannot be read now.
    """
    with _clear_errors(uri), open(uri) as file:
        return file.read(max_bytes)


def open(uri: str) -> BinaryIO:
    """Opens a file for reading, its bytes as they are stored; raises as `read`."""
    if not is_remote(uri):
        return local_files.open(uri)
    with _clear_errors(uri):
        # Not AUTO: that would unpack photos.gz.
        return _file_system(uri).open(uri, compression_type=filesystem.CompressionTypes.UNCOMPRESSED)


def match(pattern: str) -> Iterator[tuple[str, int]]:
    """URI and size in bytes of every file that fits `pattern`, see `paths.Pattern`, in no order; raises as `read`."""
    if not is_remote(pattern):
        yield from local_files.match(pattern)
        return
    parsed = paths.parse_pattern(pattern)
    if "://" not in parsed.root:
        raise errors.ConfigError(f"{pattern}: a wildcard in place of the bucket. Name one bucket.")
    prefix = paths.prefix_of(parsed.root)
    with _clear_errors(pattern):
        for found in _list(_file_system(pattern), parsed.root):
            name = found.path.removeprefix(prefix)
            if name and not name.endswith("/") and parsed.fits(name):  # a bucket may hold empty objects as folders
                yield found.path, found.size_in_bytes or 0


class _Files:
    match = staticmethod(match)
    open = staticmethod(open)


FILES: sources.Files = _Files()


def _list(system: filesystem.FileSystem, folder: str) -> Iterator[filesystem.FileMetadata]:
    """Every file below `folder`. FileSystems.match would hold all of them in a list, and on HDFS see one level only."""
    if not system.has_dirs():
        yield from system._list(paths.prefix_of(folder))
        return
    for found in system._list(folder):
        if found.size_in_bytes:
            yield found
        else:
            yield from _list_folder_or_empty_file(system, found)


def _list_folder_or_empty_file(
    system: filesystem.FileSystem, found: filesystem.FileMetadata
) -> Iterator[filesystem.FileMetadata]:
    """Of HDFS, which tells the two apart only when asked to list them."""
    inside = _list(system, found.path)
    try:
        first = next(inside, None)
    except filesystem.BeamIOError as error:
        if "is not a directory" not in str(error):
            raise
        yield found
        return
    if first is not None:
        yield first
        yield from inside


def _file_system(uri: str) -> filesystem.FileSystem:
    scheme = FileSystems.get_scheme(uri)
    if scheme not in {system.scheme() for system in filesystem.FileSystem.get_all_subclasses()}:
        if scheme not in _EXTRAS:
            raise errors.ConfigError(
                f"{uri}: Beam reads no {scheme}:// files. Copy them to a disk or a bucket: {', '.join(_EXTRAS)}."
            )
        raise _missing_package(uri, scheme)
    return FileSystems.get_filesystem(uri)


def _missing_package(uri: str, scheme: str) -> errors.ConfigError:
    return errors.ConfigError(
        f"{uri}: the package for {scheme}:// is not installed. Run: pip install 'apache-beam[{_EXTRAS[scheme]}]'"
    )


def _wrong_options(uri: str, problem: BaseException) -> errors.ConfigError:
    return errors.ConfigError(f"{uri}: {_one_line(problem)}. Give Beam's options for such files after --.")


@contextlib.contextmanager
def _clear_errors(uri: str) -> Iterator[None]:
    """Turns what goes wrong with a remote file into one line."""
    try:
        yield
    except errors.CarbrandError:
        raise
    except Exception as error:  # The clients' errors have no base in common.
        cause = _cause(error)
        scheme = FileSystems.get_scheme(uri) or ""
        # The clients for S3 and Azure only fail once they miss their package.
        if isinstance(cause, ImportError | AssertionError | NameError) and scheme in _EXTRAS:
            raise _missing_package(uri, scheme) from error
        if isinstance(cause, ValueError):
            raise _wrong_options(uri, cause) from error
        code = getattr(cause, "code", None)  # of HTTP, in those for buckets
        if isinstance(cause, FileNotFoundError) or code == 404:
            raise errors.NotFoundError(f"{uri}: no such file. Correct the path.") from error
        if isinstance(cause, PermissionError) or code in (401, 403):
            raise errors.DataError(f"{uri}: no permission to read it. Log in, or ask its owner.") from error
        raise errors.BuildError(
            f"{uri}: cannot be read ({type(cause).__name__}: {_one_line(cause)}). Run the same command again; what "
            "was done is kept in the cache."
        ) from error


def _cause(error: BaseException) -> BaseException:
    """What lies behind Beam's own errors."""
    while isinstance(error, filesystem.BeamIOError) and error.exception_details:
        error = next(iter(error.exception_details.values()))
    return error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".")
