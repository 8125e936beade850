"""What choosing the next tokens takes beside the model's run: milliseconds a step for 1 and 16 answers, by setting.

usage: sampling.py [--vocabulary 128256] [--rounds 40] [--step-ms 17 60]

`peaked` logits are like a trained model's: a few hundred tokens have nearly all of the probability. `flat` ones are like those
of random weights, the worst case of every filter. Means of the rounds without the slowest tenth, in CPU time
(a draw that falls outside top-p costs another one); the share is of a step that takes so long.
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


GUIDED = {
    "grammar that allows half, greedy": (Sampling(temperature=0), 0.5),
    "grammar that allows half, top-p 0.95": (Sampling(temperature=0.8, top_p=0.95), 0.5),
    "grammar that allows 0.1%, top-p 0.95": (Sampling(temperature=0.8, top_p=0.95), 0.001),
}
"""With the share of the vocabulary that is allowed; what the grammar itself takes is not in the figure."""


class Mask:
    """A guide that always allows the same tokens, at random."""

    def __init__(self, vocabulary: int, share: float) -> None:
        self.allowed = np.random.default_rng(2).random(vocabulary) < share

    def accept(self, token: int) -> None:
        """Goes on in any case."""


@dataclass
class Row:
    """An answer of 200 tokens behind a prompt of 100."""

    sampling: Sampling
    tokens: np.ndarray
    generator: np.random.Generator = field(default_factory=lambda: np.random.default_rng(1))
    prompt_length: int = 100
    guide: Guide | None = None


def usual_ms(rounds: int, work: Callable[[], object]) -> float:
    """Milliseconds of CPU time, the mean without the slowest tenth: stalls only add."""
    taken = []
    for _ in range(rounds):
        began = time.process_time()
        work()
        taken.append(time.process_time() - began)
    return 1000 * float(np.mean(sorted(taken)[: max(1, 9 * rounds // 10)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=128256)
    parser.add_argument("--rounds", type=int, default=40)
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
    settings = [(name, setting, None) for name, setting in SETTINGS.items()]
    settings += [(name, each, Mask(arguments.vocabulary, share)) for name, (each, share) in GUIDED.items()]
    for name, setting, guide in settings:
        figures = []
        for logits in (peaked, flat):
            for count, step in zip((1, 16), arguments.step_ms, strict=True):
                rows, few = [Row(setting, seen, guide=guide) for _ in range(count)], logits[:count]
                taken = usual_ms(arguments.rounds, lambda few=few, rows=rows: sample(few, rows))
                figures.append(f"{taken:.2f} ({taken / step:.1%})")
        lines.append((name, *figures))
    told = [f"{usual_ms(arguments.rounds, lambda r=rows: chances(r[0], 5, 5)):.2f}" for rows in (peaked, flat)]
    lines.append(("log probabilities of 5, one row more", told[0], "", told[1], ""))
    print_table(("setting", "peaked, 1 row", "peaked, 16 rows", "flat, 1 row", "flat, 16 rows"), lines)


if __name__ == "__main__":
    main()
