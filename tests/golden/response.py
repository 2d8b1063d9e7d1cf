#!/usr/bin/env python3
"""Writes the golden cases of APA with the whole answer as the action (docs/APA.md, eq. 7), in plain Python floats.

Independent of the crate: scalar loops, no tensors; the gradient is derived by hand and held against central differences
before a case is written. Never reads anything. Usage: python3 tests/golden/response.py
"""

import json
import math
import os
import random

HERE = os.path.dirname(os.path.abspath(__file__))


def answer_terms(case, i, logprobs):
    """What answer i moved, sum of log-ratios over its tokens by T^p, and its tokens' number."""
    mask, reference = case["mask"][i], case["ref_logprobs"][i]
    tokens = sum(1 for m in mask if m)
    moved = sum(p - q for p, q, m in zip(logprobs[i], reference, mask) if m)
    return moved / tokens ** case["length_power"], tokens


def policy_loss(case, advantages, logprobs):
    errors = [answer_terms(case, i, logprobs)[0] - case["nats_per_reward"] * a for i, a in enumerate(advantages)]
    return sum(e * e for e in errors) / len(errors)


def d_logprobs(case, advantages):
    """d loss / d logprob = 2 / B * error_i / T_i^p at every token of answer i, by hand."""
    rows = []
    for i, a in enumerate(advantages):
        moved, tokens = answer_terms(case, i, case["logprobs"])
        slope = 2 / len(advantages) * (moved - case["nats_per_reward"] * a) / tokens ** case["length_power"]
        rows.append([slope if m else 0.0 for m in case["mask"][i]])
    return rows


def value_loss(case, returns, values):
    squares = [(v - g) ** 2 for i, row in enumerate(case["mask"]) for m, v, g in zip(row, values[i], returns[i]) if m]
    return 0.5 * sum(squares) / len(squares)


def check_by_differences(f, at, gradient):
    for i, row in enumerate(at):
        for t, x in enumerate(row):
            def there(y):
                moved = [list(r) for r in at]
                moved[i][t] = y
                return f(moved)
            h = 1e-5
            slope = (there(x + h) - there(x - h)) / (2 * h)
            assert abs(slope - gradient[i][t]) < 1e-6 * max(1, abs(slope)), (i, t, slope, gradient[i][t])


def make(name, seed, lengths, nats_per_reward, length_power):
    rng = random.Random(seed)
    time = max(lengths)
    mask = [[1.0 if t < n else 0.0 for t in range(time)] for n in lengths]

    def rows(draw):
        # Padding holds numbers on purpose: the mask must keep them out.
        return [[draw() for _ in range(time)] for _ in lengths]

    ref = rows(lambda: math.log(rng.uniform(0.01, 0.99)))
    case = {
        "mask": mask,
        "ref_logprobs": ref,
        "logprobs": [[x + rng.gauss(0, 0.3) for x in row] for row in ref],
        "behavior_logprobs": [[x + rng.gauss(0, 0.2) for x in row] for row in ref],
        "old_values": rows(lambda: rng.gauss(0, 0.5)),
        "values": rows(lambda: rng.gauss(0, 0.5)),
        "scores": [rng.gauss(0, 1) for _ in lengths],
        "nats_per_reward": nats_per_reward,
        "length_power": length_power,
    }
    # The answer's advantage: its score less the value of its prompt, the one before the first token.
    advantages = [s - v[0] for s, v in zip(case["scores"], case["old_values"])]
    # Nothing is discounted: at every token the return is the score.
    returns = [[s if m else 0.0 for m in row] for s, row in zip(case["scores"], mask)]
    gradient = d_logprobs(case, advantages)
    check_by_differences(lambda p: policy_loss(case, advantages, p), case["logprobs"], gradient)
    tokens = sum(lengths)
    value_gradient = [
        [(v - g) / tokens if m else 0.0 for v, g, m in zip(case["values"][i], returns[i], mask[i])]
        for i in range(len(lengths))
    ]
    check_by_differences(lambda v: value_loss(case, returns, v), case["values"], value_gradient)

    policy = policy_loss(case, advantages, case["logprobs"])
    value = value_loss(case, returns, case["values"])
    gaps = [b - r for i, row in enumerate(mask) for m, b, r in
            zip(row, case["behavior_logprobs"][i], case["ref_logprobs"][i]) if m]
    settings = {"nats_per_reward": nats_per_reward, "length_power": length_power, "value_coef": 1.0}
    inputs = {k: case[k] for k in ("mask", "logprobs", "ref_logprobs", "behavior_logprobs", "old_values", "values",
                                   "scores")}
    expected = {
        "returns": returns,
        "answer_advantages": advantages,
        "policy_loss": policy,
        "value_loss": value,
        "total_loss": policy + value,
        "d_logprobs": gradient,
        "d_values": value_gradient,
        "kl_k1": sum(gaps) / tokens,
        "kl_k3": sum(math.exp(-d) - 1 + d for d in gaps) / tokens,
    }
    with open(os.path.join(HERE, name + ".json"), "w") as out:
        json.dump({"algorithm": "apa_response", "config": settings, "inputs": inputs, "expected": expected}, out)


make("apa_response_whole_0", 1, [4], 3.0, 0.0)
make("apa_response_whole_1", 2, [5, 1, 9, 3, 7], 5.0, 0.0)
make("apa_response_token_0", 3, [6, 2, 4], 0.25, 1.0)
make("apa_response_between_0", 4, [8, 3, 1, 5], 1.5, 0.5)
