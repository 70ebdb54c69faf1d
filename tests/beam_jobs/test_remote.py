import io

import pytest

from beam_jobs import remote, runners
from carbrand import errors
from carbrand.data import brands, sources

filesystem = runners.beam.io.filesystem


class Denied(Exception):
    code = 403


class Bucket(filesystem.FileSystem):
    """A read-only bucket in memory: names are only prefixes, and an object may stand for a folder."""

    CONTENT = {
        "bucket://b/photos/": b"",
        "bucket://b/photos/bmw/1.jpg": b"one",
        "bucket://b/photos/bmw/x5/2.jpg": b"two",
        "bucket://b/photos/bmw/.hidden.jpg": b"x",
        "bucket://b/photos/kia/": b"",
        "bucket://b/photos/kia/3.jpg.gz": b"three",
        "bucket://b/photos/kia/empty.jpg": b"",
        "bucket://b/photos/readme.txt": b"x",
        "bucket://b/photos_old/bmw/4.jpg": b"four",
        "bucket://b/lists/cars.csv": b"path,brand\n../photos/bmw/1.jpg,bmw\nbucket://c/5.jpg,kia\n",
    }

    @classmethod
    def scheme(cls):
        return "bucket"

    def has_dirs(self):
        return False

    def _list(self, folder):
        if folder.startswith("bucket://denied/"):
            raise filesystem.BeamIOError("List operation failed", {folder: Denied("no\nway")})
        for path, content in self.CONTENT.items():
            if path.startswith(folder):
                yield filesystem.FileMetadata(path, len(content))

    def open(self, path, mime_type="application/octet-stream", compression_type=filesystem.CompressionTypes.AUTO):
        assert compression_type == filesystem.CompressionTypes.UNCOMPRESSED
        if path.startswith("bucket://broken/"):
            raise ConnectionResetError("reset by peer")
        if path not in self.CONTENT:
            raise filesystem.BeamIOError("Open failed", {path: FileNotFoundError(path)})
        return io.BytesIO(self.CONTENT[path])

    def _none(self, *args):
        raise NotImplementedError

    create = copy = rename = exists = size = last_updated = checksum = metadata = delete = join = split = mkdirs = _none


class Folders(Bucket):
    """The same as HDFS has it: only the names directly in a folder are listed, and folders have size 0."""

    @classmethod
    def scheme(cls):
        return "folders"

    def has_dirs(self):
        return True

    def _list(self, folder):
        content = {path.replace("bucket:", "folders:"): data for path, data in self.CONTENT.items()}
        if folder in content:
            raise filesystem.BeamIOError(
                "List operation failed", {folder: Exception(f"{folder!r} is not a directory.")}
            )
        for name in sorted(
            {path.removeprefix(f"{folder}/").split("/")[0] for path in content if path.startswith(f"{folder}/")}
        ):
            if name:
                path = f"{folder}/{name}"
                yield filesystem.FileMetadata(path, len(content.get(path, b"")))


def read(source):
    return list(sources.read(source, brand_names=brands.Names(), files=remote.FILES, spool_dir=None))


@pytest.mark.parametrize("scheme", ["bucket", "folders"])
def test_a_remote_folder_is_read_as_a_local_one(scheme, caplog):
    photos = read(f"{scheme}://b/photos/")
    assert sorted((photo.uri, photo.brand, photo.model) for photo in photos) == [
        (f"{scheme}://b/photos/bmw/1.jpg", "bmw", ""),
        (f"{scheme}://b/photos/bmw/x5/2.jpg", "bmw", "x5"),
        (f"{scheme}://b/photos/kia/3.jpg.gz", "kia", ""),
        (f"{scheme}://b/photos/kia/empty.jpg", "kia", ""),
    ]
    assert "left out 1 files that lie in no brand folder" in caplog.text


@pytest.mark.parametrize("scheme", ["bucket", "folders"])
def test_a_remote_pattern_takes_what_fits(scheme):
    assert list(remote.match(f"{scheme}://b/photos*/bmw/?.jpg")) == [
        (f"{scheme}://b/photos/bmw/1.jpg", 3),
        (f"{scheme}://b/photos_old/bmw/4.jpg", 4),
    ]


def test_a_remote_folder_and_its_local_copy_give_equal_listings(tmp_path):
    for uri, content in Bucket.CONTENT.items():
        if uri.startswith("bucket://b/photos/") and not uri.endswith("/"):
            path = tmp_path / uri.removeprefix("bucket://b/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    local = sources.write_listing(read(str(tmp_path / "photos")), tmp_path / "local")
    there = sources.write_listing(read("bucket://b/photos"), tmp_path / "remote")
    assert (local.fingerprint, local.brand_counts) == (there.fingerprint, there.brand_counts)


def test_paths_in_a_remote_manifest_are_relative_to_it():
    assert [photo.uri for photo in read("bucket://b/lists/cars.csv")] == [
        "bucket://b/photos/bmw/1.jpg",
        "bucket://c/5.jpg",
    ]


def test_files_are_read_as_they_are_stored():
    assert remote.read("bucket://b/photos/kia/3.jpg.gz", 100) == b"three"
    assert remote.read("bucket://b/photos/bmw/2.jpg".replace("bmw", "bmw/x5"), 2) == b"tw"


def test_files_on_this_machine_are_found_too(tmp_path):
    (tmp_path / "1.jpg").write_bytes(b"12345")
    with remote.open(f"{tmp_path}/1.jpg") as file:
        assert file.read() == b"12345"
    assert list(remote.match(f"{tmp_path}/*")) == [(f"{tmp_path}/1.jpg", 5)]
    assert not remote.is_remote(f"{tmp_path}/1.jpg")


def test_a_missing_remote_file_raises():
    with pytest.raises(errors.DataError, match=r"^bucket://b/none\.jpg: no such file"):
        remote.read("bucket://b/none.jpg", 10)


def test_missing_permission_raises():
    with pytest.raises(errors.DataError, match=r"^bucket://denied/x/\*\*: no permission to read it"):
        read("bucket://denied/x")


def test_a_broken_connection_says_to_run_again():
    with pytest.raises(
        errors.BuildError, match=r"cannot be read \(ConnectionResetError: reset by peer\). Run the same"
    ):
        remote.read("bucket://broken/1.jpg", 10)


@pytest.mark.parametrize(("scheme", "extra"), [("gs", "gcp"), ("s3", "aws"), ("hdfs", "hadoop")])
def test_a_missing_package_is_named(scheme, extra, monkeypatch):
    monkeypatch.setattr(filesystem.FileSystem, "get_all_subclasses", classmethod(lambda cls: [Bucket]))
    with pytest.raises(errors.ConfigError, match=rf"pip install 'apache-beam\[{extra}\]'"):
        remote.read(f"{scheme}://b/1.jpg", 10)


def test_a_client_that_asserts_its_package_names_it(monkeypatch):
    def refuse(self, path, **kwargs):
        raise AssertionError("Missing `boto3` requirement")

    monkeypatch.setattr(Bucket, "open", refuse)
    monkeypatch.setitem(remote._EXTRAS, "bucket", "aws")
    with pytest.raises(errors.ConfigError, match=r"the package for bucket:// is not installed.*apache-beam\[aws\]"):
        remote.read("bucket://b/1.jpg", 10)


def test_a_scheme_that_beam_does_not_know_raises():
    with pytest.raises(errors.ConfigError, match=r"Beam reads no https:// files. Copy them"):
        remote.read("https://example.com/1.jpg", 10)


def test_a_file_system_without_its_package_or_options_raises(monkeypatch):
    def refuse(self, pipeline_options):
        raise problem

    monkeypatch.setattr(Bucket, "__init__", refuse)
    problem = ValueError("hdfs_host is not set")
    with pytest.raises(errors.ConfigError, match="hdfs_host is not set. Give Beam's options for such files after --"):
        remote.read("bucket://b/1.jpg", 10)
    problem = ImportError("Failed to import hdfs")
    monkeypatch.setitem(remote._EXTRAS, "bucket", "hadoop")
    with pytest.raises(errors.ConfigError, match=r"pip install 'apache-beam\[hadoop\]'"):
        remote.read("bucket://b/1.jpg", 10)


def test_a_wildcard_for_the_bucket_raises():
    with pytest.raises(errors.ConfigError, match="a wildcard in place of the bucket"):
        read("bucket://*/photos/*.jpg")


def test_options_reach_the_file_system(monkeypatch):
    monkeypatch.setattr(remote.FileSystems, "_pipeline_options", None)
    options = runners.PipelineOptions(["--hdfs_host=there"])
    remote.set_options(options)
    assert remote.FileSystems._pipeline_options is options
