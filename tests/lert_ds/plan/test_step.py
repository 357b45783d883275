"""A step adds up, grows with what it should, and matches a step by hand."""

from collections.abc import Callable
from dataclasses import fields, replace

import pytest

from lert_ds.plan.hardware import known
from lert_ds.plan.network import Network, network_of
from lert_ds.plan.step import Step, Throughput, estimate, optimizer_bytes
from lert_ds.plan.workload import Workload

Large = Callable[..., Workload]
H100 = known("h100")


def step(work: Workload, interconnect: str | None = "8x400gbit") -> Step:
    return estimate(work, H100, network_of(H100, work.processes, 8, interconnect))


def test_the_parts_add_up(large: Large) -> None:
    for work in (large(), large(stage=3), large(stage=2, data_workers=0), large(precision="fp32")):
        said = step(work)
        parts = [getattr(said, field.name) for field in fields(said) if field.name != "sent"]
        assert sum(parts) == pytest.approx(said.seconds)
        assert min(parts) >= 0


def test_bytes_of_an_update(large: Large) -> None:
    by_hand = {
        ("adamw", "bf16"): 16 + 8 + 16 + 12,
        ("adamw", "fp32"): 16 + 8 + 16,
        ("lion", "fp32"): 8 + 8 + 16,
    }
    for (optimizer, precision), expected in by_hand.items():
        assert optimizer_bytes(large(optimizer=optimizer, precision=precision)) == expected


def test_an_update_reads_and_writes_its_share(large: Large) -> None:
    whole = step(large(stage=0)).optimizer
    assert whole == pytest.approx(325.6e6 * 52 / H100.memory_rate())
    assert step(large(stage=1)).optimizer == pytest.approx(whole / 8)


def test_accumulation_spares_communication_and_updates(large: Large) -> None:
    once, four = step(large(accumulation=1)), step(large(accumulation=4))
    assert four.compute == pytest.approx(4 * once.compute)
    assert four.communication == pytest.approx(once.communication)
    assert four.seconds < 4 * once.seconds
    second = step(large(accumulation=4, stage=2, overlap=False))
    assert second.communication > 3 * step(large(accumulation=1, stage=2)).communication


def test_a_small_micro_batch_waits_for_its_host(large: Large) -> None:
    tiny = large(micro_batch_size=1, accumulation=1)
    assert step(tiny).launch > step(large(accumulation=1)).launch
    assert step(replace(tiny, cuda_graphs=True)).launch == 0.0


def test_data_is_masked_beside_the_step_where_workers_do_it(large: Large) -> None:
    assert step(large()).data == 0.0
    alone = step(large(data_workers=0, accumulation=1)).data
    assert alone == pytest.approx(32 * 134.8e-6)


def test_offload_is_paid_for_on_the_way_and_on_the_host(large: Large) -> None:
    assert step(large(offload_optimizer=True)).optimizer > 10 * step(large()).optimizer
    third = large(stage=3, offload_parameters=True)
    assert step(third).communication > step(large(stage=3)).communication


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_slower_network_never_helps(large: Large, stage: int) -> None:
    work = large(stage=stage, processes=64, micro_batch_size=16, accumulation=1)
    times = [step(work, speed).seconds for speed in ("25gbit", "100gbit", "400gbit", "8x400gbit")]
    assert times == sorted(times, reverse=True)
    assert times[0] > times[-1]


def test_throughput_is_that_of_the_step(large: Large) -> None:
    work = large()
    said = step(work)
    speed = Throughput.of(work, H100, said)
    assert speed.tokens_per_second == pytest.approx(1024 * 512 / said.seconds)
    assert 0 < speed.mfu < speed.matrix_share < 1
    assert speed.mfu / speed.matrix_share == pytest.approx(790 / 989)


def test_one_device_needs_no_network(large: Large) -> None:
    alone = estimate(large(processes=1), H100, Network(1, 8, 1.0, 0.0, 1.0))
    assert alone.communication == 0.0
