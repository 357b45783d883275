"""The shape of a LERT: BERT's configuration, the size of each layer, and the linguistic tags.

Self-contained (transformers and what it brings only): this file travels inside model folders, so
that they load where this package is not installed.
"""

from huggingface_hub.dataclasses import strict
from transformers import BertConfig

_ORDER = {"pos": 0, "ner": 1, "dep": 2}


@strict
class LertConfig(BertConfig):  # type: ignore[misc]
    r"""`BertConfig`, plus what pruning and the linguistic heads need.

    Args:
        layer_attention_heads: Attention heads of each layer, 0 to `num_attention_heads`; None where
            every layer has `num_attention_heads`. A head keeps the size
            `hidden_size / num_attention_heads`, however many are left.
        layer_intermediate_sizes: Feed-forward neurons of each layer, 0 or more; None where every
            layer has `intermediate_size`.
        tag_sets: Task (`pos`, `ner`, `dep`) to its tags; the place of a tag is its class. One
            linguistic head a task; None or empty for none.
    """

    model_type = "lert"

    layer_attention_heads: list[int] | None = None
    layer_intermediate_sizes: list[int] | None = None
    tag_sets: dict[str, list[str]] | None = None

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that have a linguistic head, in one order whatever that of `tag_sets` is.

        Its order is lost in `config.json`, and an optimizer counts on that of the parameters.
        """
        return tuple(sorted(self.tag_sets or {}, key=lambda task: (_ORDER.get(task, 3), task)))

    def heads_of(self, layer: int) -> int:
        """Return how many attention heads layer number `layer` has."""
        heads = self.layer_attention_heads
        return int(self.num_attention_heads if heads is None else heads[layer])

    def intermediate_size_of(self, layer: int) -> int:
        """Return how many feed-forward neurons layer number `layer` has."""
        sizes = self.layer_intermediate_sizes
        return int(self.intermediate_size if sizes is None else sizes[layer])

    def validate_layer_shapes(self) -> None:
        """Refuse lists that do not fit the layers; `strict` calls this.

        Raises:
            ValueError: names the key.
        """
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size = {self.hidden_size} is no multiple of "
                f"num_attention_heads = {self.num_attention_heads}"
            )
        limits = {
            "layer_attention_heads": self.num_attention_heads,
            "layer_intermediate_sizes": None,
        }
        for key, most in limits.items():
            sizes = getattr(self, key)
            if sizes is None:
                continue
            if len(sizes) != self.num_hidden_layers:
                raise ValueError(
                    f"{key} has {len(sizes)} numbers for num_hidden_layers = "
                    f"{self.num_hidden_layers} layers; it needs one a layer"
                )
            if min(sizes, default=0) < 0 or (most is not None and max(sizes, default=0) > most):
                bounds = "0 or more" if most is None else f"0 to {most}"
                raise ValueError(f"{key} = {sizes}: each number has to be {bounds}")

    def validate_tag_sets(self) -> None:
        """Refuse a tag set that is empty or names a tag twice; `strict` calls this.

        Raises:
            ValueError: names the task.
        """
        for task, tags in (self.tag_sets or {}).items():
            if not task.isidentifier():
                raise ValueError(f"tag_sets: {task!r} cannot name a task; use a word such as pos")
            if not tags:
                raise ValueError(f"tag_sets.{task} is empty; leave the task out instead")
            if len(set(tags)) < len(tags):
                twice = sorted({tag for tag in tags if tags.count(tag) > 1})
                raise ValueError(f"tag_sets.{task} names {', '.join(twice)} more than once")
