"""What a run's cache of its teachers' answers holds, what it cannot be, and how it is opened."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from distill.distillation_config import DistillationConfig
from distill.features import Source, sources_of, tap_feature
from distill.teacher_cache import Kind, Layout, TeacherCache
from lert_ds import distributed, model_dir
from lert_ds.config import differences
from lert_ds.configuration_lert import LertConfig
from lert_ds.errors import ConfigError, UserError
from lert_ds.files import sha256_of, sweep, write_json
from lert_ds.train.peers import Peers
from lert_ds.training_data import DataFacts

CacheLogits = Literal["auto", Kind]
DEFAULT_TOP_K = 64
"""Largest logits kept of a head."""
_HOTTEST = 2.0
"""Up to this temperature the 64 largest logits give nearly the gradient of all (cosine 0.98 at 2,
0.997 at 1); at 4 it is 0.5, at 8 a quarter, since most of the mass lies in the rest."""

FORMAT = 1
IDENTITY = "cache.json"

_WHY_NOT = {
    "task": "a task's examples are few and its teacher is asked in no time; leave it out",
    "teacher_partitioned": "a teacher in pieces has to be asked by all processes at once, and each "
    "would read when it can; leave one of the two out",
    "train.lengths": "rows that grow longer are masked anew; leave one of the two out",
}


def kind_of(logits: CacheLogits, distillation: DistillationConfig) -> Kind:
    """Return how logits are kept: where nothing is said, as the loss needs them."""
    if logits != "auto":
        return logits
    sharp = distillation.temperature <= _HOTTEST
    return "top" if sharp and not _needs_all(distillation) else "bytes"


def _needs_all(distillation: DistillationConfig) -> str | None:
    """Return the key whose loss needs all logits, where there is one."""
    keys = {
        "kd_loss_type = mse": distillation.kd_loss_type == "mse",
        "temperature_scheduler": distillation.temperature_scheduler != "none",
        "probability_shift": distillation.probability_shift,
    }
    return next((key for key, is_set in keys.items() if is_set), None)


def refuse_cache(
    distillation: DistillationConfig, logits: CacheLogits, settings: Mapping[str, bool]
) -> None:
    """Refuse what a cache cannot go with.

    Args:
        distillation: The terms of the loss.
        logits: How they are to be kept.
        settings: Other keys to whether they are set.

    Raises:
        ValueError: names the key, and why.
    """
    for key, is_set in settings.items():
        if is_set:
            raise ValueError(f"teacher_cache and {key} are both given: {_WHY_NOT[key]}")
    if logits == "top" and (needs := _needs_all(distillation)) is not None:
        raise ValueError(
            f"distillation.{needs} needs all logits of the teacher, and teacher_cache_logits = top "
            "keeps the largest; set teacher_cache_logits=bytes"
        )


def layout_of(
    distillation: DistillationConfig,
    teachers: Sequence[LertConfig],
    heads: Mapping[str, int],
    kind: Kind,
    top_k: int,
) -> Layout:
    """Return what is kept of each masked instance.

    Args:
        distillation: With explicit matches.
        teachers: Their shapes.
        heads: Head that is asked to its classes.
        kind: How logits are kept.
        top_k: Largest logits of a head.
    """
    sources = []
    for number, teacher in enumerate(teachers):
        wanted: dict[str, set[int]] = {}
        for match in distillation.intermediate_matches:
            if match.teacher == number:
                layers = match.layer_T if isinstance(match.layer_T, tuple) else (match.layer_T,)
                of_feature = wanted.setdefault(tap_feature(match.feature, match.loss), set())
                of_feature.update(layer for layer in layers if layer is not None)
        sources.append({source: _width(teacher, source) for source in sorted(sources_of(wanted))})
    kept = top_k if kind == "top" else 0
    return Layout((dict(heads),) * len(teachers), tuple(sources), kind, kept)


def _width(teacher: LertConfig, source: Source) -> int:
    part, layer = source
    if part == "hidden":
        return int(teacher.hidden_size)
    return teacher.heads_of(layer) * int(teacher.hidden_size // teacher.num_attention_heads)


def instance_bytes(layout: Layout, facts: DataFacts, masked_share: float) -> float:
    """Return the bytes of an instance without padding."""
    return layout.instance_bytes(masked_share * facts.length, facts.length)


def describe(layout: Layout, masks: int, facts: DataFacts, masked_share: float) -> str:
    """Return what the cache will hold, and its size."""
    logits = {
        "top": f"the largest {layout.top_k} logits of a head",
        "bytes": "all logits, in 8 bits",
        "exact": "all logits, exactly",
    }[layout.kind]
    layers = sum(map(len, layout.sources))
    features = f" and {layers} features a token" if layers else ""
    size = instance_bytes(layout, facts, masked_share)
    times = "1 mask" if masks == 1 else f"{masks} masks"
    if facts.instances is None:
        return f"{logits}{features}: {size / 2**10:,.0f} KiB an instance, {times} each"
    whole = size * facts.instances * masks
    return (
        f"{logits}{features}: {size / 2**10:,.0f} KiB an instance, {facts.instances:,} instances, "
        f"{times} each: up to {whole / 2**30:.2f} GiB"
    )


def open_cache(
    folder: Path,
    layout: Layout,
    teachers: Sequence[str],
    settings: Mapping[str, Any],
    instances: int,
    needed_bytes: float,
    peers: Peers,
) -> TeacherCache:
    """Return the cache in a folder, new or found; all processes must call it.

    Args:
        folder: Of the cache.
        layout: What is kept.
        teachers: Model folders or hub names.
        settings: What else the answers depend on.
        instances: Of the corpus.
        needed_bytes: What it may grow to.
        peers: The processes.

    Raises:
        UserError: it is another's, or damaged, or the disk is too small.
    """
    mistake: UserError | None = None
    leads = peers.leader(folder) == distributed.rank()
    if leads:
        try:
            claim(folder, {**settings, **_identity(layout, teachers)})
        except UserError as error:
            mistake = error
    peers.agree(mistake)
    cache = TeacherCache(folder, layout, settings["masks"], instances)
    try:
        cache.verify(distributed.local_rank(), distributed.local_world_size())
        if leads:
            refuse_full_disk(folder, needed_bytes)
    except ConfigError as error:
        mistake = error
    peers.agree(mistake)
    return cache


def _identity(layout: Layout, teachers: Sequence[str]) -> dict[str, Any]:
    found = {
        "logits": layout.kind,
        "top_k": layout.top_k,
        "heads": layout.heads,
        "features": [[f"{part}.{layer}" for part, layer in of] for of in layout.sources],
        "teachers": [_fingerprint(source) for source in teachers],
    }
    tree: dict[str, Any] = json.loads(json.dumps(found))  # as it is read again
    return tree


def _fingerprint(source: str) -> dict[str, str]:
    """Return the SHA-256 of a model folder's weights and configuration, by name."""
    folder = model_dir.resolve(source)
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    return {name: sha256_of(folder / name) for name in (*names, "config.json")}


def claim(folder: Path, identity: Mapping[str, Any]) -> None:
    """Make a folder the cache of `identity`, or find that it is; the main process calls it.

    Raises:
        ConfigError: it holds the answers of another teacher, about another corpus or masking, or
            no answers at all but something else.
    """
    path = folder / IDENTITY
    wanted = {"format": FORMAT, **identity}
    if not path.exists():
        if folder.exists() and not (folder.is_dir() and all(_hidden(p) for p in folder.iterdir())):
            raise ConfigError(
                f"teacher_cache = {folder}: it holds something else; name a folder of its own"
            )
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, wanted, exact=True)
        return
    found = _read_identity(path)
    if others := differences(found, wanted):
        raise ConfigError(
            f"teacher_cache = {folder}: it was made otherwise ({'; '.join(others)}); name another "
            "folder, or delete this one"
        )
    sweep(folder)


def _hidden(path: Path) -> bool:
    return path.name.startswith(".")  # names that processes see each other by


def _read_identity(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON ({error}); delete the folder") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: not the identity of a cache; delete the folder")
    return found


def refuse_full_disk(folder: Path, needed_bytes: float) -> None:
    """Refuse a cache that its disk has no room for.

    Raises:
        ConfigError: says both sizes.
    """
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    there = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    free = shutil.disk_usage(place).free + there
    if needed_bytes > free:
        raise ConfigError(
            f"teacher_cache = {folder}: it would grow to {needed_bytes / 2**30:.1f} GiB, and "
            f"{free / 2**30:.1f} GiB are free; leave matches out, say teacher_cache_logits=top, or "
            "name another disk"
        )
