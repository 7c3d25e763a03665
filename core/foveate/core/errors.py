"""The one exception tree. A failure is a type; the HTTP edge alone turns types into statuses."""


class FoveateError(Exception):
    """Anything that ends a request without an answer. The message is one sentence a client may read."""

    status = 500
    title = "Internal error"
    outcome = "failed"

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class BadRequest(FoveateError):
    """The client sent something that cannot be served, ever."""

    status = 400
    title = "Bad request"
    outcome = "invalid"


class BadPlan(BadRequest):
    """A plan that does not parse, or that the model cannot run."""

    title = "Bad plan"


class UnknownModel(BadRequest):
    """A model name that is not served here."""

    status = 404
    title = "Unknown model"


class BodyTooLarge(BadRequest):
    """More bytes than the server reads."""

    status = 413
    title = "Body too large"


class ImageTooLarge(BadRequest):
    """More pixels than the server decodes: a very large picture or a decompression bomb."""

    status = 413
    title = "Image too large"


class ClipTooLarge(BadRequest):
    """More of a clip than the server reads: seconds, pixels, pictures, or work to decode them."""

    status = 413
    title = "Clip too large"


class BodyTooSlow(BadRequest):
    """The body did not arrive in the time the server gives it."""

    status = 408
    title = "Body too slow"


class UnsupportedMedia(BadRequest):
    """A media type no decoder here reads."""

    status = 415
    title = "Unsupported media type"


class BrokenMedia(BadRequest):
    """The bytes claim to be a picture, and do not decode."""

    status = 422
    title = "Media cannot be decoded"


class Unavailable(FoveateError):
    """The server cannot take this now; the same request may succeed later."""

    status = 503
    title = "Unavailable"
    outcome = "refused"
    reason = "unavailable"

    def __init__(self, detail: str, retry_after_s: float = 1.0) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class Overloaded(Unavailable):
    """The bounded queue is full."""

    status = 429
    title = "Overloaded"
    reason = "queue_full"


class TooLate(Overloaded):
    """Too much waits already for an answer by the deadline, however little is spent on it."""

    title = "No time left"
    reason = "deadline"


class Draining(Unavailable):
    """The server is shutting down and finishes only what it has admitted."""

    title = "Draining"
    reason = "draining"


class DeadlineExceeded(FoveateError):
    """The request's deadline passed after it was admitted."""

    status = 504
    title = "Deadline exceeded"
    outcome = "expired"


class ClientGone(FoveateError):
    """The client left before its answer was ready. Logged, never sent."""

    status = 499
    title = "Client closed the request"
    outcome = "cancelled"


class RunFailed(FoveateError):
    """The model failed on this one item."""

    title = "Inference failed"


class SetupError(FoveateError):
    """The server or the command line was asked for something this installation cannot do."""

    title = "Cannot start"
