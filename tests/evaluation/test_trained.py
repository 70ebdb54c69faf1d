import pathlib
import types

import pytest

from carbrand.evaluation import trained

THEIRS, OURS = "ab12" * 16, "cd34" * 16


@pytest.mark.parametrize(("trained_on", "is_told"), [(OURS, False), ("ef56" * 16, False), (THEIRS, True)])
def test_records_that_a_model_was_not_trained_on_are_told(caplog, trained_on, is_told):
    dataset = types.SimpleNamespace(fingerprint=OURS, ancestors=("0123" * 16, "ef56" * 16))
    model = types.SimpleNamespace(folder=pathlib.Path("runs/a"), facts={"trained_on": trained_on})
    trained.warn_of_other_records(dataset, "records", model)
    told = "records: has the records cd34cd34cd34, but runs/a was trained on ab12ab12ab12: photos that it was"
    assert (told in caplog.text) == is_told == bool(caplog.records)
