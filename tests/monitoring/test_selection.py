import numpy as np

from carbrand.monitoring import selection
from carbrand.monitoring.selection import BY_CHANCE, UNKNOWN, UNSURE


def chosen(number, num_photos=100, num_unknown=20, seed=0):
    probability = np.linspace(0.2, 1, num_photos)
    is_unknown = np.arange(num_photos) >= num_photos - num_unknown
    return selection.choose(probability, is_unknown, number, seed), probability, is_unknown


def test_a_third_each_is_drawn_unknown_and_unsure():
    found, probability, is_unknown = chosen(30)
    of = {reason: [place for place, why in found.items() if why == reason] for reason in (BY_CHANCE, UNKNOWN, UNSURE)}
    assert [len(places) for places in of.values()] == [10, 10, 10]
    assert is_unknown[of[UNKNOWN]].all()
    rest = np.delete(np.arange(100), of[BY_CHANCE] + of[UNKNOWN])
    assert of[UNSURE] == rest[np.argsort(probability[rest])][:10].tolist()


def test_unsure_photos_take_the_place_of_unknown_ones():
    found, *_ = chosen(30, num_unknown=0)
    assert sorted(found.values()) == [BY_CHANCE] * 10 + [UNSURE] * 20


def test_no_more_photos_are_chosen_than_there_are_and_none_twice():
    for number in (1, 2, 5, 200):
        assert len(chosen(number, num_photos=7)[0]) == min(number, 7)


def test_where_all_are_looked_at_none_is_harder():
    assert set(chosen(100)[0].values()) == {BY_CHANCE}
    assert set(chosen(99)[0].values()) == {BY_CHANCE, UNKNOWN, UNSURE}


def test_those_by_chance_are_a_fair_sample():
    counts = np.zeros(100)
    for seed in range(300):
        counts[[place for place, why in chosen(30, seed=seed)[0].items() if why == BY_CHANCE]] += 1
    assert counts.sum() == 3000
    assert counts.min() >= 8  # of 30 expected of each, 4 standard deviations
    assert counts.max() <= 52
