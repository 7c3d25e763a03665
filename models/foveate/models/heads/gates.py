"""Gates that score patch tokens by how much the answer needs them.

"IA-RED^2: Interpretability-Aware Redundancy Reduction for Vision Transformers" (NeurIPS 2021),
section 3.2: the multi-head interpreter.
"""

from typing import cast

from torch import Tensor, nn


class Gate(nn.Module):
    """Scores patch tokens against the class token, which stands for what the picture is asked.

    Equation 3: the mean over heads of the sigmoid of a scaled product of projections.
    """

    def __init__(self, width: int, heads: int = 3, head_width: int = 32) -> None:
        super().__init__()
        self.heads, self.scale = heads, head_width**-0.5
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, heads * head_width)
        self.key = nn.Linear(width, heads * head_width)

    def logits(self, x: Tensor, prefix: int) -> Tensor:
        """Tokens (B, N, D) to one logit a head for each patch token: (B, N - prefix, heads) float32."""
        x = self.norm(x)
        queries = self.query(x[:, prefix:]).unflatten(2, (self.heads, -1))
        key = self.key(x[:, :1]).unflatten(2, (self.heads, -1))
        return cast("Tensor", (queries * key).sum(-1).float() * self.scale)

    def forward(self, x: Tensor, prefix: int) -> Tensor:
        """Tokens (B, N, D) to scores in 0..1 of the patch tokens: (B, N - prefix) float32."""
        return self.logits(x, prefix).sigmoid().mean(-1)
