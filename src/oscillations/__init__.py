"""Reference reproduction of "Oscillations Make Neural Networks Robust to Quantization"."""
