"""Where a cycle's time goes: kernels, the device's busy time, and the slowest operations.

python benchmarks/gpu_profile.py [key=value ...]    # of train.py, as for step_time.py
"""

from __future__ import annotations

import sys
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.step_time import DEFAULTS, WARM_UP, cycle, loop, now
from core.runtime import Runtime
from engine.config import compose, plain


def main(overrides: list[str]) -> None:
    config = compose([*DEFAULTS, *overrides])
    runtime = Runtime.of(config)
    training, steps = loop(plain(config), runtime), config.source.student_steps
    for _ in range(WARM_UP):
        cycle(training, steps)
    now(runtime)
    cuda = runtime.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as profiled:
        cycle(training, steps)
        now(runtime)
    events = [e for e in profiled.events() or [] if e.device_type.name == "CUDA"]
    if events:
        busy = sum(e.self_device_time_total for e in events)
        span = max(e.time_range.end for e in events) - min(e.time_range.start for e in events)
        print(f"{len(events)} kernels, device busy for {busy / 1e3:.1f} of {span / 1e3:.1f} ms")
    averages = profiled.key_averages()
    for kind in ["cuda", "cpu"] if cuda else ["cpu"]:  # the host may be slower
        order = f"self_{kind}_time_total"
        print(averages.table(sort_by=order, row_limit=20, max_name_column_width=60))


if __name__ == "__main__":
    main(sys.argv[1:])
