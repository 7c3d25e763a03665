"""The choice of the model that answers a request: by name, and by the kind of media."""

from collections.abc import Mapping

from foveate.core.errors import UnknownModel, UnsupportedMedia
from foveate.core.model import INTERNAL_TASKS, ModelCard, Task, route_of
from foveate.core.nearest_names import did_you_mean


class ModelSelector:
    """Chooses among the models of one task."""

    def __init__(self, task: Task, served: Mapping[str, ModelCard]) -> None:
        """served: the models of all tasks by name; the first one of this task is the default."""
        self.task, self.served = task, served
        self.cards = {name: card for name, card in served.items() if card.task == task}

    def by_name(self, name: str | None, video: bool) -> ModelCard:
        """The named model, or its clip model for a clip. None: the first model that takes this kind of media.

        Raises UnknownModel, also for a model of another task, with the route that it has.
        """
        if name is not None and name not in self.cards:
            raise self._unknown(name)
        if not self.cards:
            raise UnknownModel(f"no model of task {self.task} is served; GET /models lists the models")
        if name is None:
            return self._first(video) or next(iter(self.cards.values()))
        card = self.cards[name]
        return self.cards.get(card.clip_model, card) if video else card

    def _unknown(self, name: str) -> UnknownModel:
        """The error for a model that this task does not have."""
        if name in self.served:
            return self.other_task(self.served[name])
        known = f"the models are {', '.join(self.cards)}" if self.cards else "GET /models lists the models"
        hint = did_you_mean(name, self.cards) or f"; {known}"
        return UnknownModel(f"no model {name[:60]!r} is served{hint}")

    def for_medium(self, card: ModelCard, video: bool, named: bool) -> ModelCard:
        """The model for the kind of media that the bytes turned out to be.

        card: the model chosen before the bytes were known. named: the client named the model, so that only
        its clip model may replace it. Raises UnsupportedMedia.
        """
        if bool(card.frames) == video:
            return card
        other = self.cards.get(card.clip_model) if video else None
        if other is None and not named:
            other = self._first(video)
        if other is None:
            takes, sent = ("clips", "an image") if card.frames else ("images", "a clip")
            raise UnsupportedMedia(f"{card.name} takes {takes}, and the request has {sent}")
        return other

    def other_task(self, card: ModelCard) -> UnknownModel:
        """The refusal of a model of another task, with the route that it has."""
        if card.task == "clicks":
            owner = next((other.name for other in self.served.values() if other.click_model == card.name), "")
            return UnknownModel(f"{card.name} answers points: send them to /segment, with the model {owner}")
        if card.task in INTERNAL_TASKS:
            return UnknownModel(f"{card.name} works for another model; GET /models lists the models")
        return UnknownModel(
            f"{card.name} is served under {route_of(card.task)}, not under {route_of(self.task)}"
        )

    def _first(self, video: bool) -> ModelCard | None:
        return next((card for card in self.cards.values() if bool(card.frames) == video), None)
