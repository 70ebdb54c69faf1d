import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from carbrand import files
from carbrand.data import manifest, page, records

HISTOGRAM = {"<128": 0, "128-255": 2, "256-511": 10, "512-1023": 3, "1024-2047": 0, ">=2048": 1}
MEASURE = {"min": 40, "mean": 55.25, "max": 60}


def drawn(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((60, 40), Image.Resampling.BILINEAR).save(buffer, "JPEG")
    return buffer.getvalue()


def write_split(folder, split, brands, photos):
    """`photos`: (label, name, JPEG) in the order of the one shard."""
    payloads = [records.encode(record(label, brands[label], name, encoded)) for label, name, encoded in photos]
    content = b"".join(map(records.frame, payloads))
    offsets = np.cumsum([0, *(len(payload) + records.FRAME_BYTES for payload in payloads)])
    index = np.zeros(len(photos), records.INDEX_DTYPE)
    index["offset"], index["length"] = offsets[:-1], [len(payload) for payload in payloads]
    index["label"] = [label for label, _, _ in photos]
    files.write_bytes(folder / manifest.index_name(split), manifest.index_bytes(index))
    name = files.shard_name(split, 0, 1)
    files.write_bytes(folder / name, content)
    shard = manifest.Shard(name, len(photos), len(content), files.sha256(content))
    counts = np.bincount(index["label"], minlength=len(brands)).tolist()
    return manifest.Split((shard,) if photos else (), tuple(counts))


def record(label, brand, name, encoded):
    texts = {
        "image/class/text": brand,
        "image/filename": name,
        "image/group": "",
        "image/hash/perceptual": "00",
        "image/key/sha256": files.sha256(encoded),
        "image/model": "",
        "image/source/label": brand,
    }
    numbers = ("image/height", "image/width", "image/source/height", "image/source/width")
    return {
        "image/class/label": label,
        "image/encoded": encoded,
        **dict.fromkeys(numbers, 40),
        **{feature: value.encode() for feature, value in texts.items()},
    }


def write_dataset(folder, brands=("audi", "bmw"), per_brand=(8, 1, 1), photo=drawn, lists=None, **values):
    """A records folder without catalogue; `lists` has the rows of rejects, duplicates and conflicts."""
    lists = {"rejects": [], "duplicates": [], "conflicts": []} | (lists or {})
    splits = {}
    for split, count in zip(manifest.SPLITS, per_brand, strict=True):
        photos = [
            (label, f"{brand}/{split}-{number}.jpg", photo([label, number]))
            for number in range(count)
            for label, brand in enumerate(brands)
        ]
        splits[split] = write_split(folder, split, brands, photos)
    for name, rows in lists.items():
        files.write_jsonl(folder / f"{name}.jsonl", rows)
    kept = sum(per_brand) * len(brands)
    reasons = {}
    for row in lists["rejects"]:
        reasons[row["reason"]] = reasons.get(row["reason"], 0) + 1
    counts = {
        "kept": kept,
        "duplicate": len(lists["duplicates"]),
        "conflict": len(lists["conflicts"]),
        "rejected": reasons,
    }
    measures = dict.fromkeys(("height", "width", "original_height", "original_width", "bytes"), MEASURE)
    fields = {
        "format_version": records.FORMAT_VERSION,
        "carbrand_version": "0.1.0",
        "version": 1,
        "ancestors": (),
        "brands": tuple(brands),
        "labels": {brand: [brand] for brand in brands},
        "near_misses": [],
        "splits": splits,
        "resize_short_px": 256,
        "jpeg_quality": 95,
        "seed": 0,
        "fractions": (0.8, 0.1, 0.1),
        "near_duplicates": "keep_one",
        "conflicts": "keep_out",
        "group_by": "none",
        "given_splits": (),
        "aliases": {},
        "counts": {"seen": kept + sum(map(len, lists.values())), **counts},
        "statistics": {
            **measures,
            "mean_rgb": [120.5, 110.25, 99.0],
            "original_short_side_histogram": HISTOGRAM,
        },
        "source": {"root": "/photos", "fingerprint": "0" * 64},
        "files": {},
        "fingerprint": manifest.fingerprint_of(tuple(brands), splits),
        "command": "carbrand build --split 0.8,0.1,0.1",
    }
    return manifest.Manifest(**fields | values)


def copy_row(name, kept, kind="exact", split="", kept_split="", dropped=True):
    sha256, kept_sha256 = files.sha256(name.encode()), files.sha256(kept.encode())
    brand = name.partition("/")[0]
    row = {"name": name, "uri": f"/photos/{name}", "brand": brand, "sha256": sha256, "kind": kind, "kept": kept}
    return row | {
        "kept_sha256": kept_sha256,
        "group": kept_sha256,
        "split": split,
        "kept_split": kept_split,
        "dropped": dropped,
    }


def conflict_row(name, group):
    brand = name.partition("/")[0]
    sha256 = files.sha256(name.encode())
    return {
        "name": name,
        "uri": name,
        "brand": brand,
        "sha256": sha256,
        "group": group,
        "other_brands": ["x"],
    }


def reject_row(name, reason="empty", detail="0 bytes"):
    return {"name": name, "uri": f"/photos/{name}", "reason": reason, "detail": detail}


def render(folder, image_of=lambda sha256: None, **values):
    return page.render(folder, write_dataset(folder, **values), image_of)


def words(html):
    """The text of the body with single spaces, without tags."""
    body = html.partition("<body>")[2]
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", body))


def test_the_page_needs_nothing_from_outside(tmp_path):
    html = render(tmp_path)
    assert "<script" not in html
    assert not re.findall(r"(?:src|href)=\"(?!data:image/jpeg;base64,)", html)
    assert "url(" not in html
    assert "@import" not in html


def test_equal_datasets_have_equal_pages(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    assert render(tmp_path / "one") == render(tmp_path / "two")


def test_the_counts_of_files_sum_up(tmp_path):
    lists = {
        "rejects": [reject_row("audi/1.txt")],
        "duplicates": [copy_row("audi/b.jpg", "audi/a.jpg"), copy_row("audi/c.jpg", "audi/a.jpg")],
        "conflicts": [conflict_row("audi/x.jpg", "1"), conflict_row("bmw/x.jpg", "1"), conflict_row("bmw/y.jpg", "1")],
    }
    built = write_dataset(tmp_path, lists=lists)
    parts = page.outcome(built)
    assert [(part.name, part.count) for part in parts] == [
        ("kept", 20),
        ("duplicate", 2),
        ("conflict", 3),
        ("rejected", 1),
    ]
    assert sum(part.count for part in parts) == built.counts["seen"]
    assert "26 files seen" in words(page.render(tmp_path, built, lambda sha256: None))


def test_brands_stand_largest_first_with_their_photos_per_split(tmp_path):
    splits = {
        "train": manifest.Split((), (5, 30)),
        "validation": manifest.Split((), (1, 6)),
        "test": manifest.Split((), (0, 4)),
    }
    lines = page.brand_lines(write_dataset(tmp_path, splits=splits))
    assert [(line.name, line.total) for line in lines] == [("bmw", 40), ("audi", 6)]
    assert [(part.count, part.share) for part in lines[1].parts] == [(5, 0.125), (1, 0.025), (0, 0)]


def test_each_brand_shows_its_first_photos_in_train(tmp_path):
    html = render(tmp_path)
    shown = re.findall(r'<img src="[^"]+" alt="([^"]+)"', html)
    assert shown == [f"{brand}/train-{number}.jpg" for brand in ("audi", "bmw") for number in range(6)]


def test_a_sample_is_a_small_jpeg_of_the_stored_photo(tmp_path):
    large = io.BytesIO()
    Image.new("RGB", (400, 200), "red").save(large, "JPEG")
    html = render(tmp_path, photo=lambda seed: large.getvalue())
    encoded = base64.b64decode(re.search(r"data:image/jpeg;base64,([^\"]+)", html)[1])
    with Image.open(io.BytesIO(encoded)) as image:
        assert image.size == (page.PREVIEW_SIDE_PX, page.PREVIEW_SIDE_PX // 2)
        red, green, blue = image.getpixel((3, 3))
    assert red > 250
    assert max(green, blue) < 5


def test_many_brands_share_a_bounded_number_of_samples(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "MAX_SAMPLES", 10)
    html = render(tmp_path, brands=[f"brand_{number}" for number in range(12)], per_brand=(2, 0, 0))
    assert html.count("<img") == 10


def test_a_brand_without_photos_in_train_says_so(tmp_path):
    assert words(render(tmp_path, per_brand=(0, 1, 1))).count("none in train") == 2


def test_the_index_is_read_until_every_brand_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "INDEX_BLOCK", 3)
    index = np.zeros(10, records.INDEX_DTYPE)
    index["label"], index["offset"] = [1, 1, 1, 1, 0, 1, 0, 0, 2, 1], range(10)
    files.write_bytes(tmp_path / "index", manifest.index_bytes(index))
    found = page.first_of_each_brand(tmp_path / "index", [0, 1, 2], 2)
    assert {label: [int(row["offset"]) for row in rows] for label, rows in found.items()} == {
        0: [4, 6],
        1: [0, 1],
        2: [8],
    }


def test_names_are_text_whatever_they_hold(tmp_path):
    bad = "<script>alert('é')</script>&\"x"
    row = reject_row(f"audi/{bad}.jpg", detail="<b>starts with</b>")
    html = render(
        tmp_path,
        brands=(bad, "日産"),
        lists={"rejects": [row], "duplicates": [copy_row(f"a/{bad}", "b/<i>.jpg")]},
        near_misses=[[bad, "日産"]],
        labels={bad: ["<u>", "<s>"]},
    )
    assert not re.search(r"<(script|b>starts|i>\.|u>|s>)", html)
    assert "&lt;script&gt;alert(&#39;é&#39;)&lt;/script&gt;&amp;&#34;x" in html
    assert "日産" in html


def test_rejects_stand_by_reason_with_the_first_examples(tmp_path):
    rows = [reject_row(f"audi/{number}.txt") for number in range(7)] + [reject_row("bmw/1.gif", "too_small", "3×3 px")]
    text = words(render(tmp_path, lists={"rejects": rows}))
    assert "empty 7 audi/0.txt 0 bytes" in text
    assert "audi/4.txt" in text
    assert "audi/5.txt" not in text
    assert "too small 1 bmw/1.gif 3×3 px" in text


def test_the_largest_clusters_of_copies_come_first(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "MAX_CLUSTERS", 2)
    rows = [copy_row(f"audi/{number}.jpg", "audi/many.jpg") for number in range(7)]
    rows += [copy_row("audi/x.jpg", "audi/one.jpg")]
    rows += [copy_row(f"audi/{name}.jpg", "audi/two.jpg", "near") for name in ("y", "z")]
    files.write_jsonl(tmp_path / "duplicates.jsonl", rows)
    clusters = page.largest_clusters(tmp_path / "duplicates.jsonl")
    assert [(cluster.rows[0]["kept"], cluster.total, len(cluster.rows)) for cluster in clusters] == [
        ("audi/many.jpg", 7, 5),
        ("audi/two.jpg", 2, 2),
    ]


def test_large_clusters_survive_where_not_all_can_be_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "MAX_COUNTED_CLUSTERS", 3)
    rows = []
    for number in range(20):
        rows += [copy_row(f"a/{number}.jpg", "a/large.jpg"), copy_row(f"b/{number}.jpg", f"b/small-{number}.jpg")]
    files.write_jsonl(tmp_path / "duplicates.jsonl", rows)
    first = page.largest_clusters(tmp_path / "duplicates.jsonl")[0]
    assert (first.rows[0]["kept"], first.total) == ("a/large.jpg", 20)


def test_copies_stand_beside_the_photo_kept(tmp_path):
    asked = []
    lists = {"duplicates": [copy_row("audi/b.jpg", "audi/a.jpg", "near", split="test", kept_split="train")]}

    def image_of(sha256):
        asked.append(sha256)
        return drawn(1) if len(asked) == 1 else None

    text = words(render(tmp_path, image_of, lists=lists))
    assert asked == [files.sha256(b"audi/a.jpg"), files.sha256(b"audi/b.jpg")]
    assert "kept · train audi/a.jpg no picture kept near · test audi/b.jpg" in text


def test_copies_across_the_splits_of_the_source_are_counted(tmp_path):
    rows = [copy_row(f"audi/{number}.jpg", "audi/a.jpg", split="train", kept_split="test") for number in range(6)]
    rows += [copy_row("audi/x.jpg", "audi/a.jpg", split="test", kept_split="test")]
    rows += [copy_row("audi/y.jpg", "audi/a.jpg", split="", kept_split="test")]
    files.write_jsonl(tmp_path / "duplicates.jsonl", rows)
    found = page.crossing_pairs(tmp_path / "duplicates.jsonl")
    assert {pair: (cluster.total, len(cluster.rows)) for pair, cluster in found.items()} == {("train", "test"): (6, 5)}
    assert "train test 6 audi/0.jpg copies audi/a.jpg" in words(render(tmp_path, lists={"duplicates": rows}))


@pytest.mark.parametrize("has_photo", [False, True])
def test_one_photo_under_several_brands_stands_together(tmp_path, monkeypatch, has_photo):
    monkeypatch.setattr(page, "MAX_CONFLICTS", 1)
    rows = [conflict_row("audi/x.jpg", "1"), conflict_row("bmw/other.jpg", "2"), conflict_row("bmw/x.jpg", "1")]
    if has_photo:  # two photos of one group, near copies of different groups
        rows = [row | {"group": "g", "photo": row["group"]} for row in rows]
        rows[2]["group"] = "h"
    text = words(render(tmp_path, lists={"conflicts": rows}))
    assert "audi audi/x.jpg no picture kept bmw bmw/x.jpg" in text
    assert "other.jpg" not in text


def test_near_misses_and_labels_as_written_are_named(tmp_path):
    labels = {"audi": ["AUDI", "Audi"], "bmw": ["bmw"]}
    text = words(render(tmp_path, near_misses=[["audi", "bmw"]], labels=labels))
    assert "audi and bmw" in text
    assert "audi AUDI , Audi" in text


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"resize_short_px": None}, "stored as their own size"),
        ({"ancestors": ("abc", "def"), "version": 3}, "appended to abc"),
        ({"near_duplicates": "off"}, "near copies were not looked for"),
        ({"near_duplicates": "keep_group"}, "near copies are kept, in the split"),
    ],
)
def test_the_page_says_how_the_dataset_was_made(tmp_path, values, said):
    lists = {"duplicates": [copy_row("audi/b.jpg", "audi/a.jpg")]}
    assert said in words(render(tmp_path, lists=lists, **values))


def test_an_empty_list_is_said_in_words(tmp_path):
    text = words(render(tmp_path))
    assert "No photo has a copy." in text
    assert "Every file could be read as a photo." in text
    assert "several brands Correct" not in text
