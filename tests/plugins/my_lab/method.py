"""Supervised fine-tuning on the best of each user's sessions (rejection sampling, RAFT)."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class BestSessionConfig:
    """How long and how fast."""

    lr: float = 1e-3
    """Learning rate of AdamW."""
    epochs: int = 1
    """Passes over the users."""
    batch_size: int = 32
    """Users a step."""
    seed: int = 0
    """Decides the order of the users."""


class BestSession:
    """Next-token prediction of the best session by the reward."""

    title = "best session"
    Config = BestSessionConfig

    def __init__(self, config: BestSessionConfig = BestSessionConfig()) -> None:
        self.config = config

    def update(self, model, histories, sampled, logged_UK, work, progress=None):
        config, num_users = self.config, len(sampled.item_ids_USK)
        best_UK = sampled.item_ids_USK[torch.arange(num_users), sampled.score_US.argmax(1)]
        optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr)
        generator, losses = torch.Generator().manual_seed(config.seed), []
        batches = [
            rows
            for _ in range(config.epochs)
            for rows in torch.randperm(num_users, generator=generator).split(config.batch_size)
        ]
        model.train()
        for done, rows in enumerate(batches, start=1):
            loss = model(**model.training_batch(histories.rows(rows), best_UK[rows])).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            if progress is not None:
                progress(done, len(batches), {"loss": losses[-1]})
        model.eval()
        return {"first_loss": losses[0], "loss": losses[-1]}
