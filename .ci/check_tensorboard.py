#!/usr/bin/env python3
"""Reads the event files of a run with TensorBoard's own package and compares them with metrics.jsonl.

    python3 check_tensorboard.py RUN
"""

import json
import math
import sys
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def figures(record, prefix=""):
    """All numbers of an epoch by name."""
    for name, value in record.items():
        if isinstance(value, dict):
            yield from figures(value, "" if name == "means" else f"{name}/")
        elif isinstance(value, (int, float)) and name not in ("epoch", "step"):
            yield prefix + name, value


def main():
    run = Path(sys.argv[1])
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    tags = set(events.Tags()["scalars"])
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]

    expected = {}
    for record in records:
        for name, value in figures(record):
            expected.setdefault(f"epoch/{name}", []).append((record["step"], value))
    assert expected and {tag for tag in tags if tag.startswith("epoch/")} == set(expected), tags
    for tag, points in expected.items():
        found = [(event.step, event.value) for event in events.Scalars(tag)]
        assert [step for step, _ in found] == [step for step, _ in points], (tag, found)
        assert all(math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-12) for (_, a), (_, b) in zip(found, points)), tag

    steps = [event.step for event in events.Scalars("step/gradient_norm")]
    assert steps == list(range(1, records[-1]["step"] + 1)), steps
    times = [event.wall_time for event in events.Scalars("step/gradient_norm")]
    assert times == sorted(times) and times[0] > 1.7e9, times
    print(f"TensorBoard reads {len(tags)} figures of {len(steps)} steps and {len(records)} epochs as they were written")


main()
