"""AKD's controller: a distribution that adds up, losses by hand, and what it learns."""

import itertools

import numpy as np
import pytest
import torch

from akd_deploy.errors import InfeasibleBudgetError, UsageError
from akd_deploy.search.strategies import LatencyBudget, policy_gradient
from akd_deploy.search.strategies.controller import Baseline, Controller, ppo_loss, reinforce_loss, skip_loss
from akd_deploy.search.strategies.policy_gradient import PpoSettings, ReinforceSettings, ppo, reinforce

SIZES = (2, 1, 3)
EVERY = torch.tensor(list(itertools.product(*map(range, SIZES))))


def controller(sizes=SIZES, seed=0):
    return Controller(sizes, 8, torch.Generator().manual_seed(seed))


def test_probabilities_of_all_encodings_add_up_to_one():
    log_probabilities, entropies = (values.detach() for values in controller()(EVERY))
    assert log_probabilities.sum(1).exp().sum().item() == pytest.approx(1, abs=1e-6)
    assert log_probabilities[:, 1] == pytest.approx(0)  # a choice of one option is no choice
    assert entropies[:, 1] == pytest.approx(0, abs=1e-6)
    assert (entropies[:, 2] <= np.log(3) + 1e-6).all()


def test_a_token_depends_on_those_before_it_and_not_on_those_after_it():
    model = controller()
    with torch.no_grad():
        for head in model.heads:
            head.weight.mul_(30)
    first, last = model(EVERY)[0][:, 0], model(EVERY)[0][:, 2]
    assert torch.equal(first[:3], first[:1].expand(3))  # the same first token, other third ones
    assert not torch.allclose(last[0], last[3], atol=1e-3)  # the same third token, another first one


def test_it_draws_what_it_says_it_draws():
    model, rng = controller(), np.random.default_rng(1)
    with torch.no_grad():
        model.heads[2].bias.copy_(torch.tensor([0.0, 1.0, -2.0]))
    drawn = model.sample(3000, rng)
    expected = model(EVERY)[0].sum(1).exp().detach().numpy()
    found = [(drawn == row.numpy()).all(1).mean() for row in EVERY]
    assert found == pytest.approx(expected, abs=4 * np.sqrt(0.25 / 3000))


def test_reinforce_loss_is_minus_the_mean_of_advantage_times_log_probability():
    log_probabilities = torch.tensor([[-1.0, -2.0], [-0.5, -0.25]])
    assert reinforce_loss(log_probabilities, torch.tensor([2.0, -4.0])).item() == pytest.approx(-(-6 + 3) / 2)


def test_ppo_loss_begins_as_reinforce_does_and_stops_where_a_probability_has_moved_by_the_clip():
    old = torch.tensor([[-1.0, -2.0], [-0.5, -0.25]])
    new = old.clone().requires_grad_()
    advantages = torch.tensor([2.0, -4.0])
    ppo_loss(new, old, advantages, 0.2).backward()
    assert new.grad.flatten().tolist() == pytest.approx([-1.0, -1.0, 2.0, 2.0])  # −A / n, as of REINFORCE
    moved = (old + torch.tensor([[0.5, -0.5], [0.5, -0.5]])).requires_grad_()
    ppo_loss(moved, old, advantages, 0.2).backward()
    good_and_likelier, good_and_rarer, bad_and_likelier, bad_and_rarer = moved.grad.flatten().tolist()
    assert good_and_likelier == bad_and_rarer == 0  # far enough the right way
    assert good_and_rarer == pytest.approx(-np.exp(-0.5))  # the wrong way: pulled back
    assert bad_and_likelier == pytest.approx(2 * np.exp(0.5))


def test_the_baseline_is_what_was_usual_before_the_batch():
    baseline = Baseline(0.75)
    assert baseline.advantages(np.array([1.0, 3.0])).tolist() == [-1, 1]
    assert baseline.value == 2
    assert baseline.advantages(np.array([6.0, 6.0])).tolist() == [1, 1]  # all better than usual
    assert baseline.value == 3
    assert Baseline(0.9).advantages(np.array([0.5, 0.5])).tolist() == [0, 0]


SPACE = {f"c{i}": {"_type": "choice", "_value": [10, 20, 30]} for i in range(6)}


def taught(make, seed, batches=40):
    """Rewards of the last batches where each choice's last option is worth most."""
    strategy = make(seed, {}, None)
    strategy.update_search_space(SPACE)
    values = []
    for number in range(8 * batches):
        row = strategy.generate_parameters(number)
        values.append(sum(row.values()) / 180)
        strategy.receive_trial_result(number, row, values[-1])
    return np.mean(values[:16]), np.mean(values[-16:])


@pytest.mark.parametrize("make", [ppo, reinforce])
def test_it_learns_what_is_rewarded(make):
    before, after = np.mean([taught(make, seed) for seed in range(2)], axis=0)
    assert before < 0.75
    assert after > 0.9


def test_ppo_goes_over_a_batch_several_times_and_reinforce_once():
    def moved(make, settings):
        strategy = make(0, settings, None)
        strategy.update_search_space(SPACE)
        begun = [p.detach().clone() for p in strategy._controller.parameters()]
        for number in range(8):
            row = strategy.generate_parameters(number)
            strategy.receive_trial_result(number, row, row["c0"] / 30)
        steps = {int(state["step"]) for state in strategy._optimiser.state.values()}
        changed = any(not torch.equal(a, b) for a, b in zip(begun, strategy._controller.parameters(), strict=True))
        return steps, changed

    assert moved(ppo, {}) == ({PpoSettings().epochs}, True)
    assert moved(reinforce, {}) == ({1}, True)
    assert ReinforceSettings().batch == PpoSettings().batch == 8


def biased(strategy, first, second):
    """A controller of one choice whose options have chances in this proportion, whatever came before."""
    with torch.no_grad():
        for parameter in strategy._controller.parameters():
            parameter.zero_()
        strategy._controller.heads[0].bias.copy_(torch.tensor([first, second]).log())


def ratios_of_first_steps(monkeypatch):
    """What PPO begins with in each batch: (n, choices) ratios of probabilities, now to when they were drawn."""
    seen = []

    def loss(log_probabilities, old, advantages, clip):
        seen.append((log_probabilities - old).exp().detach())
        return ppo_loss(log_probabilities, old, advantages, clip)

    monkeypatch.setattr(policy_gradient, "ppo_loss", loss)
    return seen


def test_a_candidate_drawn_before_a_step_and_reported_after_it_is_weighed_by_both_probabilities(monkeypatch):
    seen = ratios_of_first_steps(monkeypatch)
    strategy = ppo(0, {"batch": 2, "epochs": 1}, None)
    strategy.update_search_space({"c": {"_type": "choice", "_value": ["a", "b"]}})
    biased(strategy, 0.5, 0.5)
    early = strategy.generate_parameters(0)
    for number in (1, 2):  # a whole batch in between: the controller makes a step of its own
        strategy.receive_trial_result(number, strategy.generate_parameters(number), number)
    biased(strategy, 0.75, 0.25)
    late = strategy.generate_parameters(3)
    strategy.receive_trial_result(3, late, 1.0)
    strategy.receive_trial_result(0, early, 2.0)
    assert seen[0].flatten().tolist() == pytest.approx([1, 1])
    # ¾ or ¼ now, ½ when it was drawn; the other one was drawn by the controller as it is.
    assert seen[1].flatten().tolist() == pytest.approx([1, {"a": 1.5, "b": 0.5}[early["c"]]])


def test_inside_a_budget_a_candidate_is_weighed_by_the_controller_that_drew_it_too(monkeypatch):
    seen = ratios_of_first_steps(monkeypatch)
    strategy = ppo(0, {"batch": 1, "epochs": 1}, LatencyBudget(1.0, lambda rows: np.zeros(len(rows))))
    strategy.update_search_space({"c": {"_type": "choice", "_value": ["a", "b"]}})
    biased(strategy, 0.5, 0.5)
    early = strategy.generate_parameters(0)
    biased(strategy, 0.75, 0.25)
    strategy.receive_trial_result(0, early, 1.0)
    assert seen[0].item() == pytest.approx({"a": 1.5, "b": 0.5}[early["c"]])


def test_history_is_weighed_as_if_the_controller_had_drawn_it_when_it_came(monkeypatch):
    seen = ratios_of_first_steps(monkeypatch)
    strategy = ppo(0, {"batch": 2, "epochs": 1}, None)
    strategy.update_search_space({"c": {"_type": "choice", "_value": ["a", "b"]}})
    biased(strategy, 0.5, 0.5)
    strategy.import_data([{"parameter": {"c": "a"}, "value": 1.0}])
    biased(strategy, 0.75, 0.25)
    strategy.import_data([{"parameter": {"c": "b"}, "value": 2.0}])
    assert seen[0].flatten().tolist() == pytest.approx([1.5, 1])


def test_what_failed_teaches_nothing():
    strategy = ppo(0, {}, None)
    strategy.update_search_space(SPACE)
    before = [p.detach().clone() for p in strategy._controller.parameters()]
    for number in range(30):
        strategy.generate_parameters(number)
        strategy.trial_end(number, False)
    assert all(torch.equal(a, b) for a, b in zip(before, strategy._controller.parameters(), strict=True))


def test_with_a_budget_it_is_taught_by_penalties_only_until_something_fits():
    asked = []

    def upper_s(candidates):
        asked.append(len(candidates))
        return np.array([sum(row.values()) for row in candidates], float)

    strategy = ppo(0, {}, LatencyBudget(60.5, upper_s))  # one encoding in 729: every choice at its first option
    strategy.update_search_space(SPACE)
    assert set(strategy.generate_parameters(0).values()) == {10}
    assert len(asked) > 1
    strategy = ppo(0, {}, LatencyBudget(59.5, upper_s))
    strategy.update_search_space(SPACE)
    with pytest.raises(InfeasibleBudgetError):
        strategy.generate_parameters(0)


def test_skip_loss_by_hand_and_nothing_at_its_target():
    drawn = torch.tensor([[0.5, 0.5], [0.6, 0.4]]).log()
    expected = 0.5 * np.log(0.5 / 0.6) + 0.5 * np.log(0.5 / 0.4)
    assert skip_loss([drawn], 0.4).item() == pytest.approx(expected / 2, rel=1e-4)
    assert skip_loss([drawn, drawn], 0.4).item() == pytest.approx(expected, rel=1e-4)
    assert skip_loss([], 0.4).item() == 0


@pytest.mark.parametrize(("target", "often"), [(0.1, True), (0.0, False)])
def test_with_a_target_skips_are_drawn_about_so_often_where_rewards_say_nothing(target, often):
    space = {f"c{i}": {"_type": "choice", "_value": [0, 1] if i % 2 else ["a", "b"]} for i in range(6)}
    strategy = reinforce(0, {"skip_target": target, "learning_rate": 0.05}, None)
    strategy.update_search_space(space)
    taken = []
    for i in range(400):
        parameters = strategy.generate_parameters(i)
        taken.append([parameters[f"c{k}"] for k in (1, 3, 5)])
        strategy.receive_trial_result(i, parameters, 0.5)
    assert (np.mean(taken[200:]) < 0.25) == often


def test_a_skip_target_is_a_share():
    with pytest.raises(UsageError, match="skip_target"):
        reinforce(0, {"skip_target": 1.5}, None)
