"""Virtual unmerging: attention to merged visual tokens as to the patches that they stand for.

"DyMU: Dynamic Merging and Virtual Unmerging for Efficient VLMs" (arXiv 2504.17040), section 3.2. A merged
token stands for equal copies, one at each of its patches, under a causal mask; the outputs of the copies are
averaged. Where all visual tokens share one rotary position, copies of a key are equal too, so that a count
of the copies takes the place of the paper's decomposition of rotary scores.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.models.layers.visual_tokens import VisualAssignment


def unmerging_mask(mask: Tensor, assignment: VisualAssignment, start: int) -> Tensor:
    """The mask under which the language model attends to a picture's tokens as to its patches.

    mask: (B, 1, R, L), bool (True: row i sees column j) or additive float. start: the column of the first of
    the K visual tokens; rows are the last R positions of L. Returns an additive float mask (B, 1, R, L): the
    logarithm of how many copies of a visual token a row sees. That is exact for the text behind the picture.
    A visual token sees the mean number over its copies, which is exact where these see equally many.
    """
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, -torch.inf)
    rows, length = mask.shape[2:]
    counts = assignment.counts
    end, first = start + counts.shape[-1], length - rows
    mask = mask.clone()
    behind = max(end - first, 0)
    mask[:, :, behind:, start:end] += counts.log().reshape(-1, 1, 1, counts.shape[-1])
    if first < end:
        seen = mean_copies_seen(assignment).log().unsqueeze(-3)
        mask[:, :, max(start - first, 0) : behind, start:end] = seen[..., max(first - start, 0) :, :]
    return mask


def copies_seen(assignment: VisualAssignment) -> Tensor:
    """How many copies of each token stand at or before each patch: (P, K) or (B, P, K) float32."""
    return (assignment.weights > 0).float().transpose(-1, -2).cumsum(-2)


def mean_copies_seen(assignment: VisualAssignment) -> Tensor:
    """How many copies of each token the copies of a token see on average: (K, K) or (B, K, K) float32."""
    return torch.matmul(assignment.weights, copies_seen(assignment))


def unmerged_attention(q: Tensor, k: Tensor, v: Tensor, assignment: VisualAssignment) -> Tensor:
    """Exact attention among the visual tokens of a picture, computed with K keys: (B, H, K, d).

    q, k, v: (B, H, K, d), all at one rotary position. assignment: of merging, with each patch in one token.
    """
    weights = assignment.weights.to(q.dtype).expand(len(q), -1, -1).unsqueeze(1)
    owner = assignment.weights.argmax(-2).expand(len(q), -1)
    scores = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-1, -2))
    scores = scores.gather(2, owner[:, None, :, None].expand(-1, q.shape[1], -1, k.shape[2]))
    seen = copies_seen(assignment).log().expand(len(q), -1, -1).unsqueeze(1).to(q.dtype)
    return torch.matmul(torch.matmul(weights, (scores + seen).softmax(-1)), v)


def expanded_attention(q: Tensor, k: Tensor, v: Tensor, assignment: VisualAssignment) -> Tensor:
    """What `unmerged_attention` computes, with a copy of queries, keys and values for each patch.

    DyMU's authors prefer it on GPUs. It is here to be measured against (`python -m loadtests.unmerging`).
    """
    owner = (
        assignment.weights.argmax(-2)
        .expand(len(q), -1)[:, None, :, None]
        .expand(-1, q.shape[1], -1, q.shape[3])
    )
    q, k, v = (each.gather(2, owner) for each in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return torch.matmul(assignment.weights.to(q.dtype).expand(len(q), -1, -1).unsqueeze(1), out)
