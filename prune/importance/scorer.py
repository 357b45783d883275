"""Scores of what is left of a model, on the text of a run, kept in a file where one is named."""

from transformers import PreTrainedModel

from lert_ds.config import dump
from lert_ds.evaluation import shared_tasks
from prune.importance import score_file, scoring
from prune.importance.scores import Scores
from prune.prune_config import PruneRun
from prune.pruning_text import PruningData


class Scorer:
    """Scores a model and, step after step, what is left of it."""

    def __init__(self, config: PruneRun, text: PruningData) -> None:
        """Take the method, and the text to score on."""
        self._config, self._text = config, text
        self._reference: PreTrainedModel | None = None
        self.scores: list[Scores] = []
        """Those of each step."""

    @property
    def expanded(self) -> bool:
        """Whether it wants models of the whole's shape, with zeros for what is cut."""
        return self._config.scoring.method in scoring.NEEDS_WHOLE_SHAPE

    def __call__(self, model: PreTrainedModel) -> Scores:
        """Return the scores of `model`; every process must call it."""
        settings, file = self._config.scoring, self._config.scoring.file
        if self._reference is None:
            self._reference = model
        tasks = shared_tasks(model.config, self._text.tag_sets)
        if settings.method == "fisher":  # it draws the tags itself
            tasks = model.config.tasks
        ask = self._text.ask(model)

        def make() -> Scores:
            return scoring.score(
                model,
                self._text.scoring_batches(),
                settings,
                ask,
                ffn_even_masking=self._config.pruning.ffn_even_masking,
                reference=self._reference,
            )

        if file is None:
            scores = make()
        else:
            if self.scores:
                file = file.with_suffix(f".{len(self.scores) + 1}{file.suffix}")
            mark = score_file.fingerprint(model, self._text.corpora, self._decides(tasks))
            scores = score_file.reuse(file, mark, make, model.device)
        self.scores.append(scores)
        return scores

    def _decides(self, tasks: tuple[str, ...]) -> dict[str, object]:
        """Return what scores depend on besides the model and the corpus."""
        run = dump(self._config)
        run["scoring"].pop("file")
        return {
            "scoring": run["scoring"],
            "masking": run["masking"],
            "seed": run["seed"],
            "ffn_even_masking": run["pruning"]["ffn_even_masking"],
            "tasks": list(tasks),
            **({"data": self._text.mark} if self._text.mark else {}),
            "step": len(self.scores),
        }
