"""Gates that score how much the answer needs each patch token.

"IA-RED^2: Interpretability-Aware Redundancy Reduction for Vision Transformers" (NeurIPS 2021),
section 3.2: the multi-head interpreter.
"""

from typing import cast

from torch import Tensor, nn


class Gate(nn.Module):
    """Scores patch tokens by their similarity to the class token, which represents the task.

    Equation 3: the mean over heads of the sigmoid of a scaled product of projections.
    """

    def __init__(self, width: int, heads: int = 3, head_width: int = 32) -> None:
        """width: features of a token. head_width: features of a token's projection in each head."""
        super().__init__()
        self.heads, self.scale = heads, head_width**-0.5
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, heads * head_width)
        self.key = nn.Linear(width, heads * head_width)

    def macs(self, patches: int) -> float:
        """Multiply-adds for an image of this many patch tokens."""
        return float((patches + 1) * self.query.in_features * self.query.out_features)

    def logits(self, x: Tensor, prefix: int) -> Tensor:
        """Logits of each patch token, one per head: x (B, N, D) to (B, N - prefix, heads) float32."""
        x = self.norm(x)
        queries = self.query(x[:, prefix:]).unflatten(2, (self.heads, -1))
        key = self.key(x[:, :1]).unflatten(2, (self.heads, -1))
        return cast("Tensor", (queries * key).sum(-1).float() * self.scale)

    def forward(self, x: Tensor, prefix: int) -> Tensor:
        """Scores of the patch tokens, from 0 to 1: x (B, N, D) to (B, N - prefix) float32."""
        return self.logits(x, prefix).sigmoid().mean(-1)
