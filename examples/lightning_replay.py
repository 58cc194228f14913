"""ToastLoss and HardReplay in a LightningModule; the loss is a submodule, so checkpoints have its state.

python examples/lightning_replay.py                    (needs lightning)
"""

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from toast_kernels import HardReplay, ToastLoss

CLASSES, WIDTH, ROWS, EPOCHS = 20, 16, 640, 3


class Classifier(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(WIDTH, CLASSES)
        self.criterion = ToastLoss(CLASSES, num_epochs=EPOCHS)
        self.replay = HardReplay()

    def on_train_epoch_start(self):
        self.criterion.set_epoch(self.current_epoch)

    def training_step(self, batch, _):
        x, y, past = self.replay.extend(*batch)
        logits = self.head(x)
        loss, stats = self.criterion(logits, y, past, return_stats=True)
        self.kept = x, y, logits, stats.cross_entropy
        return loss

    def on_after_backward(self):
        self.replay.keep(*self.kept)

    def on_train_batch_end(self, *_):
        if self.trainer.is_last_batch:  # before validation and a checkpoint: the pool is not saved
            self.criterion.set_epoch(self.current_epoch + 1)

    def on_save_checkpoint(self, checkpoint):
        checkpoint["replay"] = self.replay.state_dict()

    def on_load_checkpoint(self, checkpoint):
        self.replay.load_state_dict(checkpoint["replay"])

    def validation_step(self, batch, _):
        x, y = batch
        self.log("val_loss", self.criterion(self.head(x), y), prog_bar=True)  # in eval mode: plain cross-entropy

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def points(seed: int) -> DataLoader:
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(ROWS) % CLASSES
    centres = 2 * torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(centres[y] + torch.randn(ROWS, WIDTH, generator=generator), y)
    return DataLoader(data, batch_size=64, shuffle=True, drop_last=True)


if __name__ == "__main__":
    trainer = lightning.Trainer(max_epochs=EPOCHS, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.fit(Classifier(), points(1), points(2))
    print(f"validation loss {trainer.callback_metrics['val_loss']:.3f}")
