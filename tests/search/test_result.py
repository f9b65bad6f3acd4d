from akd_deploy.architecture import Architecture
from akd_deploy.search import SearchResult, Trial


def trial(number, latency_s, accuracy, reward=None, state="done"):
    architecture = Architecture("mobile", {}, {"number": number})
    reward = accuracy if reward is None else reward
    return Trial(number, "random", architecture, str(number), state, latency_s, latency_s, 0, reward, accuracy)


def test_the_front_by_hand():
    rows = [
        trial(0, 3e-3, 0.9),
        trial(1, 1e-3, 0.7),
        trial(2, 2e-3, 0.7),  # as accurate as 1, slower
        trial(3, 1e-3, 0.6),  # as fast as 1, less accurate
        trial(4, 1e-3, 0.7),  # equals 1, later
        trial(5, 2e-3, 0.8),
        trial(6, 4e-3, 0.85),  # beaten by 0 in both
        trial(7, 0.5e-3, 0.99, state="duplicate"),
    ]
    front = SearchResult(tuple(rows), {}).front()
    assert [row["arch"]["choices"]["number"] for row in front] == [1, 5, 0]


def test_the_best_has_the_greatest_reward_and_is_the_earliest_of_equals():
    rows = [
        trial(0, 1e-3, 0.9, 0.5),
        trial(1, 1e-3, 0.8, 0.7),
        trial(2, 1e-3, 0.95, 0.7),
        trial(3, 1e-3, 1, 1, "failed"),
    ]
    result = SearchResult(tuple(rows), {})
    assert result.best.id == 1
    assert result.counts == {"done": 3, "failed": 1, "infeasible": 0, "duplicate": 0}
