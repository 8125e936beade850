"""What choosing the next tokens takes beside the model's run: milliseconds a step for 1 and 16 answers, by setting.

usage: sampling.py [--vocabulary 128256] [--rounds 15] [--step-ms 17 60]

`peaked` logits are like a trained model's: a few hundred tokens have nearly all of the probability. `flat` ones are like those
of random weights, the worst case of every filter. Best of the rounds, in CPU time; the share is of a step that takes so long.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from aiasst.engine.requests import Guide, Sampling
from aiasst.engine.sampling import chances, sample
from measure import machine, print_table

SETTINGS = {
    "greedy": Sampling(temperature=0),
    "temperature 0.8": Sampling(temperature=0.8),
    "top-p 0.95": Sampling(temperature=0.8, top_p=0.95),
    "top-k 50": Sampling(temperature=0.8, top_k=50),
    "top-k 20, top-p 0.8": Sampling(temperature=0.7, top_k=20, top_p=0.8),
    "min-p 0.05": Sampling(temperature=0.8, min_p=0.05),
    "repetition penalty, top-p 0.95": Sampling(temperature=0.8, top_p=0.95, repetition_penalty=1.1),
    "frequency penalty, greedy": Sampling(temperature=0, frequency_penalty=0.5),
    "logit bias, greedy": Sampling(temperature=0, logit_bias={5: -100, 9: 1.0}),
}


@dataclass
class Row:
    """An answer of 200 tokens behind a prompt of 100."""

    sampling: Sampling
    tokens: np.ndarray
    generator: np.random.Generator = field(default_factory=lambda: np.random.default_rng(1))
    prompt_length: int = 100
    guide: Guide | None = None


def best_ms(rounds: int, work: Callable[[], object]) -> float:
    """Milliseconds of CPU time."""
    taken = []
    for _ in range(rounds):
        began = time.process_time()
        work()
        taken.append(time.process_time() - began)
    return 1000 * min(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=128256)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--step-ms", type=float, nargs=2, default=(17.0, 60.0), help="of a step with 1 and with 16 answers"
    )
    arguments = parser.parse_args()
    print(machine())
    random = np.random.default_rng(0)
    flat = random.normal(size=(16, arguments.vocabulary)).astype(np.float32)
    peaked = flat * 1.5
    peaked[:, random.integers(0, arguments.vocabulary, 300)] += 10
    seen = random.integers(0, arguments.vocabulary, 300)
    lines = []
    for name, setting in SETTINGS.items():
        figures = []
        for logits in (peaked, flat):
            for count, step in zip((1, 16), arguments.step_ms, strict=True):
                rows, few = [Row(setting, seen) for _ in range(count)], logits[:count]
                taken = best_ms(arguments.rounds, lambda few=few, rows=rows: sample(few, rows))
                figures.append(f"{taken:.2f} ({taken / step:.1%})")
        lines.append((name, *figures))
    told = [f"{best_ms(arguments.rounds, lambda r=rows: chances(r[0], 5, 5)):.2f}" for rows in (peaked, flat)]
    lines.append(("log probabilities of 5, one row more", told[0], "", told[1], ""))
    print_table(("setting", "peaked, 1 row", "peaked, 16 rows", "flat, 1 row", "flat, 16 rows"), lines)


if __name__ == "__main__":
    main()
