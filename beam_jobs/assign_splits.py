"""Kept photos, by group -> the split of each: whole groups, by hash, with a floor for each brand; see `splits`."""

import dataclasses
from collections.abc import Iterable, Iterator

from beam_jobs import build_output, checking, find_copies, packed, report, runners
from beam_jobs.checking import Checked
from carbrand.data import duplicates, splits

beam = runners.beam  # not imported here: runners keeps it quiet


@dataclasses.dataclass(frozen=True)
class Placed:
    """A kept photo with its split."""

    split: str
    checked: Checked


class AssignSplits(beam.PTransform):
    """PCollection[Pack[duplicates.Resolution]] -> PCollection[Pack[Placed]], for all that is kept."""

    def __init__(self, settings: build_output.Settings) -> None:
        """Sets the rule."""
        super().__init__()
        self._settings = settings
        self._joins_groups = settings.has_groups or settings.choices.policy.keeps_several
        self._rule = settings.split_rule

    def expand(self, resolutions: beam.PCollection) -> beam.PCollection:
        """The steps; elements are packs of what is noted."""
        kept = resolutions | "Kept" >> packed.FlatMap(_kept)  # Checked
        if self._joins_groups:
            kept = self._join_groups(resolutions, kept)
        moves = (
            kept
            | "WithBrand" >> packed.Map(_with_brand, self._rule)  # (brand, Member)
            | "GroupBrand" >> packed.GroupApart(self._settings.shuffle_dir)  # a brand alone, no pack: (brand, [Member])
            | "Floors" >> beam.Map(_moves, self._rule)  # (group, split)
        )
        return (
            (kept | "WithGroup" >> packed.Map(_with_group), moves)
            | "GroupGroup" >> self._group_by_key()  # (group, [Checked | split])
            | "Place" >> packed.FlatMap(_place, self._rule)  # Placed
        )

    def _group_by_key(self) -> packed.GroupByKey:
        return packed.GroupByKey(self._settings.shuffle_dir, self._settings.num_parts)

    def _join_groups(self, resolutions: beam.PCollection, kept: beam.PCollection) -> beam.PCollection:
        """Gives one name to groups between which there are copies; packs of Checked in and out."""
        names = (
            resolutions
            | "Links" >> packed.FlatMap(_links, self._settings.choices.group_by)  # (group, group)
            | "LinksTogether" >> packed.Map(find_copies.with_one_key)  # ("", (group, group))
            | "GroupLinks" >> packed.GroupApart(self._settings.shuffle_dir)  # all together, no pack: ("", [links])
            | "Connect" >> beam.Map(find_copies.connect)  # (group, name for all)
        )
        return (
            (kept | "WithOldGroup" >> packed.Map(_with_group), names)
            | "GroupOldGroup" >> self._group_by_key()  # (group, [Checked | name for all])
            | "Rename" >> packed.FlatMap(_rename)  # Checked
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


def _with_group(checked: Checked) -> tuple[str, Checked]:
    return checked.group, checked


def _rename(element: tuple[str, Iterable[Checked | str]]) -> Iterator[Checked]:
    group, members = element
    name = next((member for member in members if isinstance(member, str)), group)
    for member in members:
        if not isinstance(member, str):
            yield dataclasses.replace(member, group=name)


def _with_brand(checked: Checked, rule: splits.Rule) -> tuple[str, splits.Member]:
    given, group = checked.photo.split, checked.group
    is_fixed = bool(checked.old_split) or rule.is_fixed(given)
    split = (checked.old_split or given) if is_fixed else rule.split_of(group)
    return checked.photo.brand, splits.Member(rule.position(group), group, split, not is_fixed)


def _moves(element: tuple[str, Iterable[splits.Member]], rule: splits.Rule) -> packed.Pack:
    return packed.Pack(splits.moves(element[1], rule).items())


def _place(element: tuple[str, Iterable[Checked | str]], rule: splits.Rule) -> Iterator[Placed]:
    """(group, its photos, and the splits that brands want it to move to) -> its photos with their split.

    A photo that the source puts into a split stays there: where that tears a group apart, the leakage gate says so.
    """
    group, members = element
    old, given, moves = set(), set(), set()
    for member in members:
        if isinstance(member, str):
            moves.add(member)
        elif member.old_split:
            old.add(member.old_split)
        elif rule.is_fixed(member.photo.split):
            given.add(member.photo.split)
    together = next((splits.first_held_out(wanted) for wanted in (old, given, moves) if wanted), rule.split_of(group))
    for member in members:
        if isinstance(member, str):
            continue
        given_split = member.photo.split
        alone = given_split if rule.is_fixed(given_split) else rule.split_of(group)
        yield Placed(together if old or rule.allows(given_split, together) else alone, member)
