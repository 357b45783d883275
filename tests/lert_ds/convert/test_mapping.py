"""The table of names: complete, one to one, and what it says of what does not fit it."""

from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForPreTraining

from lert_ds.architecture import SIZES
from lert_ds.configuration_lert import LertConfig
from lert_ds.convert.mapping import (
    Names,
    entries,
    match_parameters,
    match_variables,
    tasks_of,
)
from lert_ds.errors import ModelError
from lert_ds.labels import LTP_TAGS
from lert_ds.modeling_lert import LertForPreTraining

NAMES = Names("model.ckpt", "lert_config.json")
POOLER = {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}

PUBLISHED = """
bert/embeddings/word_embeddings bert/embeddings/position_embeddings
bert/embeddings/token_type_embeddings bert/embeddings/LayerNorm/gamma bert/embeddings/LayerNorm/beta
bert/pooler/dense/kernel bert/pooler/dense/bias
cls/predictions/transform/dense/kernel cls/predictions/transform/dense/bias
cls/predictions/transform/LayerNorm/gamma cls/predictions/transform/LayerNorm/beta
cls/predictions/output_bias
cls/predictions/output_pos_layer/kernel cls/predictions/output_pos_layer/bias
cls/predictions/output_ner_layer/kernel cls/predictions/output_ner_layer/bias
cls/predictions/output_dep_layer/kernel cls/predictions/output_dep_layer/bias
""".split()
PUBLISHED_OF_A_LAYER = """
attention/self/query/kernel attention/self/query/bias attention/self/key/kernel
attention/self/key/bias attention/self/value/kernel attention/self/value/bias
attention/output/dense/kernel attention/output/dense/bias
attention/output/LayerNorm/gamma attention/output/LayerNorm/beta
intermediate/dense/kernel intermediate/dense/bias output/dense/kernel output/dense/bias
output/LayerNorm/gamma output/LayerNorm/beta
""".split()
"""The names of `src/modeling.py` and `src/run_pretraining.py`, by hand."""


def released(size: str) -> LertConfig:
    numbers = SIZES[size]
    return LertConfig(
        vocab_size=21128,
        hidden_size=numbers["hidden_size"],
        num_hidden_layers=numbers["layers"],
        num_attention_heads=numbers["heads"],
        intermediate_size=numbers["intermediate_size"],
        tag_sets={task: list(tags) for task, tags in LTP_TAGS.items()},
    )


@pytest.mark.parametrize("size", ["large", "base", "small"])
def test_every_weight_has_its_one_variable(size: str) -> None:
    config = released(size)
    table = entries(config)
    with torch.device("meta"):
        model = LertForPreTraining(config)
        bert = BertForPreTraining(BertConfig())  # who reads a pooler from the same folder
    wanted = {
        name: tuple(tensor.shape)
        for name, tensor in model.state_dict().items()
        if name not in model.all_tied_weights_keys
    }
    found = {entry.parameter: entry.parameter_shape for entry in table}
    pooler = (config.hidden_size, config.hidden_size)
    assert found == wanted | {
        "bert.pooler.dense.weight": pooler,
        "bert.pooler.dense.bias": pooler[:1],
    }
    assert bert.state_dict().keys() >= POOLER
    layers = {
        f"bert/encoder/layer_{number}/{name}"
        for number in range(config.num_hidden_layers)
        for name in PUBLISHED_OF_A_LAYER
    }
    assert {entry.variable for entry in table} == {*PUBLISHED, *layers}
    assert len(table) == len(found) == 18 + 16 * config.num_hidden_layers


def test_kernels_alone_are_transposed(tiny_config: Any) -> None:
    turned = {entry.variable for entry in entries(tiny_config()) if entry.transposed}
    assert turned == {e.variable for e in entries(tiny_config()) if e.variable.endswith("kernel")}
    shapes = {entry.variable: entry.shape for entry in entries(tiny_config())}
    assert shapes["bert/encoder/layer_1/intermediate/dense/kernel"] == (12, 20)
    assert shapes["cls/predictions/output_ner_layer/kernel"] == (12, 13)
    assert shapes["bert/embeddings/word_embeddings"][1] == 12


def shapes_of(config: LertConfig) -> dict[str, tuple[int, ...]]:
    return {entry.variable: entry.shape for entry in entries(config)}


def test_optimizer_and_next_sentence_are_left_out_by_name(tiny_config: Any) -> None:
    more = {
        "bert/pooler/dense/kernel/adam_m": (12, 12),
        "bert/pooler/dense/kernel/adam_v": (12, 12),
        "cls/predictions/output_bias/lamb_m": (17,),
        "bert/embeddings/word_embeddings/Adam_1": (17, 12),
        "beta1_power": (),
        "global_step": (),
        "cls/seq_relationship/output_weights": (2, 12),
        "cls/seq_relationship/output_bias": (2,),
    }
    config = tiny_config()
    match = match_variables(shapes_of(config) | more, config, NAMES)
    assert match.left_out.keys() == more.keys()
    assert {why.split(",")[0] for why in match.left_out.values()} == {
        "state of the optimizer",
        "next-sentence head",
    }
    assert match.entries == entries(config)
    assert match.missing == ()


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["electra/embeddings/word_embeddings", "generator_predictions/dense/bias"], "an ELECTRA"),
        (["bert/encoder/transformer/group_0/inner_group_0/ffn_1/dense/bias"], "an ALBERT"),
        (["model/layer-0/.ATTRIBUTES/VARIABLE_VALUE"], "a TensorFlow 2 object"),
        (["output_weights"], "a fine-tuned BERT"),
        (["bert/encoder/layer_0/attention/self/relative_positions"], "another architecture"),
        (["model/transformer/r_w_bias"], "another architecture"),
        (["bert/encoder/layer_0/attention/self/query/kernal"], "another architecture"),
    ],
)
def test_another_architecture_is_refused(names: list[str], told: str, tiny_config: Any) -> None:
    found = shapes_of(tiny_config()) | dict.fromkeys(names, (3,))
    with pytest.raises(ModelError, match=told) as error:
        match_variables(found, tiny_config(), NAMES)
    assert str(error.value).startswith("model.ckpt: ")
    assert names[0] in str(error.value)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_hidden_layers": 3}, r"num_hidden_layers = 3, but model.ckpt has 2 layers"),
        ({"num_hidden_layers": 1}, r"num_hidden_layers = 1, but model.ckpt has 2 layers"),
        (
            {"hidden_size": 24},
            r"hidden_size = 24 would make .* \[17, 24\], .* \[17, 12\]",
        ),
        ({"vocab_size": 18}, r"lert_config.json: vocab_size = 18 would make .*, but in model.ckpt"),
        ({"intermediate_size": 8}, r"intermediate_size = 8 .*\[12, 8\], but .* \[12, 20\]"),
        ({"max_position_embeddings": 99}, r"max_position_embeddings = 99"),
        ({"type_vocab_size": 16}, r"type_vocab_size = 16"),
        ({"tag_sets": {"pos": ["n", "v"]}}, r"is \[12, 28\], but the tag set of pos .* \[12, 2\]"),
    ],
)
def test_a_configuration_that_contradicts_the_weights(
    changes: dict[str, Any], told: str, tiny_config: Any
) -> None:
    found, config = shapes_of(tiny_config()), tiny_config(**changes)
    for task in set(LTP_TAGS) - set(config.tasks):
        found = {name: shape for name, shape in found.items() if f"_{task}_" not in name}
    with pytest.raises(ModelError, match=told):
        match_variables(found, config, NAMES)
    own = {entry.variable: entry for entry in entries(tiny_config())}
    ours = {
        own[name].parameter: own[name].parameter_shape for name in found if name in own
    }  # the same told of a model folder
    with pytest.raises(ModelError):
        match_parameters(ours, config, NAMES)


def test_what_is_missing_is_told_or_refused(tiny_config: Any) -> None:
    config = tiny_config(tag_sets={"pos": list(LTP_TAGS["pos"])})
    whole = shapes_of(config)
    match = match_variables(
        {name: shape for name, shape in whole.items() if "pooler" not in name}, config, NAMES
    )
    assert match.missing == ("pooler", "ner", "dep")
    assert not any(entry.part in match.missing for entry in match.entries)
    lacking = {
        name: shape for name, shape in whole.items() if not name.endswith("pooler/dense/bias")
    }
    with pytest.raises(ModelError, match="no bert/pooler/dense/bias, which"):
        match_variables(lacking, config, NAMES)
    for name in ("bert/embeddings/LayerNorm/beta", "cls/predictions/output_pos_layer/bias"):
        with pytest.raises(ModelError, match=f"no {name}"):
            match_variables({n: s for n, s in whole.items() if n != name}, config, NAMES)
    with pytest.raises(ModelError, match=r"linguistic heads \(pos\) without the MLM head"):
        match_variables(
            {n: s for n, s in whole.items() if "transform" not in n and "output_bias" not in n},
            config,
            NAMES,
        )
    with pytest.raises(ModelError, match=r"no bert/embeddings/word_embeddings, .* and \d+ more"):
        match_variables({}, config, NAMES)


def test_the_tasks_of_a_checkpoint() -> None:
    names = ["cls/predictions/output_dep_layer/kernel", "cls/predictions/output_pos_layer/kernel"]
    assert tasks_of([*names, "cls/predictions/output_bias"]) == ("dep", "pos")


def test_a_model_folder_of_bert_is_accounted_for(tiny_config: Any) -> None:
    config = tiny_config(tag_sets=None)
    found = {entry.parameter: entry.parameter_shape for entry in entries(config)}
    more = {"classifier.weight": (3, 12), "cls.seq_relationship.weight": (2, 12)}
    match = match_parameters(found | more, config, NAMES)
    assert match.left_out.keys() == more.keys()
    assert match.missing == ("pos", "ner", "dep")
    with pytest.raises(ModelError, match=r"an ALBERT, with albert\.x"):
        match_parameters(found | {"albert.x": ()}, config, NAMES)
