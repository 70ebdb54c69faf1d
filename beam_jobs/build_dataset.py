"""The build: labelled photos -> a records folder. Checks, normalises, finds copies, splits and shards.

Beam, which takes a second to load, is loaded only where it is needed: what cannot work is said before.
"""

import dataclasses
import functools
import os
import pathlib
import shutil
from collections.abc import Mapping, Sequence

from beam_jobs import build_output, checking, finish_build, local_worker, progress
from carbrand import checks, errors, files
from carbrand.data import brands, local_files, manifest, paths, sources


def run(
    source: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    choices: build_output.Choices | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    paths_from: str = "",
    aliases: str | os.PathLike[str] | None = None,
    brand_from: str | None = None,
    append_to: str | os.PathLike[str] | None = None,
    num_shards: int | None = None,
    shard_mib: int = 128,
    readers: int = 1,
    max_reject_fraction: float = 0.1,
    workers: int | None = None,
    beam_args: Sequence[str] = (),
    overwrite: bool = False,
    cache_dir: str | os.PathLike[str] | None = None,
) -> manifest.Manifest:
    """Builds a records folder; when a build was stopped in `output_dir`, goes on with it.

    Args:
        source: of the photos: a folder with one folder per brand, a pattern, a table of photos, or a TFDS dataset; see
            `sources.read`.
        output_dir: for the records; on a disk that all workers share.
        choices: what decides on the content.
        columns: of a table or TFDS dataset, by our names; see `sources.read`.
        paths_from: the folder to which paths in a table are relative; by default the table's own.
        aliases: a CSV file of other names of brands; see `brands.read_aliases`.
        brand_from: a regular expression that finds brand and model in a label; see `brands.parse_pattern`.
        append_to: a records folder, whose photos and decisions are taken over; `choices` must be None then.
        num_shards: of train, the other splits in proportion; None: by size.
        shard_mib: the size of a shard, about, in MiB.
        readers: that will read train at once; each gets at least two shards.
        max_reject_fraction: of all files; when more cannot be used, the build fails.
        workers: processes on this machine; by default threads of this one for few photos, otherwise one per core.
        beam_args: options for Apache Beam, for example another runner.
        overwrite: replace a complete dataset in `output_dir`, once the new one is complete.
        cache_dir: keeps checked photos for later builds; by default they are deleted when the build is complete.

    Raises:
        ConfigError: if an argument cannot work, or `output_dir` already holds a complete dataset.
        DataError: if the source holds no photos of two brands, or a brand ends up with none.
        BuildError: if the disk is full, a photo cannot be read, or a worker was killed.
        GateError: if more than `max_reject_fraction` of the files are rejected, or a group lies in several splits.
    """
    sizing = _sizing(num_shards, shard_mib, readers)
    checks.number("--max_reject_fraction", max_reject_fraction, at_least=0, at_most=1)
    if workers is not None:
        checks.number("--workers", workers, at_least=1, whole=True)
    previous = finish_build.load_previous(append_to) if append_to is not None else None
    if previous and choices:
        own = build_output.Choices.of(previous.dataset).command
        raise errors.ConfigError(f"--append={append_to}: keeps its own choices ({own}). Leave them out.")
    output_path = pathlib.Path(output_dir).absolute()
    _check_folders(source, output_path, previous)
    if cache_dir is not None:
        checks.folder("--cache_dir", cache_dir)
        _check_outside(source, "--cache_dir", pathlib.Path(cache_dir).absolute())
    names = _names(aliases, brand_from, previous)
    if beam_args or paths.is_remote(os.fspath(source)):
        _set_file_systems(workers, beam_args)  # listing needs them
    written = [output_path] if cache_dir is None else [output_path, pathlib.Path(cache_dir)]
    with build_output.locked(output_path), files.full_disk_is_an_error(*written):
        listing = _list(source, output_path, names, columns or {}, paths_from, previous)
        settings = _settings(output_path, cache_dir, listing, names, choices, sizing, previous)
        if (output_path / manifest.FILE_NAME).exists():
            if not overwrite:
                return finish_build.already_complete(settings, listing, previous, max_reject_fraction)
            settings = dataclasses.replace(settings, output_dir=f"{settings.work_dir}/new")
        build_output.remove_old_output(settings)
        with progress.shown(settings.progress_path, settings.num_photos):
            if _is_checked_ahead(listing, settings, workers, beam_args):
                checking.check_ahead(listing.paths, settings)
            _run_pipeline(listing, previous, settings, workers, beam_args)
        finished = finish_build.run(settings, listing, previous, max_reject_fraction)
    print(finish_build.summary(finished, str(output_path)))
    return finished.dataset


def _is_checked_ahead(
    listing: sources.Listing, settings: build_output.Settings, workers: int | None, beam_args: Sequence[str]
) -> bool:
    """Whether the photos are few, on this machine, and the user has not said who is to check them."""
    is_free = workers is None and not beam_args
    is_local = listing.root and not paths.is_remote(listing.root)
    return bool(is_free and is_local and local_worker.default_number(settings.num_photos) == 1)


def _set_file_systems(workers: int | None, beam_args: Sequence[str]) -> None:
    """Passes Beam's options on to its file systems, in which they find their server."""
    from beam_jobs import remote, runners

    remote.set_options(runners.make_options(1, workers=workers, beam_args=beam_args))


def _run_pipeline(
    listing: sources.Listing,
    previous: finish_build.Previous | None,
    settings: build_output.Settings,
    workers: int | None,
    beam_args: Sequence[str],
) -> None:
    from beam_jobs import build_pipeline, runners

    options = runners.make_options(settings.num_photos, workers=workers, beam_args=beam_args)
    build = functools.partial(build_pipeline.build, listing.paths, previous, settings)
    runners.run(build, options, folder=settings.work_dir)


def _sizing(num_shards: int | None, shard_mib: int, readers: int) -> build_output.Sizing:
    if num_shards is not None:
        checks.number("--num_shards", num_shards, at_least=1, whole=True)
    checks.number("--shard_mib", shard_mib, at_least=1, whole=True)
    checks.number("--readers", readers, at_least=1, whole=True)
    if num_shards is not None and num_shards < 2 * readers and readers > 1:
        raise errors.ConfigError(
            f"--num_shards={num_shards}: {readers} readers need at least {2 * readers}. Give more shards, or leave "
            "--num_shards out."
        )
    return build_output.Sizing(num_shards, shard_mib * 2**20, readers)


def _check_folders(
    source: str | os.PathLike[str], output_path: pathlib.Path, previous: finish_build.Previous | None
) -> None:
    checks.folder("--output", output_path)
    _check_utf_8("--output", str(output_path))
    if previous:
        _check_utf_8("--append", previous.folder)
    _check_outside(source, "--output", output_path)
    if not build_output.is_ours(output_path):
        raise errors.ConfigError(
            f"--output={output_path}: holds other files, and is no dataset. Name a new or an empty folder."
        )
    if previous and output_path.resolve() == pathlib.Path(previous.folder).resolve():
        raise errors.ConfigError(
            f"--output={output_path}: is the dataset that is appended to, which stays as it is. Choose a new folder."
        )


def _check_outside(source: str | os.PathLike[str], name: str, folder: pathlib.Path) -> None:
    if _is_input(source, folder):
        raise errors.ConfigError(
            f"{name}={folder}: lies in the input {source}, where the next build would take it for photos. Choose a "
            "folder outside."
        )


def _check_utf_8(name: str, path: str) -> None:
    shown = paths.shown(path)
    if shown != path:
        raise errors.ConfigError(f"{name}={shown}: is not UTF-8, which Beam needs. Rename it, or choose another.")


def _is_input(source: str | os.PathLike[str], output_path: pathlib.Path) -> bool:
    """Whether a folder or a pattern of photos takes in what is written to `output_path`."""
    output_path, path = output_path.resolve(), pathlib.Path(source)
    if path.exists() or not paths.has_wildcard(os.fspath(source)):
        return path.is_dir() and output_path.is_relative_to(path.resolve())
    pattern = paths.parse_pattern(os.fspath(path.absolute()))
    root = pathlib.Path(pattern.root).resolve()
    return output_path.is_relative_to(root) and pattern.fits((output_path / manifest.PAGE).relative_to(root).as_posix())


def _names(
    aliases: str | os.PathLike[str] | None, brand_from: str | None, previous: finish_build.Previous | None
) -> brands.Names:
    """How to read brands; a dataset that is appended to passes its aliases on."""
    found = brands.read_aliases(aliases) if aliases else {}
    if previous:
        for name, brand in found.items():
            if name in previous.dataset.brands or previous.dataset.aliases.get(name, brand) != brand:
                raise errors.ConfigError(f"--aliases={aliases}: {name!r} means another brand in {previous.folder}.")
        found = previous.dataset.aliases | found
        brands.check_aliases(found, f"--aliases={aliases}, with those of {previous.folder}")
    return brands.Names(found, brands.parse_pattern(brand_from) if brand_from else None)


def _list(
    source: str | os.PathLike[str],
    output_path: pathlib.Path,
    names: brands.Names,
    columns: Mapping[str, str],
    paths_from: str,
    previous: finish_build.Previous | None,
) -> sources.Listing:
    work_path = output_path / build_output.WORK_FOLDER
    photos = sources.read(
        os.fspath(source),
        brand_names=names,
        columns=columns,
        paths_from=paths_from,
        files=_files(source),
        spool_dir=work_path / "spool",
    )
    known = previous.dataset.brands if previous else ()
    try:
        return sources.write_listing(photos, work_path / "listing", known_brands=known)
    except errors.CarbrandError:
        if (output_path / manifest.FILE_NAME).exists():
            shutil.rmtree(work_path)  # nothing but a complete dataset is to be there
        raise


def _files(source: str | os.PathLike[str]) -> sources.Files:
    """Where to find the files that a source names."""
    if not paths.is_remote(os.fspath(source)):
        return local_files
    from beam_jobs import remote

    return remote.FILES


def _settings(
    output_path: pathlib.Path,
    cache_dir: str | os.PathLike[str] | None,
    listing: sources.Listing,
    names: brands.Names,
    choices: build_output.Choices | None,
    sizing: build_output.Sizing,
    previous: finish_build.Previous | None,
) -> build_output.Settings:
    old = previous.dataset if previous else None
    work_path = output_path / build_output.WORK_FOLDER
    choices = build_output.Choices.of(old) if old else choices or build_output.Choices()
    return build_output.Settings(
        output_dir=str(output_path),
        work_dir=str(work_path),
        cache_dir=str(pathlib.Path(cache_dir or work_path / "cache").absolute()),
        root=listing.root,
        brands=_brands(listing, previous),
        aliases=dict(sorted(names.aliases.items())),
        given_splits=tuple(sorted({*listing.given_splits, *(old.given_splits if old else ())})),
        has_groups=choices.group_by != "none" and (listing.has_groups or choices.group_by == "model" or bool(old)),
        num_photos=listing.num_photos + (old.counts["kept"] if old else 0),
        choices=choices,
        sizing=sizing,
    )


def _brands(listing: sources.Listing, previous: finish_build.Previous | None) -> tuple[str, ...]:
    """In the order of the labels: those of an older dataset keep theirs."""
    old = previous.dataset.brands if previous else ()
    return (*old, *sorted(set(listing.brand_counts) - set(old)))
