"""The preflight's checks of the records: files, splits, brands and sizes."""

from collections.abc import Iterator, Sequence

from carbrand.data import manifest, verify
from carbrand.training import findings
from carbrand.training.cases import Case
from carbrand.training.findings import Finding

_MAX_IMBALANCE = 10  # a guess: above, the rare brands are hardly seen
_MAX_HASH_BYTES = 2**28  # a second's worth


def check_files(case: Case) -> Iterator[Finding]:
    """Sizes of all files, and the content of some."""
    for problem in verify.quick_problems(case.data, _MAX_HASH_BYTES):
        yield findings.error(problem.partition(": ")[0], problem)


def check_splits(case: Case) -> Iterator[Finding]:
    """Photos in each."""
    for split in manifest.SPLITS:
        if not case.photos_in(split):
            make = findings.warning if split == "test" else findings.error
            yield make(split, f"{case.data}: the {split} split is empty. Build with more photos, or another --split.")


def check_brands(case: Case) -> Iterator[Finding]:
    """Photos of each."""
    counts = _train_counts(case)
    if none := [brand for brand, count in counts.items() if count == 0]:
        yield findings.error(
            "train",
            f"{case.data}: {_named(none)} without a training photo: never learned. Build with more photos, or without.",
        )
    if one := [brand for brand, count in counts.items() if count == 1]:
        yield findings.warning(
            "train", f"{case.data}: {_named(one)} with 1 training photo only. Build with more photos."
        )


def check_imbalance(case: Case) -> Iterator[Finding]:
    """Brands that are rarely seen."""
    brands = {n: brand for brand, n in _train_counts(case).items() if n}
    if case.settings.stream.sampling != "natural" or not brands:
        return
    most, least = max(brands), min(brands)
    if most > _MAX_IMBALANCE * least:
        yield findings.warning(
            "stream.sampling",
            f"stream.sampling='natural': {brands[most]} has {most} training photos, {brands[least]} {least}, so the "
            "network will rarely see it. Set stream.sampling = 'sqrt', or add photos.",
        )


def check_upscaling(case: Case) -> Iterator[Finding]:
    """Photos that are smaller than the network's input."""
    stored = case.stored_short_px
    largest = max(min(size) for size in case.image_sizes)
    if largest > round(stored):
        is_limit = stored == case.dataset.resize_short_px
        how = "have a short side of" if is_limit else "on average have a short side of"
        yield findings.warning(
            "preprocess.image_size_px",
            f"preprocess.image_size_px={largest}: the stored photos {how} {stored:.0f} px, so they are enlarged, which "
            f"costs time and shows nothing more. Use {int(stored) // 32 * 32 or 32}, or build with "
            f"{'a larger --resize_short' if is_limit else 'larger photos'}.",
        )


def _train_counts(case: Case) -> dict[str, int]:
    return dict(zip(case.dataset.brands, case.dataset.splits["train"].brand_counts, strict=True))


def _named(brands: Sequence[str]) -> str:
    shown = ", ".join(brands[:5]) + (f" and {len(brands) - 5} more" if len(brands) > 5 else "")
    return f"{'brand' if len(brands) == 1 else 'brands'} {shown}"
