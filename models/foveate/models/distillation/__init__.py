"""Train exits, gates and patch readers for a model whose trunk stays as it is, from images without labels.

The answers of the model at full are the targets (self-distillation).
"""
