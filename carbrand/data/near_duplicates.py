"""Copies of a photo that were resized, encoded again, mirrored, cropped a little or brightened, without all pairs.

A signature describes the photo around its most prominent spots, so that a crop, which moves everything, leaves most of
it alone. Photos that share a spot's description meet in a bucket; two small images then confirm or refute each pair.
"""

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from carbrand.data.opencv import cv2

MAX_SPOTS = 16  # by measurement: 8 find 90 % of 5 % crops, 12 find 97 %, 16 find 98 %; each is a row to shuffle
SIGNATURE_BYTES = 5 * MAX_SPOTS
THUMBNAIL_PX = 64  # what `similarity` takes: images.grey_thumbnail(encoded, THUMBNAIL_PX)

MIN_SIMILARITY = 0.92  # by measurement: copies have nearly always 0.95 or more, other cars in one pose at most 0.90
MAX_BUCKET = 300  # members of which all pairs are compared: 45,000, in 50 ms
WINDOW = 10  # neighbours that are compared where even two shared spots leave more than MAX_BUCKET members

_GRID_PX = 64  # the photo is shrunk to a square of this side; aspect ratio ignored
_RADIUS_PX = 16  # around a spot, 33 × 33 px of the grid are described; so spots lie 16 px or more from the border
_MIN_CONTRAST = 0.5  # grey levels that a spot stands out by; a guess: less is noise
_FINE_PX, _COARSE_PX = 3, 7  # a spot is a peak of the grid blurred by the one less the grid blurred by the other
_NEIGHBOURS = np.ones((5, 5), np.uint8)

_STOP = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 20, 1e-4)  # of the alignment: 20 steps find all 10 % crops
_MIN_COARSE = 0.7  # of 1,000 crops of 5 % the worst had 0.83 unaligned, 1 in 100 of 10 % less than 0.69; saves aligning
_MIN_COVERED = 0.5  # of a thumbnail by the other, aligned; 10 % crops cover 0.7

_DOWN, _ACROSS = np.array([(v, u) for v in range(7) for u in range(7) if 0 < u + v <= 6]).T  # 27 frequencies
_IS_ODD = _ACROSS % 2 == 1  # the amplitudes of these change sign in the mirror
# The median of each amplitude, where all have a norm of 1, over 2,616 photos of cars; of the others it is about 0.
_MEDIANS = {
    (0, 1): 0.02,
    (0, 3): -0.05,
    (0, 5): 0.04,
    (1, 0): 0.27,
    (1, 2): -0.08,
    (3, 0): -0.11,
    (3, 2): 0.03,
    (5, 0): -0.04,
}
_THRESHOLDS = np.array([_MEDIANS.get((v, u), 0.0) for v, u in zip(_DOWN, _ACROSS, strict=True)])
# The sign of this sum of odd amplitudes says which of a spot and its mirror image is described. Its signs are
# arbitrary, its weights a guess: high frequencies are weaker, the highest too unsteady.
_ORIENTATION = np.where(_IS_ODD & (_DOWN + _ACROSS <= 4), (-1.0) ** (_DOWN + _ACROSS // 2) * (3 + _DOWN + _ACROSS), 0.0)
_DESCRIPTION_BITS = 1 << np.arange(len(_DOWN))[::-1]

# A spot is 40 bits: a code (1 that is always set, whether it is light, 27 of its description) and a place (whether its
# mirror image was described, its row and column in 5 bits each). A key is a code without its last bits, which change
# most easily; a second key is still shorter. By measurement of 5 % crops, a whole code finds 1 to 2 % fewer of them, in
# a third of the pairs to compare.
_IS_SPOT, _PLACE_BITS = 1 << 28, 11
_BITS_NOT_IN_KEY, _BITS_NOT_IN_SECOND_KEY = 3, 7
_MAX_BITS_APART = 3  # between the codes of one spot in two copies
_MAX_SHIFT_PX = 6  # of the grid; a crop of 10 % moves a spot so far
_MIN_SHARED_SPOTS = 4
_BLOCK = 1024  # pairs compared at once: what is computed of them fits the processor's cache


def _cosines() -> np.ndarray:
    size = 2 * _RADIUS_PX + 1
    waves = np.cos(np.pi * np.outer(np.arange(7), np.arange(size) + 0.5) / size)
    return waves * np.sqrt(np.hanning(size + 2)[1:-1])  # fades out: what a change of scale moves most counts least


_COSINES = _cosines()


def signature(pixels: np.ndarray) -> bytes:
    """Describes a photo by up to `MAX_SPOTS` spots, the most prominent first, 5 bytes each; the rest is zeros.

    Args:
        pixels: [H, W, 3] uint8 RGB, upright, of any size. A photo without contrast has no spots.
    """
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    grid = cv2.resize(grey, (_GRID_PX, _GRID_PX), interpolation=cv2.INTER_AREA).astype(np.float64)
    rows, columns, is_light = _find_spots(grid)
    descriptions, is_mirrored = _describe(grid, rows, columns)
    codes = _IS_SPOT | is_light.astype(np.int64) << 27 | descriptions
    places = is_mirrored << 10 | rows << 5 | columns
    spots = (codes << _PLACE_BITS | places).astype(">u8")
    return spots.view(np.uint8).reshape(-1, 8)[:, 3:].tobytes().ljust(SIGNATURE_BYTES, b"\0")


def _find_spots(grid: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows and columns [N] of the most prominent spots, and whether each is lighter than its surroundings.

    Both count from the first spot that can be described, `_RADIUS_PX` from the border.
    """
    # Sums of whole numbers: exact, so equal on every processor.
    contrast = _blur(grid, _FINE_PX) * _COARSE_PX**4 - _blur(grid, _COARSE_PX) * _FINE_PX**4
    strength = np.abs(contrast)
    is_spot = strength == cv2.dilate(strength, _NEIGHBOURS)
    is_spot &= strength > _MIN_CONTRAST * (_FINE_PX * _COARSE_PX) ** 4
    inner = slice(_RADIUS_PX, -_RADIUS_PX)
    strength, contrast = strength[inner, inner], contrast[inner, inner]
    rows, columns = np.nonzero(is_spot[inner, inner])
    strongest = np.argsort(-strength[rows, columns], kind="stable")[:MAX_SPOTS]
    rows, columns = rows[strongest], columns[strongest]
    return rows, columns, contrast[rows, columns] > 0


def _blur(grid: np.ndarray, size_px: int) -> np.ndarray:
    """Nearly Gaussian, times size_px⁴."""
    once = cv2.boxFilter(grid, cv2.CV_64F, (size_px, size_px), normalize=False)
    return cv2.boxFilter(once, cv2.CV_64F, (size_px, size_px), normalize=False)


def _describe(grid: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """27 bits for each spot [N] int64, equal for its mirror image, and whether the mirror image was described."""
    patches = sliding_window_view(grid, (2 * _RADIUS_PX + 1, 2 * _RADIUS_PX + 1))[rows, columns]
    patches -= patches.mean(axis=(1, 2), keepdims=True)
    amplitudes = (_COSINES @ patches @ _COSINES.T)[:, _DOWN, _ACROSS]
    is_mirrored = amplitudes @ _ORIENTATION < 0
    amplitudes = np.where(is_mirrored[:, None] & _IS_ODD, -amplitudes, amplitudes)
    norms = np.sqrt((amplitudes**2).sum(axis=1, keepdims=True))
    return (amplitudes > _THRESHOLDS * norms) @ _DESCRIPTION_BITS, is_mirrored


def bucket_keys(signature: bytes) -> list[bytes]:
    """Up to `MAX_SPOTS` keys of 4 bytes, sorted; copies, mirrored or not, nearly always share one."""
    keys = _codes(_unpack([signature])) >> _BITS_NOT_IN_KEY
    return sorted({int(key).to_bytes(4, "big") for key in keys[keys > 0]})


def _unpack(signatures: list[bytes]) -> np.ndarray:
    """Spots [N, MAX_SPOTS] int64; 0 where there is none."""
    packed = np.frombuffer(b"".join(signatures), np.uint8).reshape(-1, MAX_SPOTS, 5)
    padded = np.zeros((len(packed), MAX_SPOTS, 8), np.uint8)  # not np.pad, which takes ten times as long
    padded[:, :, 3:] = packed
    return padded.view(">i8")[:, :, 0].astype(np.int64)


def _codes(spots: np.ndarray) -> np.ndarray:
    return (spots >> _PLACE_BITS).astype(np.uint32)


def candidate_pairs(members: Iterable[tuple[str, bytes]]) -> list[tuple[str, str]]:
    """The pairs of one bucket's members that may be copies of one photo, each (smaller ID, larger ID), sorted.

    Of more than `MAX_BUCKET` members only those are compared that share a second key; where more than `MAX_BUCKET`
    share one, each is compared with the next `WINDOW` in the order of their signatures. So the work grows linearly.

    Args:
        members: ID and signature of each, in any order.
    """
    ordered = sorted(set(members), key=lambda member: member[::-1])
    if len(ordered) < 2:
        return []
    ids = [name for name, _ in ordered]
    spots = _unpack([signature for _, signature in ordered])
    pairs = set()
    for first, second in _blocks(_codes(spots) >> _BITS_NOT_IN_SECOND_KEY):
        alike = _are_alike(spots[first], spots[second])
        for i, j in zip(first[alike], second[alike], strict=True):
            pairs.add((min(ids[i], ids[j]), max(ids[i], ids[j])))
    return sorted(pairs)


def _blocks(second_keys: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Indices of the pairs to compare, at most `_BLOCK` at a time."""
    groups = [np.arange(len(second_keys))] if len(second_keys) <= MAX_BUCKET else _sharing_a_key(second_keys)
    for group in groups:
        is_small = len(group) <= MAX_BUCKET
        first, second = np.triu_indices(len(group), 1) if is_small else _neighbours(len(group))
        for start in range(0, len(first), _BLOCK):
            yield group[first[start : start + _BLOCK]], group[second[start : start + _BLOCK]]


def _sharing_a_key(keys: np.ndarray) -> Iterator[np.ndarray]:
    """For each key that several members have, their indices, ascending."""
    flat = keys.ravel()
    order = np.argsort(flat, kind="stable")
    order = order[flat[order] > 0]
    for group in np.split(order, np.flatnonzero(np.diff(flat[order])) + 1):
        members = np.unique(group // keys.shape[1])
        if len(members) > 1:
            yield members


def _neighbours(count: int) -> tuple[np.ndarray, np.ndarray]:
    first = np.repeat(np.arange(count), WINDOW)
    second = first + np.tile(np.arange(1, WINDOW + 1), count)
    return first[second < count], second[second < count]


def _are_alike(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Whether enough spots of each pair a, b [N, MAX_SPOTS] have nearly the same code at nearly the same place."""
    required = np.minimum(np.minimum(_count(a), _count(b)), _MIN_SHARED_SPOTS)  # few photos have fewer spots
    is_near = np.bitwise_count(_codes(a)[:, :, None] ^ _codes(b)[:, None, :]) <= _MAX_BITS_APART
    alike = (_shared(is_near) >= required) & (required > 0)  # of few pairs: only their places are compared
    a, b, is_near = a[alike, :, None], b[alike, None, :], is_near[alike]
    is_near &= (a > 0) & (b > 0) & (abs(_row(a) - _row(b)) <= _MAX_SHIFT_PX)
    is_mirrored = (a ^ b) >> 10 & 1 == 1
    straight = ~is_mirrored & (abs(_column(a) - _column(b)) <= _MAX_SHIFT_PX)
    mirrored = is_mirrored & (abs(_column(a) + _column(b) - 31) <= _MAX_SHIFT_PX)
    alike[alike] = np.maximum(_shared(is_near & straight), _shared(is_near & mirrored)) >= required[alike]
    return alike


def _count(spots: np.ndarray) -> np.ndarray:
    return (spots > 0).sum(axis=1)


def _row(spots: np.ndarray) -> np.ndarray:
    return spots >> 5 & 31


def _column(spots: np.ndarray) -> np.ndarray:
    return spots & 31


def _shared(is_shared: np.ndarray) -> np.ndarray:
    """[N, spots of a, spots of b] bool -> how many spots have a partner, of the photo of which fewer have: [N]."""
    return np.minimum(is_shared.any(axis=2).sum(axis=1), is_shared.any(axis=1).sum(axis=1))


def similarity(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation in [-1, 1] of the fine structure of two photos, after one or its mirror image was laid on the other.

    Args:
        a: [THUMBNAIL_PX, THUMBNAIL_PX] uint8, grey, averaged over areas; the aspect ratio is lost.
        b: like a; the result is the same for b and a.

    Raises:
        ValueError: if a or b is of another shape or type.
    """
    return max(_similarities(a, b))


def coarse_similarity(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation in [-1, 1] of light and shade in two thumbnails, mirrored or not: what to try first of many."""
    return max(_coarse_correlation(a, b), _coarse_correlation(a, b[:, ::-1]))


def are_copies(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two thumbnails, as `similarity` takes them, show one photo."""
    return any(value >= MIN_SIMILARITY for value in _similarities(a, b))


def _similarities(a: np.ndarray, b: np.ndarray) -> Iterator[float]:
    _check_thumbnail(a)
    _check_thumbnail(b)
    a, b = sorted((a, b), key=lambda thumbnail: thumbnail.tobytes())
    for other in (b, np.ascontiguousarray(b[:, ::-1])):
        is_alike = _coarse_correlation(a, other) >= _MIN_COARSE
        yield _aligned_correlation(a, other) if is_alike else -1.0


def _check_thumbnail(pixels: np.ndarray) -> None:
    if pixels.shape != (THUMBNAIL_PX, THUMBNAIL_PX) or pixels.dtype != np.uint8:
        raise ValueError(
            f"near_duplicates: a thumbnail is [{THUMBNAIL_PX}, {THUMBNAIL_PX}] uint8, not {list(pixels.shape)} "
            f"{pixels.dtype}. Make it with images.grey_thumbnail."
        )


def _aligned_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation of a with b where b, stretched and moved to fit, covers it; -1 where it does not fit."""
    try:
        _, matrix = cv2.findTransformECC(a, b, np.eye(2, 3, dtype=np.float32), cv2.MOTION_AFFINE, _STOP)
    except cv2.error:  # It raises where two images have nothing in common.
        return -1.0
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    fitted = cv2.warpAffine(b.astype(np.float32), matrix, a.shape, flags=flags)
    covered = cv2.warpAffine(np.ones(b.shape, np.float32), matrix, a.shape, flags=flags) > 0.99
    covered = cv2.erode(covered.astype(np.uint8), _NEIGHBOURS, borderType=cv2.BORDER_CONSTANT, borderValue=0) > 0
    if covered.mean() < _MIN_COVERED:
        return -1.0
    return _correlation(_fine_structure(a.astype(np.float32))[covered], _fine_structure(fitted)[covered])


def _coarse_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Of where it is light and where dark: nearly the same in copies, before any alignment, and cheap to compare."""
    return _correlation(*(cv2.resize(grey, (8, 8), interpolation=cv2.INTER_AREA).astype(np.float32) for grey in (a, b)))


def _fine_structure(grey: np.ndarray) -> np.ndarray:
    """Without the coarse light and shade, which cars in one studio have in common, and without JPEG's noise."""
    return cv2.GaussianBlur(grey, (0, 0), 0.7) - cv2.GaussianBlur(grey, (0, 0), 2.1)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    norm = np.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum() / norm) if norm > 0 else -1.0
