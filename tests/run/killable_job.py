"""A job with the fake engine, for tests that kill it: python -m tests.run.killable_job PROMPTS ANSWERS [DELAY]."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from aiasst.run.answers import Answer, open_answers
from aiasst.run.batch import Meter, answer_rows
from aiasst.run.job import Defaults, Job
from aiasst.run.prompts import RowReader, open_prompts
from tests.fake_text_engine import FakeTextEngine


class SlowEngine(FakeTextEngine):
    delay = 0.0

    def step(self):  # type: ignore[no-untyped-def]
        time.sleep(self.delay)
        return super().step()


def make_job(**changes: object) -> Job:
    defaults = Defaults(max_tokens=8, temperature=0.5, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0, stop=())
    fields: dict[str, object] = {
        "aiasst_version": "0", "prompts_sha256": "p", "rows": 3, "model": "m", "model_sha256": "m",
        "defaults": defaults, "seed": 5,
    }  # fmt: skip
    return Job.model_validate(fields | changes)


def main(prompts: Path, answers: Path, delay: float = 0.0) -> None:
    from aiasst.engine.requests import Sampling

    engine = SlowEngine(slots=3)
    engine.delay = delay
    with open_prompts(prompts) as source:
        job = make_job(prompts_sha256=source.sha256, rows=source.rows)
        with open_answers(answers, job, lines=source.lines, seed_given=True) as file:
            reader = RowReader(Sampling(max_tokens=8), (), file.job.seed)
            rows = (reader.read(*line) for line in source)
            left = (row for row in rows if not file.done.lines[row.line])

            def append(answer: Answer) -> None:
                file.append(answer)

            answer_rows(engine, left, append, Meter(source.rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]) if len(sys.argv) > 3 else 0.0)
