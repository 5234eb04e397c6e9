"""Rewards, baselines and coefficients: each known mistake of public re-implementations has a test here."""

from __future__ import annotations

import pytest
import torch

from scorefast.objective import coefficients, leave_one_out_advantage, turn_rewards
from scorefast.recipe import OriginReward, Stage1, Stage2
from scorefast.reward import Grade, correctness_reward, extract_number, grade, origin_shaped, paper_shaped

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


@pytest.mark.parametrize(
    ("reply", "reference", "correct"),
    [
        ("The answer is 824", "824", True),
        ("Step by step: 8+6=14, 7+5+1=13, 4+3+1=8. The answer is 834", "834", True),
        ("834 is close, but it is 835", "834", False),
        ("She makes $1,234.50.", "1234.5", True),
        ("It is 3/4 of it", "75%", True),
        ("A: 18", "... = 18\n#### 18", True),
        ("The answer is 18 or 20", "18", False),
        ("The answer is not 18. It must be 20", "18", False),
        ("The answer is 12 + 6 = 18", "18", True),
        ("I will answer in 2 steps. 9+9=18", "18", True),
        ("#### 18 and that took 2 steps", "18", True),
        ("So \\boxed{18} after 3 steps", "18", True),
        ("9" * 5000, "18", False),
        ("5 kings", "Article 5 of the constitution guarantees it", False),
        ("1", "the 1st of May", False),
        ("Paris.", "Paris", True),
        ("Let me think.\n**Paris**", "Paris", True),
        ("Paris or Lyon", "Paris", False),
        ("-5", "5", False),
        ("I do not know", "5", False),
        ("", "5", False),
        ("Answer: 0.50", "1/2", True),
        ("x = 1/0", "1", False),
        ("  paris ", "Paris", True),
        ("Lyon", "Paris", False),
        ("ソウル", "ソウル", True),
        ("서울", "서울", True),
    ],
)
def test_grades(reply, reference, correct):
    assert grade(reply, reference).correct is correct


def test_a_closer_number_never_scores_lower_and_only_right_scores_one():
    scores = [grade(str(n), "100").score for n in range(101)]
    assert scores == sorted(scores)
    assert scores[-1] == 1.0
    assert max(scores[:-1]) < 1.0


def test_numbers_are_compared_as_numbers():
    assert extract_number("1,000") == extract_number("1000.0") == 1000
    assert extract_number("75%") == extract_number("3/4") == extract_number("0.75")


def test_the_reward_function_has_trls_signature():
    chats = [[{"role": "assistant", "content": "it is 4"}], "it is 5"]
    rewards = correctness_reward(completions=chats, prompts=["2+2", "2+2"], correct_answer=["4", "4"])
    assert rewards == [1.0, 0.0]
