"""One optimizer step of the model: the dense weights by AdamW, the embedding tables by their fused optimizers, the counts by counting."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from model.grm.inputs import GrmBatch
from model.grm.loss import Valued, value_cross_entropy
from model.grm.model import Grm, Scores
from model.policy.gbpo import Feedback, gbpo_loss

Precision = Literal["float32", "bfloat16"]
"""Of the numbers in the products of a step; see `Grm.forward`."""


@dataclass(frozen=True)
class FitConfig:
    """Rates of the dense weights; those of the tables are in `GrmConfig`.

    Attributes:
        lr: AdamW's rate, reached after `warmup` steps.
        bias_lr: rate of the heads' biases, which hold how popular each code is and have to follow it.
        count_lr: rate of the few weights that say what counts are worth, over a person's history and over what followed it elsewhere.
    """

    lr: float = 1e-3
    bias_lr: float = 1e-2
    count_lr: float = 1e-1
    warmup: int = 20
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    clip: float = 1.0


class Fitter:
    """A model, its optimizer, and which rows of which table were learned. Equal batches in equal order give equal weights on one thread.

    Raises:
        ValueError: the model is to think of clusters that it was not given.
    """

    def __init__(self, model: Grm, config: FitConfig | None = None, precision: Precision = "float32") -> None:
        if model.thinking is not None and not model.thinking.ready:
            raise ValueError(
                f"the model has {model.config.thinking} clusters to think of and none of them is known: call thinking.use first"
            )
        self.model, self.config, self.precision = model, config or FitConfig(), precision
        self.steps = 0
        biases = [parameter for name, parameter in model.dense_parameters() if name.startswith("decoder.heads.") and name.endswith(".bias")]
        counts = [*model.recall.parameters(), *model.followers.parameters()]
        apart = {id(parameter) for parameter in biases + counts}
        weights = [parameter for _, parameter in model.dense_parameters() if id(parameter) not in apart]
        rates = (
            (weights, self.config.lr, self.config.weight_decay),
            (biases, self.config.bias_lr, 0.0),
            (counts, self.config.count_lr, 0.0),
        )
        groups = [{"params": of, "lr": lr, "base_lr": lr, "weight_decay": decay} for of, lr, decay in rates]
        self.optimizer = torch.optim.AdamW(groups, betas=self.config.betas, fused=True)
        self._weights = weights + biases + counts
        self._touched = {name: torch.zeros(len(table), dtype=torch.bool) for name, table in model.tables().items()}

    def step(
        self,
        batch: GrmBatch,
        weight: Tensor,
        *,
        rate: float = 1.0,
        epochs: bool = False,
        feedback: Feedback | None = None,
        valued: Valued | None = None,
    ) -> tuple[Scores, bool]:
        """Score the targets, then learn them.

        Args:
            weight: float[B], what each target is worth; one worth nothing is not counted as a follower.
            rate: share of the configured rates, for a schedule.
            epochs: the targets are learned again and again and were counted as followers before the first time; they are not counted here.
            feedback: what a policy gradient learns of the targets, beside the cross-entropy.
            valued: what the targets were worth, which a model with a value token learns beside them.

        Returns:
            What the model said before the step, without gradients, and whether it was taken: not where the loss is not finite.

        Raises:
            ValueError: the batch has no targets, or one outside the codebooks.
        """
        warm = min(1.0, (self.steps + 1) / self.config.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * warm * rate
        for name, rows in self.model.admit(batch).items():
            self._touched[name][rows] = True
        scores = self.score(batch, counted=epochs)
        loss = scores.loss(weight)
        if feedback is not None and scores.log_prob.isfinite().all():
            loss = loss + feedback.share * gbpo_loss(scores.log_prob.sum(1), feedback.old_log_prob, feedback.advantage)
        if valued is not None and scores.value is not None:
            # L_NTP = L_SID + λ_e L_eCPM, where L_SID is the sum over levels that the loss so far is the mean of.
            share = self.model.config.value_weight / self.model.config.levels
            loss = loss + share * value_cross_entropy(scores.value, valued)
        value = None if scores.value is None else scores.value.detach()
        said = Scores(scores.log_prob.detach(), scores.hit, scores.summary.detach(), value=value)
        if not math.isfinite(loss.item()):
            return said, False
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # the tables are updated in here
        if self.model.processes is not None:
            self.model.processes.add_gradients(self._weights)
        self._clip()
        self.optimizer.step()
        self.steps += 1
        batch = self.model.resolve(batch)
        for name, rows in batch.features.to_dict().items():
            self._touched[name][rows.values()] = True
        assert batch.targets is not None
        self._touched["prefix"][self.model.prior.rows_of(batch.targets)] = True
        if not epochs:
            wanted = replace(batch.memory, items=batch.memory.items.masked_fill((weight <= 0).unsqueeze(1), -1))
            self._touched["followers"][self.model.followers.learn(wanted, batch.targets)] = True
        return said, True

    def score(self, batch: GrmBatch, *, counted: bool = False) -> Scores:
        """What the model says of the targets, in the precision of a step; see `Grm.forward`."""
        scores: Scores = self.model(batch, counted=counted, bfloat16=self.precision == "bfloat16")
        return scores

    def _clip(self) -> None:
        """Shorten the gradients of the dense weights to the configured norm, all together.

        The fused AdamW divides by it while it reads them (as it does for `torch.amp.GradScaler`): a pass over all gradients less.
        """
        gradients = [weight.grad for weight in self._weights if weight.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        self.optimizer.grad_scale = (norm / self.config.clip).clamp(min=1.0)  # type: ignore[attr-defined]

    def take_touched(self) -> dict[str, Tensor]:
        """Rows of every table (int64[n], ascending) that learning has read since the last call."""
        taken = {name: rows.nonzero().squeeze(1) for name, rows in self._touched.items()}
        for rows in self._touched.values():
            rows.zero_()
        return taken

    def state(self) -> dict[str, Tensor]:
        """Weights, momenta and slots by name: the storage itself, to be copied by whoever keeps it."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"momentum.{name}": tensor for name, tensor in self.model.table_momenta().items()}
        return tensors | slots(self.optimizer, "adam") | {"steps": torch.tensor(self.steps)}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue exactly where `state` was taken.

        Raises:
            ValueError: it is of a model of another shape.
        """
        weights = {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name.startswith("model.")}
        try:
            self.model.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(f"a checkpoint of another model: {error}") from error
        for name, momentum in self.model.table_momenta().items():
            momentum.copy_(tensors[f"momentum.{name}"])
        restore_slots(self.optimizer, "adam", tensors)
        self.steps = int(tensors["steps"])


def slots(optimizer: torch.optim.Optimizer, prefix: str) -> dict[str, Tensor]:
    """An optimizer's tensors as `<prefix>.<parameter>.<slot>`."""
    state = optimizer.state_dict()["state"]
    return {f"{prefix}.{index}.{name}": slot for index, of in state.items() for name, slot in of.items()}


def restore_slots(optimizer: torch.optim.Optimizer, prefix: str, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `slots` gave."""
    found: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        if part == prefix:
            index, _, slot = rest.partition(".")
            found.setdefault(int(index), {})[slot] = tensor.clone()
    optimizer.load_state_dict({"state": found, "param_groups": optimizer.state_dict()["param_groups"]})
