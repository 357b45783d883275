"""A plan in words, in JSON, and in a table."""

import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from lert_ds.plan.hardware import known
from lert_ds.plan.memory import fit, largest_micro_batch
from lert_ds.plan.network import network_of
from lert_ds.plan.step import Throughput, estimate
from lert_ds.plan.text import PhasePlan, Plan, as_tree, describe, table
from lert_ds.plan.workload import Workload

Large = Callable[..., Workload]


def plan(work: Workload, gpu: str = "h100", price: float | None = None) -> Plan:
    device = known(gpu)
    network = network_of(device, work.processes, 8, "400gbit")
    step = estimate(work, device, network)
    return Plan(
        work, device, network, fit(work, device), largest_micro_batch(work, device), step,
        Throughput.of(work, device, step),
        (PhasePlan(2_000_000, work.batch_size, work.length, step.seconds),), price,
    )  # fmt: skip


def test_days_and_hours_follow_from_the_step(large: Large) -> None:
    said = plan(large())
    assert said.days == pytest.approx(2e6 * said.step.seconds / 86_400)
    assert said.gpu_hours == pytest.approx(said.days * 24 * 8)


def test_the_text_has_every_part(large: Large) -> None:
    text = describe(plan(large(), price=2.0))
    for word in (
        "8 h100 processes", "NVLink", "1,024 instances of 512", "ZeRO stage 1", "weights 0.61",
        "fits in the 74.5 GiB", "micro-batch", "products", "communication", "exposed", "optimizer",
        "tokens/s", "MFU", "2,000,000 steps", "GPU-hours", "cost",
    ):  # fmt: skip
        assert word in text, word
    assert "cost" not in describe(plan(large()))
    assert "8 nodes by" in describe(plan(large(processes=64)))
    assert "1 h100 process\n" in describe(plan(large(processes=1)))


def test_what_does_not_fit_says_so_and_what_to_do(large: Large) -> None:
    text = describe(plan(large(parameters=10**11)))
    assert "DOES NOT FIT" in text
    assert "none fits: a higher ZeRO stage" in text


def test_offload_shows_the_host(large: Large) -> None:
    assert "on the host" in describe(plan(large(offload_optimizer=True)))


def test_the_json_adds_up(large: Large) -> None:
    said = plan(large(), price=2.0)
    tree = json.loads(json.dumps(as_tree(said)))
    seconds = dict(tree["step_seconds"])
    total = seconds.pop("total")
    assert sum(seconds.values()) == pytest.approx(total)
    assert tree["days"] == pytest.approx(said.days)
    assert tree["cost"] == pytest.approx(2 * tree["gpu_hours"])
    assert tree["memory_bytes"]["peak"] == said.fit.peak
    assert tree["fits"] is True
    assert tree["communication"]["sent_bytes"] > 0
    assert "cost" not in as_tree(plan(large()))


def test_the_table_scales_from_its_first_row(large: Large) -> None:
    few = plan(large(), price=3.0)
    many = plan(large(processes=64, micro_batch_size=16, accumulation=1), price=3.0)
    lines = table([few, many]).splitlines()
    assert len(lines) == 4
    assert "100.0%" in lines[2]
    share = few.work.processes / many.work.processes * few.step.seconds / many.step.seconds
    assert f"{share:.1%}" in lines[3]
    assert f"{many.gpu_hours * 3:,.0f}" in lines[3]
    assert "16 × 1" in lines[3]
    assert len({len(line) for line in lines}) == 1


def test_a_row_that_does_not_fit_is_marked(large: Large) -> None:
    work = replace(large(), micro_batch_size=128, accumulation=1)
    assert "(too much)" in table([plan(work, "rtx4090")])


def test_phases_are_told_where_there_are_several(large: Large) -> None:
    said = plan(large())
    first = PhasePlan(1_800_000, 4096, 128, 0.1)
    both = replace(said, phases=(first, *said.phases))
    assert "1,800,000 of 4,096 × 128: 100.0 ms each" in describe(both)
    assert both.days == pytest.approx(said.days + 180_000 / 86_400)
    assert both.steps == 3_800_000
    assert "of these" not in describe(said)
