"""Operations and memory: the formulas against counts of what torch really does and keeps."""

import warnings

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lert_ds.arithmetic import Shape, flops_per_token, measured_peak_flops, memory_per_process
from lert_ds.configuration_lert import LertConfig
from lert_ds.labels import LTP_TAGS
from lert_ds.modeling_lert import LertForPreTraining

LARGE = Shape(24, 1024, 1024, 4096, 21_128)
BATCH, LENGTH, EVERY = 2, 128, 8


def tiny(layers: int, attention: str, dtype: torch.dtype = torch.float32) -> LertForPreTraining:
    config = LertConfig(
        vocab_size=1000,
        hidden_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=256,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        tag_sets={task: list(tags) for task, tags in LTP_TAGS.items()},
        attn_implementation=attention,
    )
    return LertForPreTraining(config).to(dtype)


def forward(model: LertForPreTraining) -> torch.Tensor:
    """Return a loss that reaches every head."""
    ids = torch.randint(5, 1000, (BATCH, LENGTH))
    output = model(input_ids=ids, masked_positions=torch.arange(0, BATCH * LENGTH, EVERY))
    total: torch.Tensor = output.logits.float().sum()
    return total + sum(logits.float().sum() for logits in output.tag_logits.values())


@pytest.mark.parametrize("layers", [1, 3])
def test_operations_are_those_that_torch_counts(layers: int) -> None:
    # The counter does not know the fused attention of a CPU: eager has the same two products.
    model = tiny(layers, "eager")
    with FlopCounterMode(display=False) as counter:
        forward(model).backward()
    counted = counter.get_total_flops() / (BATCH * LENGTH)
    formula = flops_per_token(Shape(layers, 64, 64, 256, 1000), LENGTH, 1 / EVERY)
    assert formula == pytest.approx(counted, rel=0.02)  # the tag heads are not in the formula


def test_operations_of_lert_large() -> None:
    # 6 · (24 · 12 · 1024² + 0.15 · (1024² + 1024 · 21128)) + 12 · 24 · 1024 · 512, by hand
    expected = 6 * (301_989_888 + 0.15 * 22_683_648) + 150_994_944
    assert flops_per_token(LARGE, 512, 0.15) == pytest.approx(expected, rel=1e-12)


def kept_bytes(layers: int, dtype: torch.dtype, checkpointing: bool) -> int:
    """Return the bytes that a forward pass keeps for the backward pass, parameters apart."""
    model = tiny(layers, "sdpa", dtype).train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage
        return tensor

    with (
        warnings.catch_warnings(),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        warnings.simplefilter("ignore")
        loss = forward(model)
    size = sum(storage.nbytes() for storage in kept.values())
    assert loss.requires_grad
    return size


def estimated(layers: int, precision: str, checkpointing: bool) -> float:
    return memory_per_process(
        Shape(layers, 64, 64, 256, 1000),
        0,
        stage=0,
        precision=precision,
        processes=1,
        micro_batch_size=BATCH,
        length=LENGTH,
        masked_share=1 / EVERY,
        checkpointing=checkpointing,
    ).activations


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)]
)
def test_activations_of_a_layer_are_what_torch_keeps(
    precision: str, dtype: torch.dtype, checkpointing: bool
) -> None:
    more = 4  # layers, so that embeddings and heads, which are in both, fall out
    kept = kept_bytes(1 + more, dtype, checkpointing) - kept_bytes(1, dtype, checkpointing)
    told = estimated(1 + more, precision, checkpointing) - estimated(1, precision, checkpointing)
    if not checkpointing:  # dropout is off here: take its masks, 2 bytes a hidden unit, away
        told -= more * 2 * BATCH * LENGTH * 64
    # Beside it SDPA keeps 4 bytes a head and token.
    assert kept == pytest.approx(told, rel=0.02)


def states(stage: int, precision: str, processes: int, **offload: bool) -> tuple[float, ...]:
    memory = memory_per_process(
        LARGE, 1000, stage=stage, precision=precision, processes=processes, micro_batch_size=1,
        length=8, masked_share=0.0, **offload,
    )  # fmt: skip
    return memory.weights, memory.gradients, memory.optimizer, memory.host


@pytest.mark.parametrize(
    ("stage", "precision", "expected"),
    [
        (0, "fp32", (4000, 4000, 8000, 0)),
        (0, "bf16", (2000, 2000, 12000, 0)),
        (0, "fp16", (2000, 2000, 12000, 0)),
        (0, "autocast", (6000, 4000, 8000, 0)),
        (1, "fp32", (4000, 4000, 2000, 0)),
        (1, "bf16", (2000, 2000, 3000, 0)),
        (2, "fp32", (4000, 1000, 2000, 0)),
        (2, "bf16", (2000, 500, 3000, 0)),
        (3, "fp32", (1000, 1000, 2000, 0)),
        (3, "bf16", (500, 500, 3000, 0)),
    ],
)
def test_states_are_divided_by_four_processes_as_the_stage_says(
    stage: int, precision: str, expected: tuple[float, ...]
) -> None:
    assert states(stage, precision, 4) == expected


def test_offload_moves_the_optimizer_and_the_weights_to_the_host() -> None:
    assert states(2, "bf16", 4, offload_optimizer=True) == (2000, 500, 0, 4000)
    both = states(3, "bf16", 4, offload_optimizer=True, offload_parameters=True)
    assert both == (0, 500, 0, 4500)


def test_the_total_leaves_out_the_host() -> None:
    memory = memory_per_process(
        LARGE, 1000, stage=2, precision="bf16", processes=4, micro_batch_size=8, length=512,
        masked_share=0.15, offload_optimizer=True,
    )  # fmt: skip
    assert memory.host == 4000
    assert memory.device_total == 2000 + 500 + memory.activations


def test_logits_are_counted_at_the_masked_positions() -> None:
    def activations(share: float) -> float:
        return memory_per_process(
            LARGE, 0, stage=0, precision="bf16", processes=1, micro_batch_size=8, length=512,
            masked_share=share,
        ).activations  # fmt: skip

    assert activations(0.15) - activations(0.0) == pytest.approx(8 * 8 * 512 * 0.15 * 21_128)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_peak_is_measured(dtype: torch.dtype) -> None:
    peak = measured_peak_flops(torch.device("cpu"), dtype, repeats=1)
    assert 1e7 < peak < 1e16
