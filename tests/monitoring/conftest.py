import logs
import pytest

from carbrand import exported


@pytest.fixture
def model(tmp_path):
    """As much of an export as monitoring looks at: its manifest, and answers for 60 photos, half of them right."""
    version = tmp_path / "model" / "1"
    shape = {"model": {}, "preprocess": {}, "resize_short_px": 256, "jpeg_quality": 95, "variables": ()}
    facts = {"run": "first", "step": 9}
    exported.write(
        version, exported.Exported(brands=("audi", "bmw"), **shape, temperature=1.0, unknown_above=0.95, facts=facts)
    )
    rows = [
        logs.row(1000 + n, label=("audi", "bmw")[n % 2], mean_rgb=[100 + n] * 3, probability=0.4 + n % 2 / 5)
        for n in range(60)
    ]
    logs.write(version, [{k: v for k, v in row.items() if k != "time"} for row in rows], exported.REFERENCE)
    return version.parent
