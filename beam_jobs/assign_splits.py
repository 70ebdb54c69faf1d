"""Kept photos, by group -> the split of each: whole groups, by hash, with a floor for each brand; see `splits`."""

import dataclasses
import pathlib
from collections.abc import Iterable, Iterator, Sequence

from beam_jobs import build_output, checking, find_copies, packed, report, runners
from beam_jobs.checking import Checked
from carbrand import files
from carbrand.data import duplicates, manifest, splits

beam = runners.beam  # not imported here: runners keeps it quiet


@dataclasses.dataclass(frozen=True)
class Placed:
    """A kept photo with its split."""

    split: str
    checked: Checked


class AssignSplits(beam.PTransform):
    """PCollection[Pack[duplicates.Resolution]] -> PCollection[Pack[Placed]], for all that is kept."""

    def __init__(self, settings: build_output.Settings, old_folder: str | None = None) -> None:
        """Sets the rule, and the dataset that is appended to."""
        super().__init__()
        self._settings = settings
        self._old_folder = old_folder
        self._joins_groups = settings.has_groups or settings.choices.policy.keeps_several
        self._rule = settings.split_rule

    def expand(self, resolutions: beam.PCollection) -> beam.PCollection:
        """The steps; elements are packs of what is noted."""
        kept = resolutions | "Kept" >> packed.FlatMap(_kept)  # Checked
        if self._joins_groups:
            kept = self._join_groups(resolutions, kept)
        with_group = kept | "WithGroup" >> packed.Map(_with_group)  # (group, Checked)
        groups = with_group | (  # (group, [Checked])
            "GroupForFloors" >> self._group_by_key() if self._joins_groups else "OneByOne" >> packed.Map(_one_by_one)
        )
        moves = (
            groups
            | "Members" >> packed.FlatMap(_members, self._rule)  # (brand, Member)
            | "GroupBrand" >> packed.GroupApart(self._settings.shuffle_dir)  # a brand alone, no pack: (brand, [Member])
            | "Floors" >> beam.Map(_moves, self._rule)  # (group, split)
        )
        return (
            (with_group, moves)
            | "GroupGroup" >> self._group_by_key()  # (group, [Checked | split])
            | "Place" >> packed.FlatMap(_place, self._rule)  # Placed
        )

    def _group_by_key(self) -> packed.GroupByKey:
        return packed.GroupByKey(self._settings.shuffle_dir, self._settings.num_parts)

    def _join_groups(self, resolutions: beam.PCollection, kept: beam.PCollection) -> beam.PCollection:
        """Gives one name to groups between which there are copies; packs of Checked in and out."""
        links = resolutions | "Links" >> packed.FlatMap(_links, self._settings.choices.group_by)  # (group, group)
        together = [links | "LinksTogether" >> packed.Map(find_copies.with_one_key)]  # ("", (group, group))
        if self._old_folder:
            together.append(self._old_links(kept) | "OldTogether" >> packed.Map(find_copies.with_one_key))
        names = (
            tuple(together)
            | "GroupLinks" >> packed.GroupApart(self._settings.shuffle_dir)  # all together, no pack: ("", [links])
            | "Connect" >> beam.Map(find_copies.connect)  # (group, name for all)
        )
        return (
            (kept | "WithOldGroup" >> packed.Map(_with_group), names)
            | "GroupOldGroup" >> self._group_by_key()  # (group, [Checked | name for all])
            | "Rename" >> packed.FlatMap(_rename)  # Checked
        )

    def _old_links(self, kept: beam.PCollection) -> beam.PCollection:
        """Packs of links (group, group) with the groups of copies that earlier builds left out."""
        copies = (
            kept.pipeline
            | "OldFolder" >> beam.Create([self._old_folder])  # path
            | "ReadCopies" >> beam.FlatMap(_left_out_packs, self._settings.photos_per_pack)  # (hash of the kept, group)
        )
        return (
            (kept | "WithHash" >> packed.Map(_with_hash), copies)
            | "GroupHash" >> self._group_by_key()  # (hash, [Checked | group])
            | "OldLinks" >> packed.FlatMap(_links_of_left_out)  # (group, group)
        )


def rows_of(placed: Placed, rule: splits.Rule) -> Iterator[report.Row]:
    """What the report says of a photo that is not in the split that it had, or that the source gives."""
    checked = placed.checked
    before = checked.old_split or checked.photo.split
    if not rule.allows(before, placed.split) or (checked.old_split and before != placed.split):
        yield report.row("moved", {"name": checked.name, "group": checked.group, "from": before, "to": placed.split})


def _kept(resolution: duplicates.Resolution) -> Iterator[Checked]:
    for copy in resolution.kept:
        yield copy.source


def _links(resolution: duplicates.Resolution, group_by: str) -> Iterator[tuple[str, str]]:
    """Groups that show the same photo; a copy that is left out still links its group with that of the kept one."""
    if not resolution.kept:
        return
    first = resolution.kept[0].source.group
    for copy in (*resolution.kept, *(copy for copy, _ in resolution.left_out)):
        # An old photo's group may have been joined with others; its own name for it still leads there.
        groups = {copy.source.group, checking.column_group(copy.source.photo, group_by)} - {"", first}
        if copy not in resolution.kept:
            groups.discard(copy.sha256)  # no other photo is in that group
        for group in sorted(groups):
            yield first, group


def _left_out_packs(folder: str, photos_per_pack: int) -> Iterator[packed.Pack]:
    """What a dataset says of the copies that it lacks; but those of no group, where no other photo can be."""
    rows = files.read_jsonl(pathlib.Path(folder, manifest.DUPLICATES))
    copies = ((row["kept_sha256"], row["group"]) for row in rows if row["group"] != row["sha256"])
    return packed.packs(copies, photos_per_pack)


def _with_hash(checked: Checked) -> tuple[str, Checked]:
    return checked.sha256, checked


def _links_of_left_out(element: tuple[str, Iterable[Checked | str]]) -> Iterator[tuple[str, str]]:
    _, members = element
    groups = sorted({member for member in members if isinstance(member, str)})
    for member in members:
        if not isinstance(member, str):
            yield from ((member.group, group) for group in groups if group != member.group)


def _with_group(checked: Checked) -> tuple[str, Checked]:
    return checked.group, checked


def _rename(element: tuple[str, Iterable[Checked | str]]) -> Iterator[Checked]:
    group, members = element
    name = next((member for member in members if isinstance(member, str)), group)
    for member in members:
        if not isinstance(member, str):
            yield dataclasses.replace(member, group=name)


def _one_by_one(element: tuple[str, Checked]) -> tuple[str, list[Checked]]:
    return element[0], [element[1]]


def _members(element: tuple[str, list[Checked]], rule: splits.Rule) -> Iterator[tuple[str, splits.Member]]:
    """(group, its photos) -> (brand, what counts for the floors of the brand) for each photo.

    What has its split already does not move, nor do groups of several brands, which each might want elsewhere.
    """
    group, photos = element
    bound = _bound(photos, rule)
    is_movable = not bound and len({checked.photo.brand for checked in photos}) == 1
    for placed in _placed(photos, bound or rule.split_of(group), rule):
        member = splits.Member(rule.position(group), group, placed.split, is_movable)
        yield placed.checked.photo.brand, member


def _moves(element: tuple[str, Iterable[splits.Member]], rule: splits.Rule) -> packed.Pack:
    return packed.Pack(splits.moves(element[1], rule).items())


def _place(element: tuple[str, list[Checked | str]], rule: splits.Rule) -> Iterator[Placed]:
    """(group, its photos, and the split that their brand wants it to move to) -> its photos with their split."""
    group, members = element
    photos = [member for member in members if not isinstance(member, str)]
    moves = [member for member in members if isinstance(member, str)]
    return _placed(photos, _bound(photos, rule) or next(iter(moves), rule.split_of(group)), rule)


def _bound(photos: Sequence[Checked], rule: splits.Rule) -> str:
    """The split that a group has for photos of an older dataset, or for those that the source puts there, or ""."""
    old = {checked.old_split for checked in photos if checked.old_split}
    given = {checked.photo.split for checked in photos if rule.is_fixed(checked.photo.split)}
    return splits.first_held_out(old or given) if old or given else ""


def _placed(photos: Sequence[Checked], together: str, rule: splits.Rule) -> Iterator[Placed]:
    """The photos of a group, which should go to the split `together`.

    A photo that the source puts into a split stays there: where that tears a group apart, the leakage gate says so.
    """
    has_old = any(checked.old_split for checked in photos)
    for checked in photos:
        given = checked.photo.split
        alone = given if rule.is_fixed(given) else rule.split_of(checked.group)
        yield Placed(together if has_old or rule.allows(given, together) else alone, checked)
