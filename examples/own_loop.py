"""OsciQuant in a plain torch loop: regularize, count oscillations, evaluate at every width, save 3-bit weights."""

import torch
from sklearn.datasets import load_digits
from torch import nn

from oscillations.nn import OscillationMonitor, OsciQuantRegularizer, at_bits
from oscillations.nn.export import save

torch.manual_seed(0)
digits = load_digits()
images, labels = torch.tensor(digits.images, dtype=torch.float32).flatten(1) / 8 - 1, torch.tensor(digits.target)
train, test = slice(0, 1400), slice(1400, None)

model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
regularizer = OsciQuantRegularizer(model, bits=3, strength=1.0)
monitor = OscillationMonitor(model, bits=3)
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

for _ in range(15):
    for batch in torch.randperm(1400).split(64):
        loss = nn.functional.cross_entropy(model(images[batch]), labels[batch]) + regularizer()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step()

print(monitor.table()[["layer", "corrected", "frequency", "near_threshold"]].to_string(index=False))
model.eval()
for bits in (32, 8, 4, 3, 2):
    with at_bits(model, bits), torch.no_grad():
        correct = (model(images[test]).argmax(1) == labels[test]).float().mean()
    print(f"{bits:2} bits: {correct:.1%}")
difference = save(model, "digits-3bit.onnx", images[test], bits=3)
print(f"digits-3bit.onnx computes the same classes; outputs differ by up to {difference:.1e}")
