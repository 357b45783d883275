"""How far our losses are from those of TextBrewer's own training, step by step.

Equal first weights, projections and batches, one process, fp32, AdamW without decay or clipping:
what is left is the order of additions, and whatever is wrong. TextBrewer has the logits of every
position and selects, we gather the masked positions first.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from textbrewer_loop import Losses, distiller, train

from distill import matches
from distill.adaptor import PretrainingAdaptor
from distill.distillation_config import DistillationConfig
from distill.objective import DistillationObjective
from distill.teacher import Teacher, load_teacher
from lert_ds import model_dir
from lert_ds.config import parse
from lert_ds.modeling_lert import LertForPreTraining
from lert_ds.objective import Batch
from lert_ds.pretraining_objective import LertLoss, LipConfig
from lert_ds.train import deepspeed_config
from lert_ds.train.engine import Engine
from lert_ds.train.optim import OptimizerConfig

ROOT = Path(__file__).parents[1]
AS_TORCH = OptimizerConfig(weight_decay=0, bias_correction=True, epsilon=1e-8)
"""AdamW with torch's defaults; no decay, which TextBrewer has for projections' biases alone."""


def losses_of_both(
    teacher: Path,
    student: Path,
    batches: Sequence[Batch],
    distillation: dict[str, Any],
    learning_rate: float,
) -> tuple[Losses, Losses]:
    """Return the losses of TextBrewer's training and of ours, a step each batch.

    They are `total` and its parts: `kd`, `hard`, and the mean of the matches of each loss. There
    must be a process group; both models must be free of dropout and of linguistic heads.

    Args:
        teacher: A model folder.
        student: The same.
        batches: All of one size.
        distillation: TextBrewer's keys, matches with explicit layers and projections.
        learning_rate: Of every step.
    """
    objective = make_objective(teacher, student, distillation, len(batches))
    theirs = distiller(teacher, student, distillation)
    projections = [projection for projection in theirs.projs if projection is not None]
    for ours, projection in zip(objective.projections, projections, strict=True):
        projection.load_state_dict(ours.get_submodule("inner").state_dict())
    train(theirs, batches, len(batches), learning_rate=learning_rate, largest_norm=-1)
    return (
        [in_our_terms(losses, theirs) for losses in theirs.losses],
        train_ours(objective, batches, learning_rate),
    )


def make_objective(
    teacher: Path, student: Path, distillation: dict[str, Any], steps: int
) -> DistillationObjective:
    """Return our objective of two model folders."""
    of_teacher = load_teacher(str(teacher), teacher)
    of_student, _ = model_dir.load(student, LertForPreTraining)
    config = parse(DistillationConfig, distillation, "parity")
    return DistillationObjective(
        of_student,
        [Teacher(str(teacher), of_teacher, 1.0)],
        matches.resolve(config, of_student.config, [of_teacher.config]),
        PretrainingAdaptor(LertLoss(LipConfig(tasks=()), steps), {}),
        steps,
    )


def train_ours(
    objective: DistillationObjective, batches: Sequence[Batch], learning_rate: float
) -> Losses:
    """Train an objective under the engine and return its losses."""
    size = len(batches[0].input_ids)
    tree = deepspeed_config.resolve(
        ROOT / "ds_configs/zero1_fp32.json",
        {
            "train_batch_size": size,
            "train_micro_batch_size_per_gpu": size,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": 0.0,
        },
    )
    engine = Engine(objective, AS_TORCH, tree)
    engine.train()
    engine.set_learning_rate(learning_rate)
    found: Losses = []
    for step, batch in enumerate(batches):
        output = engine(batch, step=step)
        engine.backward(output.loss)
        engine.step()
        values = {name: (m[0] / m[1]).item() for name, m in output.metrics.items()}
        parts = {name: value for name, value in values.items() if name.startswith("match/")}
        named = {"total": values["loss"], "kd": values["kd/mlm"], "hard": values["hard/loss"]}
        found.append({**named, **parts})
    return found


def in_our_terms(losses: Mapping[str, float], theirs: Any) -> dict[str, float]:
    """Return TextBrewer's losses of a step by our names."""
    named = {
        "total": losses["total"],
        "kd": losses["unweighted_kd_loss"],
        "hard": losses["unweighted_hard_label_loss"],
    }
    of_matches = list(losses.values())[2:-1]  # between KD and hard labels, in their order
    kinds = [match.loss for match in theirs.d_config.intermediate_matches]
    for kind in dict.fromkeys(kinds):
        values = [v for v, its_kind in zip(of_matches, kinds, strict=True) if its_kind == kind]
        named[f"match/{kind}"] = sum(values) / len(values)
    return named


def differences(theirs: Losses, ours: Losses) -> list[dict[str, float]]:
    """Return |difference| of each loss in each step."""
    return [
        {name: abs(value - b[name]) for name, value in a.items()}
        for a, b in zip(theirs, ours, strict=True)
    ]
