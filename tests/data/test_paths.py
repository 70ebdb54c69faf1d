import pytest

from carbrand import errors
from carbrand.data import paths


@pytest.mark.parametrize(
    ("path", "root", "levels"),
    [
        ("/data/*/*.jpg", "/data", ("*", "*.jpg")),
        ("/*/1.jpg", "/", ("*", "1.jpg")),
        ("/data/1.jpg", "/data", ("1.jpg",)),
        ("gs://b/x/**", "gs://b/x", ("**",)),
    ],
)
def test_a_pattern_is_cut_before_its_first_wildcard(path, root, levels):
    assert paths.parse_pattern(path) == paths.Pattern(root, levels)


@pytest.mark.parametrize(
    ("levels", "fitting", "others"),
    [
        (("*.jpg",), ["1.jpg", "*.jpg"], ["a/1.jpg", "1.JPG", ".jpg", ".1.jpg"]),
        (("**", "1.jpg"), ["1.jpg", "a/1.jpg", "a/b/1.jpg"], ["a/2.jpg", ".a/1.jpg"]),
        (("a", "**"), ["a/1.jpg", "a/b/1.jpg"], ["b/1.jpg"]),
        (("**", "x", "**", "?"), ["x/1", "a/x/b/1"], ["a/1", "x/12"]),
        (("[ab]",), ["a", "b"], ["c", "ab"]),
    ],
)
def test_a_pattern_fits_level_by_level(levels, fitting, others):
    pattern = paths.Pattern("/x", levels)
    assert [name for name in fitting + others if pattern.fits(name)] == fitting


def test_a_pattern_tells_which_folders_may_hold_what_fits():
    pattern = paths.Pattern("/x", ("a*", "b", "**", "1.jpg"))
    assert [name for name in ("a1", "b", "a1/b", "a1/c", "a1/b/c/d") if pattern.may_hold(name)] == [
        "a1",
        "a1/b",
        "a1/b/c/d",
    ]
    assert not paths.Pattern("/x", ("*", "*.jpg")).may_hold("a/b")


@pytest.mark.parametrize(
    ("folder", "path", "joined"),
    [
        ("/data", "a b/é.jpg", "/data/a b/é.jpg"),
        ("/data", "./x/../1.jpg", "/data/1.jpg"),
        ("/data", "../1.jpg", "/1.jpg"),
        ("/data", "//mnt/1.jpg", "/mnt/1.jpg"),
        ("/", "1.jpg", "/1.jpg"),
        ("/data", "s3://b/1.jpg", "s3://b/1.jpg"),
        ("gs://b/x", "../y/1.jpg", "gs://b/y/1.jpg"),
        ("gs://b/x", "/y/1.jpg", "/y/1.jpg"),
        ("gs://b/x", "~1.jpg", "gs://b/x/~1.jpg"),
        ("hdfs:///x", "1.jpg", "hdfs:///x/1.jpg"),
    ],
)
def test_a_path_in_a_manifest_becomes_absolute(folder, path, joined):
    assert paths.joined(folder, path, "cars.csv:2") == joined


@pytest.mark.parametrize("path", [r"C:\cars\1.jpg", "C:/cars/1.jpg", r"\\server\1.jpg", r"bmw\1.jpg", "1\0.jpg"])
def test_a_path_of_windows_raises(path):
    with pytest.raises(errors.DataError, match="cars.csv:2: .* is no path on this machine. Write it with /, relative"):
        paths.joined("/data", path, "cars.csv:2")
