"""Names of brands: the text that labels a photo -> one spelling per brand, and which names probably mean one brand."""

import csv
import dataclasses
import difflib
import itertools
import os
import pathlib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping

from carbrand import errors

# For near_misses. Tried on the names of 137 real brands, of which they pair only alpina with alpine:
# 5 letters would pair tata with tatra as well, a ratio of 0.7 dacia with lancia.
MIN_LETTERS = 6
MIN_RATIO = 0.8


def normalise(label: str) -> str:
    """The brand that a label stands for: lower case, with each run of spaces, '-' and '_' as one '_'.

    'Aston Martin', 'aston-martin' and 'ASTON_MARTIN ' are one brand, aston_martin. Accents stay, but do not depend on
    how Unicode writes them (macOS stores file names with the accents apart). What only formats text, and nobody sees,
    goes: soft hyphens, spaces without width, byte-order marks.
    """
    seen = "".join(letter for letter in label if unicodedata.category(letter) != "Cf")
    return re.sub(r"[\s_-]+", "_", unicodedata.normalize("NFC", seen)).strip("_").lower()


@dataclasses.dataclass(frozen=True)
class Names:
    """How to read a brand out of a label.

    Attributes:
        aliases: brand -> the brand it is another name of, both normalised; see `read_aliases`.
        pattern: finds the brand in a label, from its beginning; see `parse_pattern`. None: all of the label.
    """

    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    pattern: re.Pattern[str] | None = None

    def brand_and_model(self, label: str) -> tuple[str, str]:
        """The normalised brand, and the model as written, or '' where the pattern does not find one.

        Raises:
            DataError: if the pattern does not find a brand.
        """
        text, model = label, ""
        if self.pattern is not None:
            text, model = self._find(self.pattern, label)
        brand = normalise(text)
        return self.aliases.get(brand, brand), model

    def _find(self, pattern: re.Pattern[str], label: str) -> tuple[str, str]:
        match = pattern.match(label)
        found = match.groupdict() if match else {}
        brand = found.get("brand", match[1] if match else None)
        if not brand:
            raise errors.DataError(
                f"{label!r}: --brand_from={pattern.pattern} finds no brand in this label. Change the expression so "
                "that it fits every label."
            )
        return brand, (found.get("model") or "").strip()


def parse_pattern(text: str) -> re.Pattern[str]:
    """Reads --brand_from: a regular expression whose group `brand`, or else its first, is the brand.

    Raises:
        ConfigError: if `text` is no regular expression, or has no group.
    """
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise errors.ConfigError(f"--brand_from={text}: not a regular expression ({error}).") from error
    if "brand" not in pattern.groupindex and (not pattern.groups or pattern.groupindex.get("model") == 1):
        raise errors.ConfigError(
            rf"--brand_from={text}: has no group for the brand. Write, for example, (?P<brand>\S+) (?P<model>.+)"
        )
    return pattern


def read_aliases(path: str | os.PathLike[str]) -> dict[str, str]:
    """Reads a CSV file with the header `name,brand`: each name stands for that brand.

    Returns:
        Name -> brand, both normalised.

    Raises:
        ConfigError: if the file cannot be read, a cell is empty, a name stands for two brands, or for one that is
            itself another name.
    """
    aliases: dict[str, str] = {}
    for line, name, brand in _alias_rows(pathlib.Path(path)):
        if aliases.setdefault(name, brand) != brand:
            raise errors.ConfigError(
                f"--aliases={path}, line {line}: {name} stands for {brand} here and for {aliases[name]} above. "
                "Keep one of the two."
            )
    check_aliases(aliases, f"--aliases={path}")
    return aliases


def check_aliases(aliases: Mapping[str, str], where: str) -> None:
    """Raises ConfigError, which begins with `where`, if a name stands for one that is itself another name."""
    for name in aliases:
        chain = _chain(aliases, name)
        if chain[-1] in chain[:-1]:
            raise errors.ConfigError(f"{where}: {','.join(chain)} lead in a circle. Remove one of the lines.")
        if len(chain) > 2:
            raise errors.ConfigError(
                f"{where}: {name} stands for {chain[1]}, which stands for {chain[2]}. Write {name},{chain[-1]}."
            )


def near_misses(brand_counts: Mapping[str, int]) -> list[tuple[str, str]]:
    """Pairs of brands that are probably one: (the rarer, the more frequent), sorted.

    Alike are names that differ only in accents and '_', or of which one is the leading words of the other (mercedes and
    mercedes_benz), or of `MIN_LETTERS` letters and more that are nearly spelled the same (volkswagen and volkswagon).
    Shorter names differ by chance (kia and kai, tata and tatra): they count only with equal letters.
    """
    pairs = itertools.combinations(sorted(brand_counts), 2)
    alike = (pair for pair in pairs if _are_alike(*pair))
    return sorted((a, b) if brand_counts[a] <= brand_counts[b] else (b, a) for a, b in alike)


def _are_alike(brand: str, other: str) -> bool:
    letters, other_letters = _letters(brand), _letters(other)
    if letters == other_letters or _leads(brand, other) or _leads(other, brand):
        return True
    if max(len(letters), len(other_letters)) < MIN_LETTERS:
        return False
    matcher = difflib.SequenceMatcher(None, letters, other_letters, autojunk=False)
    # The first two are upper bounds of the last, which is slow.
    return all(ratio() >= MIN_RATIO for ratio in (matcher.real_quick_ratio, matcher.quick_ratio, matcher.ratio))


def _letters(brand: str) -> str:
    apart = unicodedata.normalize("NFKD", brand)
    return "".join(letter for letter in apart if letter != "_" and not unicodedata.combining(letter))


def _leads(brand: str, other: str) -> bool:
    return other.startswith(f"{brand}_")


def _chain(aliases: Mapping[str, str], name: str) -> list[str]:
    """The name, what it stands for, and so on, up to a brand that stands for itself, or one that comes again."""
    chain = [name]
    while (brand := aliases.get(chain[-1], chain[-1])) != chain[-1]:
        chain.append(brand)
        if brand in chain[:-1]:
            break
    return chain


def _alias_rows(path: pathlib.Path) -> Iterator[tuple[int, str, str]]:
    """Line number, name and brand."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise errors.ConfigError(f"--aliases={path}: cannot be read as UTF-8 text ({error}).") from error
    rows = csv.reader(lines, skipinitialspace=True)
    if [cell.strip().lower() for cell in next(rows, [])] != ["name", "brand"]:
        raise errors.ConfigError(f"--aliases={path}: the first line is not name,brand. Make it so.")
    for cells in rows:
        if cells:
            yield rows.line_num, *_alias(cells, f"--aliases={path}, line {rows.line_num}")


def _alias(cells: Iterable[str], where: str) -> tuple[str, str]:
    names = [normalise(cell) for cell in cells]
    if len(names) != 2 or not all(names):
        raise errors.ConfigError(f"{where}: not a name and a brand. Write, for example, vw,volkswagen")
    return names[0], names[1]
