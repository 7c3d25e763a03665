"""The runner of a vision-language model: pictures and turns of a chat to answers, under a plan."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from foveate.core.chat import (
    NOTHING_CACHED,
    CachedParts,
    SamplingOptions,
    Turn,
)
from foveate.core.errors import BadPlan, FoveateError
from foveate.core.plan import Plan, Precision
from foveate.core.profile import Profile
from foveate.models.compression import create
from foveate.models.layers.threshold_merging import MergeThresholds
from foveate.models.layers.visual_tokens import Compression, CompressionContext
from foveate.models.runners.base import BaseRunner, Pixels, check_model
from foveate.models.vlm import answering
from foveate.models.vlm.answering import ChatAnswer, ChatRequest
from foveate.models.vlm.checkpoint import ChatCheckpoint
from foveate.models.vlm.constraints import ConstraintCompiler
from foveate.models.vlm.cost import ChatCost, ChatLoad, ChatParts, chat_cost
from foveate.models.vlm.describe import describe_chat, merge_thresholds
from foveate.models.vlm.key_value_cache import CachedPrefix, CacheShape, KeyValueCache
from foveate.models.vlm.prompt import ChatPrompt, behind_picture, build_prompt, check_fits
from foveate.models.vlm.sequence import AnswerPiece, ChatSequence
from foveate.models.vlm.served import ServedChat
from foveate.models.vlm.visual_tokens import PictureFeatures, VisualTokens, prompt_mask, visual_tokens

SLOTS, SLOT_TOKENS = 8, 1024
"""Defaults of the key/value cache: sequences at once, and tokens of each."""
SHORT_QUESTION = 16
"""Tokens of the text around a picture, for the cost of a model without a profile."""


class ChatRunner(ServedChat, BaseRunner):
    """A vision-language model on one device, with its key/value cache.

    `encode`, `visual_tokens` and `prompt` keep no state, and their results can be cached. What `ServedChat`
    adds changes the key/value cache alone. One thread at a time may call them.
    """

    def __init__(
        self,
        checkpoint: ChatCheckpoint,
        precision: Precision = "fp32",
        device: str = "cpu",
        max_batch: int = 0,
        slots: int = SLOTS,
        slot_tokens: int = SLOT_TOKENS,
        profile: Profile | None = None,
    ) -> None:
        """max_batch: pictures that are encoded at once, 0 for the device's default; slots, slot_tokens: of
        the key/value cache; profile: gives the ladder, and the thresholds of merging in the tower."""
        pixels, card = checkpoint.pixels, checkpoint.card
        super().__init__(precision, device, max_batch, pixels.mean, pixels.std)
        self.tower = checkpoint.tower.to(self.device, self.dtype).eval()
        self.model = checkpoint.model.to(self.device, self.dtype).eval()
        self.tokenizer = checkpoint.tokenizer
        self.constraints = ConstraintCompiler(self.tokenizer)
        self.full = Plan(card.name, self.tower.trunk.config.image_size, precision)
        self.sizes = card.sizes or (self.full.image_size,)
        """Sides in pixels of the pictures that the model was trained on, full's first."""
        self.input = pixels.input
        """How a picture becomes the tower's square input."""
        self.parts = ChatParts(self.tower.trunk.config, card.projector, card.decoder)
        length = min(slot_tokens, card.decoder.max_position_embeddings)
        self.cache = KeyValueCache(CacheShape.of(card.decoder, slots, length), self.dtype, self.device)
        self._methods = lru_cache(maxsize=256)(self._method)
        self.use_thresholds(merge_thresholds(profile.merging) if profile else {})
        self.card = describe_chat(checkpoint, self.full, self.cost(self.full, SHORT_QUESTION), profile)

    def use_thresholds(self, thresholds: Mapping[int, MergeThresholds]) -> None:
        """Merge inside the tower with these thresholds, by the number of visual tokens."""
        self.thresholds = thresholds
        self._methods.cache_clear()

    def check(self, plan: Plan) -> None:
        """Raise BadPlan when this model cannot run the plan."""
        self.method(plan)

    def method(self, plan: Plan) -> Compression:
        """The compression method of a plan. Raises BadPlan when this model cannot run it."""
        return self._methods(plan)

    def encoding(self, plan: Plan) -> str:
        """Plans with an equal text encode pictures alike: the size that the tower gets, and its reducer."""
        return repr((self.encoded_size(plan), self.method(plan).reducer(self.parts.tower)))

    def _method(self, plan: Plan) -> Compression:
        check_model(plan, self.full, {self.full.variant})
        config = self.parts.tower
        if plan.image_size % config.patch_size or plan.image_size > config.image_size:
            raise BadPlan(
                f"image size must be a multiple of {config.patch_size} and at most {config.image_size}, "
                f"not {plan.image_size}"
            )
        other = Plan(plan.variant, plan.image_size, plan.precision, plan.reducer)
        if plan != other:
            raise BadPlan(f"{plan.variant} takes a compression method and a size; remove the rest of {plan}")
        side = plan.image_size // config.patch_size
        # The thresholds were calibrated on pictures of full size.
        thresholds = self.thresholds if plan.image_size == self.full.image_size else {}
        return create(plan.reducer, CompressionContext((side, side), config.patch_size, thresholds))

    def encoded_size(self, plan: Plan) -> int:
        """Side in pixels of the pictures that the tower gets under a plan."""
        return self.method(plan).grid[0] * self.parts.tower.patch_size

    @torch.inference_mode()
    def encode(self, batch: Tensor, plan: Plan) -> list[PictureFeatures]:
        """The features of pictures (B, S, S, 3) uint8, as `stack` joins them.

        They depend on the pixels, on `encoded_size` and on the method's reduction within the tower.
        """
        return self.features(self.preprocess(batch, self.encoded_size(plan)), plan)

    @torch.inference_mode()
    def features(self, images: Tensor, plan: Plan) -> list[PictureFeatures]:
        """The features of normalised images (B, 3, S, S)."""
        reducer = self.method(plan).reducer(self.parts.tower)
        pictures: list[PictureFeatures] = []
        for first in range(0, len(images), self.max_batch):
            part = images[first : first + self.max_batch]
            features = self.tower(part, reducer)
            groups = features.source if reducer is not None else [None] * len(part)
            pictures += [
                PictureFeatures(patches, group, features.side)
                for patches, group in zip(features.patches, groups, strict=True)
            ]
        return pictures

    def visual_tokens(
        self, pictures: Sequence[PictureFeatures], plan: Plan, questions: Sequence[str]
    ) -> list[VisualTokens]:
        """The visual tokens of pictures that were encoded under a plan, each with its question."""
        ids = [self.tokenizer.encode(question) for question in questions]
        return visual_tokens(self.model, pictures, self.method(plan), ids) if pictures else []

    def prompt(self, turns: Sequence[Turn], visual: Sequence[VisualTokens]) -> ChatPrompt:
        """The prompt of a chat. Raises BadRequest for another number of pictures, or if it is too long."""
        return self.prompt_of(self.tokenizer.chat(turns), visual)

    def prompt_of(
        self, ids: Sequence[int], visual: Sequence[VisualTokens], prefix: CachedPrefix | None = None
    ) -> ChatPrompt:
        """The prompt of the tokens of a chat. prefix: its beginning; `visual` are the pictures behind it.

        Raises as `prompt` does.
        """
        prompt = build_prompt(self.model, ids, [each.tokens for each in visual], prefix)
        rest = ids[behind_picture(ids, prefix.pictures) :] if prefix else ids
        prompt = replace(prompt, mask=prompt_mask(rest, visual))
        check_fits(len(prompt), prompt.visual_tokens, self.cache)
        return prompt

    def sequence(self, prompt: ChatPrompt, options: SamplingOptions) -> ChatSequence:
        """The answer to a prompt, before its first token. Raises BadRequest for a bad JSON schema."""
        schema = options.json_schema
        constraint = self.constraints.compile(schema) if schema else None
        return ChatSequence(prompt, options, self.tokenizer, constraint)

    def cost(
        self,
        plan: Plan,
        text_tokens: int,
        pictures: int = 1,
        answer_tokens: int = 1,
        cached: CachedParts = NOTHING_CACHED,
    ) -> ChatCost:
        """The multiply-adds of a request under a plan. What was cached costs nothing.

        text_tokens: of the prompt. A method that reads the question is counted as if it read all of them.
        """
        method, width = self.method(plan), self.parts.decoder.hidden_size
        load = ChatLoad(
            self.encoded_size(plan),
            method.count,
            text_tokens,
            pictures,
            singles=method.selects or method.needs_vectors,
            means=not method.selects,
            reducer=method.reducer(self.parts.tower),
            method_macs=method.macs(width, text_tokens),
            cached_features=cached.features,
            cached_pictures=cached.pictures,
            cached_tokens=cached.tokens,
        )
        return chat_cost(self.parts, load, answer_tokens)

    def answer(
        self,
        pictures: Sequence[Pixels],
        turns: Sequence[Turn],
        plan: Plan,
        options: SamplingOptions | None = None,
        on_piece: Callable[[AnswerPiece], None] | None = None,
    ) -> ChatAnswer:
        """Answer one chat. on_piece gets each piece of the answer as soon as it is known.

        Raises BadPlan, BadRequest for a chat that does not fit its pictures or the model, and RunFailed.
        """
        request = ChatRequest(pictures, turns, options or SamplingOptions())
        callback = None if on_piece is None else lambda _, piece: on_piece(piece)
        result = self.answers([request], plan, callback)[0]
        if isinstance(result, FoveateError):
            raise result
        return result

    def answers(
        self,
        requests: Sequence[ChatRequest],
        plan: Plan,
        on_piece: Callable[[int, AnswerPiece], None] | None = None,
    ) -> list[ChatAnswer | FoveateError]:
        """Answer chats under one plan, in batches. See `answering.answer_all`."""
        return answering.answer_all(self, requests, plan, on_piece)
