"""Predicted against measured tokens a second: profile once, then predict and bench each folder, at 1 and 8 sequences.

usage: prediction.py FOLDER [FOLDER …] [--device device.json] [--seconds 30] [--full]

The story checkpoint: checkpoints/story-7m-int8. Other shapes: random_llama.py WORK --shape 135m (or 1b), then convert, quantize.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from aiasst.artifacts.device import DeviceConfig, load_device_config, save_device_config
from aiasst.artifacts.model_folder import ModelFolder
from aiasst.bench import bench
from aiasst.profile import fitted, profile
from aiasst.profile.advise import advise_on_folder, measured_machine
from measure import machine, print_table

SEQUENCES = (1, 8)


def row_of(folder: ModelFolder, config: DeviceConfig, seconds: float) -> list[str]:
    """Name, then predicted, measured and deviation of decoding at 1 and at 8 sequences, and of reading a prompt."""
    (prediction,) = advise_on_folder(folder, measured_machine(config)).predictions
    report = bench(
        folder, fitted(config, folder), seconds=seconds, sequences=SEQUENCES, prompt_tokens=prediction.workload.prompt
    )
    measured = {one.sequences: one.speed.best for one in report.decode}
    pairs = [(prediction.decode_rate(count).value, measured[count]) for count in SEQUENCES if count in measured]
    pairs.append((prediction.prefill_rate.value, report.prefill.best))
    cells = [(f"{told:.1f}", f"{found:.1f}", f"{told / found - 1:+.0%}") for told, found in pairs]
    return [folder.path.name, *(cell for three in cells for cell in three)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--device", type=Path, help="measured before; else it is measured now, and written here")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--full", action="store_true")
    arguments = parser.parse_args()
    print(machine())
    if arguments.device is not None and arguments.device.exists():
        config = load_device_config(arguments.device)
    else:
        config = profile(full=arguments.full)
        if arguments.device is not None:
            save_device_config(arguments.device, config)
    noise = sorted(point.noise for point in config.costs.matmul)
    print(f"{len(noise)} products, noise: median {noise[len(noise) // 2]:.0%}, at worst {noise[-1]:.0%}")
    columns = ["folder", *(f"{what} {column}" for what in ("1", "8", "prompt") for column in ("told", "found", "off"))]
    print_table(columns, [row_of(ModelFolder.open(path), config, arguments.seconds) for path in arguments.folders])


if __name__ == "__main__":
    main()
