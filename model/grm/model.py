"""The generative recommendation model: the same code scores, learns and searches, in the trainer and in serving."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from kernels.prior import Priors, fits
from kernels.trie import Prefixes
from model.grm import beam, loss
from model.grm.beam import Beams, Prior
from model.grm.context import Context, ContextProcessor
from model.grm.decoder import Decoder
from model.grm.followers import FollowerPrior, Followers
from model.grm.goal import Goal
from model.grm.inputs import GrmBatch
from model.grm.managed import IdMap
from model.grm.presets import GrmConfig
from model.grm.prior import PrefixPrior
from model.grm.processes import Processes
from model.grm.recall import HistoryPrior, Memory
from model.grm.thinking import Thinking


@dataclass(frozen=True)
class Scores:
    """What one pass over the targets tells.

    Attributes:
        log_prob: float[B, L], of each code of the target given those before it.
        hit: bool[B, L], whether it was the likeliest.
        summary: float[B, d_model], the normalised state that predicts the last code; it knows the context and the codes before.
        auxiliary: float[B, L], log-probabilities that are learned beside and weigh as they are; None = there are none.
        value: float[B, buckets], log-probability of each bucket of value given the whole target; None = value is no token.
    """

    log_prob: Tensor
    hit: Tensor
    summary: Tensor
    auxiliary: Tensor | None = None
    value: Tensor | None = None

    def loss(self, weight: Tensor) -> Tensor:
        """Value-weighted token cross-entropy, and the auxiliary one where there is one; `weight`: float[B]."""
        total = self.log_prob if self.auxiliary is None else self.log_prob + self.auxiliary
        return loss.token_cross_entropy(total, weight)


class Grm(nn.Module):
    """Context processor and lazy decoder; the initial weights are a function of `config.seed` alone.

    Attributes:
        processes: those over which the tables are spread (`model.grm.sharded`): all of them call forward, loss and beam with the same
            batch, and get what one process would; None = the model is whole.
    """

    def __init__(self, config: GrmConfig, device: torch.device | None = None) -> None:
        super().__init__()
        self.config = config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.context = ContextProcessor(config, device)
            self.decoder = Decoder(config, device)
            self.prior = PrefixPrior(config, device)
            self.recall = HistoryPrior(config, device)
            self.followers = FollowerPrior(config, device)
            rows = {"user": config.user_rows, "item": config.item_rows} if config.managed else {}
            self.ids = nn.ModuleDict({name: IdMap(count, device) for name, count in rows.items()})
            if device is None or device.type != "meta":
                self.decoder.reset_parameters()
                self.prior.reset_parameters()
            self.thinking = Thinking(config, device) if config.thinking else None
            self.goal = Goal(config, device) if config.thinking_goal else None
        self.processes: Processes | None = None

    def forward(self, batch: GrmBatch, *, counted: bool = False, bfloat16: bool = False) -> Scores:
        """Score the targets of a batch.

        Args:
            counted: the targets were counted as followers before (training in epochs); see `FollowerPrior.read`.
            bfloat16: the products of context processor, decoder and heads are computed of numbers rounded to bfloat16; weights, their
                gradients, sums of logits and log-probabilities stay float32.

        Raises:
            ValueError: the batch has no targets, or one that is outside the codebooks.
        """
        targets = self._targets(batch)
        if self.processes is None:
            return self._scores(batch, targets, counted, bfloat16)
        part = self.processes.part(batch)
        mine = self._scores(part, self._targets(part), counted, bfloat16)
        found = (None if each is None else self.processes.whole(each, len(batch)) for each in vars(mine).values())
        return Scores(*found)  # type: ignore[arg-type]

    def _scores(self, batch: GrmBatch, targets: Tensor, counted: bool, bfloat16: bool) -> Scores:
        batch = self.resolve(batch)
        with torch.autocast(targets.device.type, torch.bfloat16, enabled=bfloat16):
            context = self.context(batch)
            hidden, thoughts = self.decoder.teach(targets.unsqueeze(1), context)
            states = [self.decoder.norms[level](hidden[:, 0, level]) for level in range(self.config.levels)]
            heads = [self.decoder.heads[level](state).to(state.dtype) for level, state in enumerate(states)]
        followers = self.followers.read(batch.memory, targets if counted else None)
        priors = self.prior(targets), self.recall(batch.memory, targets), self.followers(followers, targets)
        logits = [sum((prior[level] for prior in priors), head) for level, head in enumerate(heads)]
        hit = torch.stack([level.argmax(1) for level in logits], 1) == targets
        value = None if self.decoder.worth is None else self.decoder.value(hidden[:, 0])
        return Scores(loss.level_log_prob(logits, targets), hit, states[-1], self._auxiliary(context, thoughts, targets), value)

    def _auxiliary(self, context: Context, thoughts: Tensor | None, targets: Tensor) -> Tensor | None:
        """Every code from the trunk alone, without the codes before it (multi-token prediction); its cluster, from trunk or thought, and
        the whole SID, from the first thought, where these are taught."""
        if thoughts is None:
            return None
        thought, parts = thoughts[:, 0], []
        if self.config.lazy_trunk:
            logits = [self.decoder.logits(thought[:, level], level) for level in range(self.config.levels)]
            parts.append(self.config.mtp * loss.level_log_prob(logits, targets))
        if self.thinking is not None and self.thinking.ready:
            parts.append(self.thinking(thought, targets))
        if self.goal is not None:
            parts.append(self.goal(context, self.decoder.codes, thought[:, 0], targets))
        return sum(parts[1:], parts[0]) if parts else None

    @torch.no_grad()
    def expected_value(self, batch: GrmBatch, sids: Tensor) -> Tensor:
        """What an impression of each SID would be worth: Σ_v p(v | SID, context) · mean value of bucket v.

        Args:
            sids: int64[B, W, L], such as those of `Beams`.

        Returns:
            float[B, W]; 0 where a SID is none (-1).

        Raises:
            ValueError: the model has no value token.
        """
        worth = self.decoder.worth
        if worth is None:
            raise ValueError("the model does not predict values: its value_buckets is 0")
        hidden, _ = self.decoder.teach(sids.clamp(min=0), self.encode(batch))
        return (self.decoder.value(hidden).exp() @ worth).masked_fill((sids < 0).any(-1), 0.0)

    def log_prob(self, batch: GrmBatch) -> Tensor:
        """float[B, L], see `Scores.log_prob`."""
        return self(batch).log_prob

    def loss(self, batch: GrmBatch, weight: Tensor) -> Tensor:
        """Value-weighted token cross-entropy of the batch; `weight`: float[B]."""
        return self(batch).loss(weight)

    @torch.no_grad()
    def beam(self, batch: GrmBatch, widths: Sequence[int], trie: Prefixes | None = None, avoid: Sequence[Tensor] = ()) -> Beams:
        """The likeliest SIDs of every row; see `model.grm.beam.search`."""
        mine = self.resolve(batch if self.processes is None else self.processes.part(batch))
        found = self.search(
            self.context(mine).to(self.decoder.start.dtype), mine.memory, self.followers.read(mine.memory), widths, trie, avoid
        )
        if self.processes is None:
            return found
        return Beams(self.processes.whole(found.sids, len(batch)), self.processes.whole(found.log_prob, len(batch)))

    @torch.no_grad()
    def search(
        self,
        context: Context,
        memory: Memory,
        followed: Followers,
        widths: Sequence[int],
        trie: Prefixes | None = None,
        avoid: Sequence[Tensor] = (),
    ) -> Beams:
        """`beam` of rows that were encoded and looked up."""
        return beam.search(self.decoder, self._priors(memory, followed), context, widths, trie, avoid)

    def _priors(self, memory: Memory, followed: Followers) -> list[Prior]:
        """Of these rows; all in one where that can be computed."""
        whole = self.prior.whole()
        if whole is not None:
            parts = whole, self.recall.of(memory), self.followers.of(followed)
            if fits(*parts):
                return [Priors(*parts).next]
        return [self.prior.next, partial(self.recall.next, memory), partial(self.followers.next, followed)]

    @torch.no_grad()
    def encode(self, batch: GrmBatch) -> Context:
        """The context alone, in the type that the decoder searches in, for a caller that searches more than once."""
        return self.context(self.resolve(batch)).to(self.decoder.start.dtype)

    def resolve(self, batch: GrmBatch) -> GrmBatch:
        """Ids → rows where the tables are managed; otherwise they are rows already. A video without a row of its own has no followers."""
        if not self.ids:
            return batch
        parts = batch.features.to_dict()
        values = {name: of.values() for name, of in parts.items()}
        values |= {name: ids.lookup(values[name]) for name, ids in self._maps()}
        items = batch.memory.items
        known = self._map("item").lookup(items.clamp(min=0).flatten()).view_as(items)
        known = known.masked_fill((items < 0) | (known == self.config.item_rows - 1), -1)
        features = KeyedJaggedTensor(
            batch.features.keys(), torch.cat(list(values.values())), lengths=batch.features.lengths(), stride=batch.features.stride()
        )
        return replace(batch, features=features, memory=replace(batch.memory, items=known))

    @torch.no_grad()
    def admit(self, batch: GrmBatch) -> dict[str, Tensor]:
        """Give the ids of a batch rows before it is learned. A row with a new owner forgets embedding, optimizer state and followers.

        Returns:
            The rows that changed, int64[n] by table.
        """
        if not self.ids:
            return {}
        changed = {name: ids.admit(batch.features[name].values()) for name, ids in self._maps()}
        if self.processes is not None:
            for name, rows in changed.items():
                self.context.tables.reset(name, rows)
        else:
            tables, momenta = self.tables(), self.table_momenta()
            for name, rows in changed.items():
                tables[name][rows] = 0
                momenta[name][rows] = 0
        self.followers.table[changed["item"]] = 0
        return changed | {"followers": changed["item"]} | {f"{name}_ids": changed[name] for name, _ in self._maps()}

    def reindex(self) -> None:
        """Look up by the id tables as they are now, after they were written to."""
        for _, ids in self._maps():
            ids.reindex()

    def _maps(self) -> list[tuple[str, IdMap]]:
        return [(name, self._map(name)) for name in self.ids]

    def _map(self, name: str) -> IdMap:
        found = self.ids[name]
        assert isinstance(found, IdMap)
        return found

    def dense_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Everything but the embedding tables, which their fused optimizer owns."""
        return ((name, parameter) for name, parameter in self.named_parameters() if ".tables." not in name)

    def tables(self) -> dict[str, Tensor]:
        """Tables by name, the storage itself: embeddings float32[rows, d_sparse], the followers float32[rows, followers, L + 1], and, where
        tables are managed, the owner of each row, int64[rows]."""
        tables = {name: module.weight.data for tables in self._collections() for name, module in tables.embedding_bags.items()}
        return tables | {"followers": self.followers.table} | {f"{name}_ids": ids.ids for name, ids in self._maps()}

    def table_momenta(self) -> dict[str, Tensor]:
        """Row-wise Adagrad's sum of squares by table: float32[rows], the storage itself.

        `fused_optimizer().state_dict()` hands out views of FBGEMM's buffers, so copying into them restores the optimizer.
        """
        states = [tables.fused_optimizer().state_dict()["state"] for tables in self._collections()]
        return {key.removesuffix(".weight"): slots[f"{key}.momentum_1"] for state in states for key, slots in state.items()}

    def _collections(self) -> list[FusedEmbeddingBagCollection]:
        return [self.context.tables, self.prior.tables]

    def _targets(self, batch: GrmBatch) -> Tensor:
        targets = batch.targets
        if targets is None:
            raise ValueError("the batch has no targets")
        sizes = torch.tensor(self.config.codes, device=targets.device)
        if targets.shape[1] != len(sizes):
            raise ValueError(f"targets of {targets.shape[1]} codes are outside the codebooks {self.config.codes}")
        outside = ((targets < 0) | (targets >= sizes)).any(1)
        if outside.any():
            row = int(outside.nonzero()[0])
            raise ValueError(f"row {row}: the target SID {targets[row].tolist()} is outside the codebooks {self.config.codes}")
        return targets
