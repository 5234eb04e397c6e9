"""Rewards, baselines and coefficients: each known mistake of public re-implementations has a test here."""

from __future__ import annotations

import pytest
import torch

from scorefast.grading.answer import Grade
from scorefast.rl.objective import coefficients, leave_one_out_advantage, origin_shaped, paper_shaped, turn_rewards
from scorefast.schema import OriginReward, Stage1, Stage2

RIGHT, NEAR, FAR = Grade(True, 1.0), Grade(False, 0.9), Grade(False, 0.1)


def test_leave_one_out_is_each_minus_the_mean_of_the_others():
    rewards = torch.tensor([[1.0], [0.0], [0.0], [5.0], [1.0]])
    groups = torch.tensor([7, 7, 7, 3, 3])
    expected = torch.tensor([[1.0], [-0.5], [-0.5], [4.0], [-4.0]])
    torch.testing.assert_close(leave_one_out_advantage(rewards, groups), expected)


def test_leave_one_out_sums_to_zero_and_ignores_a_constant():
    rewards, groups = torch.randn(24, 2), torch.arange(24) % 4
    advantage = leave_one_out_advantage(rewards, groups)
    for group in range(4):
        torch.testing.assert_close(advantage[groups == group].sum(0), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(leave_one_out_advantage(rewards + 3, groups), advantage)


def test_a_single_sample_has_no_baseline():
    with pytest.raises(ValueError, match="one sample"):
        leave_one_out_advantage(torch.ones(3, 2), torch.tensor([0, 0, 1]))


NONE = float("nan")


def test_a_reward_that_does_not_apply_is_in_no_mean_and_gives_no_advantage():
    rewards = torch.tensor([[1.0, NONE], [NONE, 2.0], [0.0, 4.0], [3.0, NONE], [NONE, NONE]])
    groups = torch.tensor([7, 7, 7, 3, 3])
    expected = torch.tensor([[1.0, 0.0], [0.0, -2.0], [-1.0, 2.0], [0.0, 0.0], [0.0, 0.0]])
    torch.testing.assert_close(leave_one_out_advantage(rewards, groups), expected)


def test_a_reward_that_does_not_apply_leaves_the_others_as_they_were():
    rewards, groups = torch.randn(24, 2), torch.arange(24) % 4
    with_more = torch.cat([rewards, torch.full((8, 2), NONE)])
    advantage = leave_one_out_advantage(with_more, torch.cat([groups, torch.arange(8) % 4]))
    assert torch.equal(advantage[:24], leave_one_out_advantage(rewards, groups))
    assert not advantage[24:].any()


def test_an_improvement_over_what_does_not_apply_does_not_either():
    raw = [(None, 1.0), (1.0, None), (0.5, 1.0)]
    graded = [RIGHT, RIGHT, RIGHT]
    assert turn_rewards(Stage2(alpha=10.0), graded, graded, raw).isnan().tolist() == [
        *([True, True], [False, True], [False, False])
    ]
    assert turn_rewards(Stage1(), graded, graded, raw).isnan().tolist() == [
        [False, False],
        [False, True],
        [False, False],
    ]


def test_stage1_rewards_the_second_attempt_alone():
    rewards = turn_rewards(Stage1(), [RIGHT, RIGHT, FAR], [RIGHT, FAR, RIGHT])
    assert rewards.tolist() == [[0, 1], [0, 0], [0, 1]]


def test_stage2_credits_each_turn_with_its_own_reward():
    """Summing both turns into one advantage would credit y1 with what y2 did."""
    rewards = turn_rewards(Stage2(alpha=10.0), [RIGHT, RIGHT, FAR, FAR], [RIGHT, FAR, RIGHT, FAR])
    assert rewards.tolist() == [[1, 1], [1, -10], [0, 11], [0, 0]]


@pytest.mark.parametrize(("r1", "r2", "alpha"), [(0, 1, 10.0), (1, 0, 1.0), (1, 1, 3.0), (0, 0, 3.0)])
def test_alpha_only_scales_the_second_turn_given_the_first(r1, r2, alpha):
    """With gamma = 0, r1 is a constant given y1: shaped(r2 = 1) - shaped(r2 = 0) is 1 + alpha whatever r1 is."""
    assert paper_shaped(r1, 1, alpha) - paper_shaped(r1, 0, alpha) == 1 + alpha
    assert paper_shaped(r1, r2, 0.0) == r2


def test_origin_rewards_by_what_the_second_attempt_did():
    values = OriginReward()
    assert origin_shaped(FAR, RIGHT, values) == values.corrected
    assert origin_shaped(FAR, NEAR, values) == values.partial
    assert origin_shaped(FAR, FAR, values) == values.unchanged
    assert origin_shaped(NEAR, FAR, values) == values.worse
    assert origin_shaped(RIGHT, NEAR, values) == values.worse
    assert origin_shaped(RIGHT, RIGHT, values) == values.kept
    assert turn_rewards(Stage2(shaping="origin"), [FAR], [NEAR]).tolist() == [[0.0, 0.5]]


def test_coefficients_of_every_method():
    advantages = torch.tensor([[0.5, -2.0]])
    s1 = coefficients(Stage1(beta1=0.01, beta2=1.0), advantages)
    torch.testing.assert_close((s1.pg, s1.kl), (advantages, torch.tensor([[1.0, 0.01]])))
    s2 = coefficients(Stage2(beta1=0.02), advantages)
    torch.testing.assert_close((s2.pg, s2.kl), (advantages, torch.tensor([[0.02, 0.02]])))
    ce = coefficients(Stage1(method="supervised", beta2=0.3), advantages)
    torch.testing.assert_close((ce.pg, ce.kl), (torch.tensor([[0.0, 1.0]]), torch.tensor([[0.3, 0.0]])))
