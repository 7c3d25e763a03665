"""The protocol of your own model: one required method, and the optional members that are read beside it."""

from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class OwnModel(Protocol):
    """Any object with `predict` can be served. No base class is needed.

    `predict` takes a batch of B images, and returns one of

    - an array, a tensor or a list of shape (B, C): the scores of C classes for each image. They are answered
      as they are; with `softmax = True` they are logits, and their softmax is answered.
    - a list of B items, each of them the C scores of one image; a table of scores by label, where a label that
      is missing scores 0; one label; the index of one class; a `foveate.core.outcome.Result`; or an exception,
      which fails this image alone.

    The batch is a NumPy array (B, S, S, 3) of uint8 RGB pixels. With `preprocess`, it holds what that returned:
    NumPy arrays, or torch tensors, are stacked along a new first axis, and everything else stays a list.

    `predict` runs on one thread, never twice at once. If it raises, it is called again with each image alone,
    so that one image never fails its batch. An exception of `foveate.core.errors` sets the status and the
    message of the answer; any other one answers 500. Where `predict` has a parameter of this name, it gets
    `size`, the side of the images; `variant`, one of `variants`; and `plan`, a `foveate.core.plan.Plan`.

    Optional members, which may be attributes of the class or of the object:

    | member | meaning | without it |
    |---|---|---|
    | `name` | the name of the model | the name of the class |
    | `labels` | the names of the C classes | `class 0`, `class 1`, ... |
    | `sizes` | the sides in pixels that the model takes; the largest is full | 224 |
    | `variants` | names of several networks in this model; the last is full | none |
    | `preprocess(image)` | called with each image as a Pillow image, S pixels a side, on a thread beside `predict` | none |
    | `softmax` | whether scores are logits | False |
    | `input` | an `InputSpec`: how images are cropped. None: the model gets undecoded bytes | the middle |
    | `max_batch` | the most images in a batch | the setting `max_batch`, or 32 |
    | `version` | changes with the weights; answers are cached under it | answers are not cached |
    """  # noqa: E501

    def predict(self, batch: Any, /) -> Any:
        """The scores or the items of a batch, see above."""
        ...
