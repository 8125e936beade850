"""Olive's own GPTQ pass, with its defaults: 4 bits, blocks of 128, asymmetric, no activation order; run in fp32 on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from common import Job, Writer, checkpoint_bytes, int8_head, main, quiet, torch_logits

quiet()

import torch  # noqa: E402
from olive.data.registry import Registry  # noqa: E402
from olive.model import HfModelHandler  # noqa: E402
from olive.passes.olive_pass import create_pass_from_dict  # noqa: E402
from olive.passes.pytorch.gptq import Gptq  # noqa: E402


class Sequences(torch.utils.data.Dataset):
    """Token ids as Olive wants them: (inputs, label)."""

    def __init__(self, ids: np.ndarray) -> None:
        self.ids = torch.from_numpy(ids)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[dict[str, torch.Tensor], int]:
        return {"input_ids": self.ids[index], "attention_mask": torch.ones_like(self.ids[index])}, 0


def quantize(job: Job) -> None:
    """Write Olive's checkpoint to the output folder."""

    @Registry.register_dataset("calibration_ids")
    def calibration_ids(**_: Any) -> Sequences:
        return Sequences(job.calibration)

    data = {
        "name": "calibration",
        "load_dataset_config": {"type": "calibration_ids"},
        "pre_process_data_config": {"type": "skip_pre_process"},
        "post_process_data_config": {"type": "skip_post_process"},
    }
    gptq = create_pass_from_dict(Gptq, {"data_config": data}, disable_search=True)
    gptq.run(HfModelHandler(str(job.checkpoint)), str(job.output))


def logits(folder: Path, ids: np.ndarray, writer: Writer, with_int8_head: bool) -> int:
    """Logits by torch over the weights that Olive's layers unpack (activations in fp32)."""
    model = HfModelHandler(str(folder)).load_model().eval()
    head = int8_head(model) if with_int8_head else None
    torch_logits(model, ids, writer)
    return checkpoint_bytes(folder, head)


if __name__ == "__main__":
    main("olive-ai", quantize, logits)
