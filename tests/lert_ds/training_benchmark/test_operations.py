import json
from pathlib import Path

import pytest
import torch

from lert_ds.training_benchmark.operations import KINDS, LONGEST, kind_of, look


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::mm", "matrix products"),
        ("aten::addmm", "matrix products"),
        ("nvjet_tst_256x152_64x4_1x2_h_bz_coopA_NNT", "matrix products"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n", "matrix products"),
        ("void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel", "attention"),
        ("lert_ds_cpu_55c5cac5e514::attention_backward", "attention"),
        ("aten::bmm", "attention"),
        ("aten::_softmax_backward_data", "attention"),
        ("aten::_log_softmax", "loss"),
        ("ncclDevKernel_AllReduce_Sum_bf16_RING_LL", "gradient sync"),
        ("gloo:all_reduce", "gradient sync"),
        ("void multi_tensor_apply_kernel<adam>", "optimizer"),
        ("Memcpy HtoD (Pinned -> Device)", "copies"),
        ("aten::copy_", "copies"),
        ("triton_poi_fused_add_gelu_3", "element-wise"),
        ("aten::native_layer_norm", "element-wise"),
    ],
)
def test_kinds(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_what_takes_most_comes_first(tmp_path: Path) -> None:
    left = torch.randn(400, 400)

    def steps() -> None:
        for _ in range(20):
            torch.mm(left, left)
        left.add(1.0)

    trace = tmp_path / "deep/trace.json"
    seen = look(steps, torch.device("cpu"), trace)
    assert seen.longest[0][0] == "aten::mm"
    assert len(seen.longest) <= LONGEST
    assert seen.kinds["matrix products"] > 0.5
    assert set(seen.kinds) <= set(KINDS)
    assert sum(seen.kinds.values()) == pytest.approx(1.0)
    assert json.loads(trace.read_text())["traceEvents"]
