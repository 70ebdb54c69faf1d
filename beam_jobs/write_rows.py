"""Rows of a report, from all steps of a pipeline -> sorted files; see `report`."""

from typing import Any

from beam_jobs import packed, report, runners

beam = runners.beam  # not imported here: runners keeps it quiet


class WriteRows(beam.PTransform):
    """PCollection[Pack[report.Row]], or several -> PCollection[None]; `report.read` gives the rows back."""

    def __init__(self, folder: str, shuffle_dir: str) -> None:
        """Sets the folder, and that for rows that wait, on a disk that all workers share."""
        super().__init__()
        self._folder = folder
        self._shuffle_dir = shuffle_dir

    def expand(self, rows: Any) -> beam.PCollection:
        """The steps."""
        return (
            rows
            | "GroupPart" >> packed.GroupApart(self._shuffle_dir)  # (file name, [JSON object])
            | "WritePart" >> beam.Map(report.write_part, self._folder)  # None
        )
