"""OsciQuant in Lightning: the regularizer in training_step, the monitor after every optimizer step."""

import lightning
import torch
from sklearn.datasets import load_digits
from torch import nn

from oscillations.nn import OscillationMonitor, OsciQuantRegularizer, at_bits


class Digits(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
        self.regularizer, self.monitor = OsciQuantRegularizer(self.net, bits=3), OscillationMonitor(self.net, bits=3)

    def training_step(self, batch, _):
        x, y = batch
        return nn.functional.cross_entropy(self.net(x), y) + self.regularizer()

    def optimizer_step(self, *args, **kwargs):
        super().optimizer_step(*args, **kwargs)
        self.monitor.step()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=2e-3)


lightning.seed_everything(0)
digits = load_digits()
x, y = torch.tensor(digits.images, dtype=torch.float32).flatten(1) / 8 - 1, torch.tensor(digits.target)
loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x[:1400], y[:1400]), batch_size=64, shuffle=True)
module = Digits()
quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
lightning.Trainer(max_epochs=10, accelerator="cpu", **quiet).fit(module, loader)

for bits in (32, 3):
    with at_bits(module.net, bits), torch.no_grad():
        print(f"{bits:2} bits: {(module.net(x[1400:]).argmax(1) == y[1400:]).float().mean():.1%}")
print(module.monitor.table()[["layer", "corrected", "frequency"]].to_string(index=False))
