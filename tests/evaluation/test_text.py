import evaluations
import numpy as np
import pytest

from carbrand.evaluation import metrics, text
from carbrand.evaluation.bootstrap import Interval
from carbrand.evaluation.gate import Difference
from carbrand.evaluation.slices import Slice

BRANDS = evaluations.BRANDS
TEXT = """\
run                  runs/a
dataset fingerprint  ab12
split                test
checkpoint step      4500

photos             6 in 6 groups
accuracy           50.0 % (16.7 to 83.3)
top-3 accuracy     100.0 % (61.0 to 100.0)
macro F1           52.4 % (LOW to HIGH)
log loss           1.2629 nats; 1.3115 scaled
Brier score        0.6800; 0.7097 scaled
calibration error  10.0 % (LOW to HIGH); 18.0 % scaled, 14.6 % by chance alone
temperature        2, for scaling; fitted on the validation split
(in brackets: 95 % intervals)

Brands, worst F1 first, in %
brand            photos  precision  recall     F1       F1, 95 %
BMW                   2        0.0     0.0    0.0    0.0 to 65.8
Audi                  3       50.0    66.7   57.1    LOW to HIGH
Škoda                 1      100.0   100.0  100.0  20.7 to 100.0
Kia                   0          -       -      -              -
(macro mean)                  50.0    55.6   52.4    LOW to HIGH
(micro mean)                  50.0    50.0   50.0   16.7 to 83.3
(weighted mean)               41.7    50.0   45.2    LOW to HIGH

Most confused, 2 of 2 pairs
true brand  predicted  photos  % of true
BMW         Audi            2      100.0
Audi        BMW             1       33.3
"""


def test_text_by_hand():
    # Log loss: (3 × -ln 0.4 + 3 × -ln 0.2) / 6. Brier: half 0.36 + 3 × 0.04, half 0.64 + 0.16 + 2 × 0.04.
    # Calibration: one bin, |0.4 - 0.5|. Scaled by 2: 0.4 becomes √2 / (√2 + 3) = 0.3204, 0.2 becomes 0.2265.
    # Top-3: where the brand is wrong, the true one, tied with two others, has the lowest label of the three.
    # Accuracy: the share of right ones among 6 draws is binomial: P(<= 0) = 1.6 %, P(<= 1) = 10.9 %. Wilson's for the
    # 6 of 6, 0 of 2 and 1 of 1 groups that never change.
    found, expected = text.render(evaluations.small()).splitlines(), TEXT.splitlines()
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        before, mark, after = theirs.partition("LOW to HIGH")
        assert ours.startswith(before.rstrip())
        assert ours.endswith(after)
        assert mark or ours == theirs


def test_brands_of_equal_f1_stand_by_name_and_absent_ones_last():
    lines = text.render(evaluations.evaluate([0, 1], np.eye(4)[[0, 1]], ["Seat", "Audi", "Opel", "Kia"])).splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("brand "))
    assert [line.split()[0] for line in lines[first + 1 : first + 5]] == ["Audi", "Seat", "Kia", "Opel"]


def test_text_without_mistakes_says_so():
    found = text.render(evaluations.evaluate([0, 1], np.eye(4)[[0, 1]]))
    assert found.endswith("\n\nNo photo was taken for another brand.\n")


def test_text_lists_ten_confused_pairs():
    found = text.render(evaluations.all_wrong(12))
    assert "Most confused, 10 of 12 pairs\n" in found
    assert len(found.split("% of true\n")[1].splitlines()) == 10


def test_text_lists_slices():
    parts = [Slice("year", "2024", 12, 0.25, Interval(0.1, 0.5)), Slice("year", "2025", 9, 1.0, None)]
    assert text.render(evaluations.small(slices=parts)).endswith("""
Slices, worst accuracy first, 2 of 2, in %
column  value  photos  accuracy          95 %
year    2024       12      25.0  10.0 to 50.0
year    2025        9     100.0             -
""")


@pytest.mark.parametrize(("high", "num_worse"), [(-0.01, 1), (0.1, 0)])
def test_text_lists_what_got_worse(high, num_worse):
    rows = [Difference("brand: Audi", 60, 0.8, 0.6, Interval(-0.3, high))]
    rows += [Difference("macro F1", 200, 0.5, 0.5, Interval(-0.1, 0.1))] * (1 - num_worse)
    found = text.render(evaluations.small(comparison=rows))
    assert f"Against the model before: {num_worse} of {len(rows)} numbers worse beyond chance, in points" in found
    assert f"brand: Audi      60    80.0  60.0  -20.0 (-30.0 to {100 * high:+.1f})" in found


def test_text_says_where_nothing_could_be_judged():
    assert text.render(evaluations.small(comparison=[])).endswith(
        "\n\nAgainst the model before: not judged, as fewer than 10 groups of photos are too few\n"
    )


def test_text_leaves_out_what_is_not_known():
    facts = {"split": "test", "evaluations of this split so far": None}
    assert text.render(evaluations.small(facts=facts)).startswith("split  test\n\nphotos ")


def test_confusion_matrix_as_text():
    result = metrics.compute([0, 0, 1], [[0.9, 0.1], [0.2, 0.8], [0.3, 0.7]], ["audi", "bmw"])
    assert text.confusion_matrix(result) == (
        "true \\ predicted  audi  bmw\n"
        "audi                 1    1\n"
        "bmw                  0    1\n"
    )  # fmt: skip
