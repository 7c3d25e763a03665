"""Model weights: loaded by name, read from safetensors or converted from timm, and written to disk."""
