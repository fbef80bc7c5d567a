"""How fast the BabyAI world is: steps a second on one core, alone, with ground truth, and with pictures.

    OMP_NUM_THREADS=1 python benchmarks/babyai.py [SECONDS_PER_ROW]

The walk mixes good and random actions half and half, as demonstrations do, and includes building the worlds.
"""

from __future__ import annotations

import sys
import time

import numpy as np

from guerdon.envs._babyai_distance import Action, contribution, distance_field
from guerdon.envs._babyai_world import LEVELS, World

VARIANTS: dict[str, tuple[bool, tuple[str, ...]]] = {
    "stepped": (False, ()),
    "labelled": (True, ()),
    "labelled, full view": (True, ("full",)),
    "labelled, both views": (True, ("full", "agent")),
}


def steps_per_second(level: str, *, labelled: bool, views: tuple[str, ...], seconds: float) -> float:
    random = np.random.default_rng(0)
    distance_field.cache_clear()
    begin, steps, seed = time.perf_counter(), 0, 0
    while time.perf_counter() - begin < seconds:
        world, seed = World(level, seed, 3), seed + 1
        for _ in range(100):
            if world.done:
                break
            good = world.best_actions() if labelled and random.random() < 0.5 else ()
            action = good[0] if good else Action(random.choice(7, p=[0.2, 0.2, 0.4, 0.05, 0.05, 0.05, 0.05]))
            before, clause = world.distance() if labelled else 0.0, world.completed
            world.step(action)
            if labelled:
                contribution(before, 0.0 if world.completed > clause else world.distance())
            world.draw(views)
            steps += 1
    return steps / (time.perf_counter() - begin)


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 5.0
    print(f"{'steps/s':12}" + "".join(f"{name:>22}" for name in VARIANTS))
    for level in LEVELS:
        speeds = [steps_per_second(level, labelled=labelled, views=views, seconds=seconds) for labelled, views in VARIANTS.values()]
        print(f"{level:12}" + "".join(f"{speed:22.0f}" for speed in speeds))


if __name__ == "__main__":
    main()
