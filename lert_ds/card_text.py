"""The sections of a model card that config.json fills: what it is, its shape, how it is loaded.

Each is a pure function of its content, which may be anybody's: what is not as it should be is left
out.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from lert_ds.card_markdown import (
    Tree,
    as_tree,
    code,
    listed,
    number,
    section,
    shown,
    strings,
    table,
)
from lert_ds.card_run_text import hub_models
from lert_ds.model_origin import Origin, title_of

CITATION = """## Cite

```bibtex
@article{cui2022lert,
  title   = {LERT: A Linguistically-motivated Pre-trained Language Model},
  author  = {Cui, Yiming and Che, Wanxiang and Wang, Shijin and Liu, Ting},
  journal = {arXiv preprint arXiv:2211.05344},
  year    = {2022}
}
```
"""
_TASK_NAMES = {"pos": "part of speech", "ner": "named entities", "dep": "dependency relations"}


def what_it_is(config: Tree, run: Tree | None, origin: Origin) -> str:
    """Return the paragraph below the title."""
    names = [_shown_model(name, run) for name in origin.models]
    text = origin.sentence
    for place, name in enumerate(names):
        text = text.replace(f"{{{place}}}", name)
    tasks = [_TASK_NAMES.get(task, code(task)) for task in tag_sets(config)]
    if tasks and architecture_of(config).endswith("ForPreTraining"):
        text += (
            " Beside the head that fills [MASK] it has heads that tag the masked words: "
            f"{', '.join(tasks)}."
        )
    if run is not None and (before := number(as_tree(run.get("parameters")).get("before"))):
        text += f" It had {before:,} parameters before."
    return f"{text}\n"


def shape(config: Tree, parameters: int | None) -> str:
    """Return the table of the sizes."""
    rows = [("class", code(architecture_of(config)))]
    if parameters is not None:
        rows.append(("parameters", f"{parameters:,}"))
    rows.append(("layers", shown(config.get("num_hidden_layers"))))
    rows.append(("hidden size", shown(config.get("hidden_size"))))
    for uneven, even, name in (
        ("layer_attention_heads", "num_attention_heads", "attention heads"),
        ("layer_intermediate_sizes", "intermediate_size", "feed-forward neurons"),
    ):
        sizes = config.get(uneven)
        if isinstance(sizes, list) and all(number(size) is not None for size in sizes):
            rows.append((name, f"{listed(sizes)} by layer"))
        else:
            rows.append((name, shown(config.get(even))))
    rows.append(("vocabulary", f"{shown(config.get('vocab_size'))} word pieces"))
    rows.append(("positions", shown(config.get("max_position_embeddings"))))
    for task, tags in tag_sets(config).items():
        rows.append((f"{task} tags", f"{len(tags)}: {code(' '.join(map(str, tags)))}"))
    labels = as_tree(config.get("id2label"))
    if labels and not tag_sets(config):
        rows.append(("classes", code(", ".join(map(str, labels.values())))))
    return section("Shape", table(("", ""), rows))


def use(config: Tree, address: str | None, pipeline: str) -> str:
    """Return how the model is loaded, and by what; without an address, from a folder."""
    architecture = architecture_of(config)
    auto = next(
        (
            name
            for name, target in as_tree(config.get("auto_map")).items()
            if str(target).rpartition(".")[2] == architecture and str(name).isidentifier()
        ),
        "AutoModel",
    )
    lines = [] if address else ["Where FOLDER is the path of this folder:", ""]
    address = address or "FOLDER"
    lines += [
        "```python",
        f"from transformers import {auto}, AutoTokenizer",
        "",
        f'tokenizer = AutoTokenizer.from_pretrained("{address}", trust_remote_code=True)',
        f'model = {auto}.from_pretrained("{address}", trust_remote_code=True)',
        "```",
        "",
        "`trust_remote_code` runs the two Python files of the folder. Where `lert-ds` is",
        "installed, `import lert_ds.modeling_lert` and leave it out.",
    ]
    pruned = config.get("layer_attention_heads") or config.get("layer_intermediate_sizes")
    if pruned:
        lines.append("Its layers differ in shape, so plain `BertModel` does not load it.")
    elif pipeline == "fill-mask":
        lines.append("Plain `BertModel` and `BertForMaskedLM` load it too, without any code.")
    else:
        plain_class = architecture.replace("Lert", "Bert", 1)
        lines.append(f"Plain {code(plain_class)} loads it too, without any code.")
    if pipeline == "fill-mask":
        command = f"    lert-ds predict {address} '他在[MASK]工作了十年。'"
        lines += ["", command]
        if tag_sets(config) and architecture.endswith("ForPreTraining"):
            lines.append(f"    lert-ds predict {address} --tag '他在北京工作了十年。'")
    return section("Use", "\n".join(lines))


def tag_sets(config: Tree) -> Mapping[str, Sequence[Any]]:
    """Return the tasks of the linguistic heads with their tags, in the order of LERT's."""
    found = as_tree(config.get("tag_sets"))
    known = [task for task in _TASK_NAMES if task in found]
    tasks = known + [task for task in found if task not in known]
    return {task: found[task] for task in tasks if isinstance(found[task], list)}


def architecture_of(config: Tree) -> str:
    """Return the name of the model's class, empty where it is none."""
    names = strings(config.get("architectures"))
    return names[0] if names and names[0].isidentifier() else ""


def _shown_model(name: str, run: Tree | None) -> str:
    return code(name if name in hub_models(run) else title_of(name))
