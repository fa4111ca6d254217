"""The benchmark of two hosts: an update is the median of its times."""

from benchmarks.scale import per_update


def test_an_update_is_the_median_of_its_times_and_the_mean_of_its_bytes() -> None:
    first_rank = [[0.0, 1.0, 3.0, 4.0], [0.0, 0.5, 1.0, 1.8], [0, 100, 200, 600]]
    assert per_update([first_rank, []]) == (1.0, 0.6, 200.0)
