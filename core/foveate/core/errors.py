"""The one exception tree. A failure is a type; only the HTTP edge turns types into status codes."""


class FoveateError(Exception):
    """Any error that ends a request without an answer. The message is one sentence that clients may read."""

    status = 500
    """HTTP status code."""
    title = "Internal error"
    """Title of the problem document."""
    outcome = "failed"
    """Value of the label `outcome` in the metrics."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class BadRequest(FoveateError):
    """The request is invalid: the same request can never be served."""

    status = 400
    title = "Bad request"
    outcome = "invalid"

    def __init__(self, detail: str, param: str | None = None) -> None:
        """param: the path of the field that is wrong, as in messages[0].content; None if it has none."""
        super().__init__(detail)
        self.param = param


class BadPlan(BadRequest):
    """A plan that does not parse, or that the model cannot run."""

    title = "Bad plan"


class UnknownModel(BadRequest):
    """The server has no model of this name."""

    status = 404
    title = "Unknown model"


class ContextTooLong(BadRequest):
    """The chat has more tokens than the context of the model."""

    title = "Context too long"


class SchemaTooComplex(BadRequest):
    """The answer cannot go on: the library cannot say which tokens keep to the JSON schema of the request.

    It is no RunFailed: as the request would fail again, clients must not send it again, as they do after 500.
    """

    title = "JSON schema too complex"

    def __init__(self, detail: str) -> None:
        super().__init__(detail, "response_format")


class BodyTooLarge(BadRequest):
    """The body has more bytes than the server reads."""

    status = 413
    title = "Body too large"


class ImageTooLarge(BadRequest):
    """The image has more pixels than the server decodes: it is very large, or a decompression bomb."""

    status = 413
    title = "Image too large"


class ClipTooLarge(BadRequest):
    """The clip has more seconds, pixels or frames than the server decodes, or takes too long to decode."""

    status = 413
    title = "Clip too large"


class BodyTooSlow(BadRequest):
    """The body did not arrive within the server's time limit."""

    status = 408
    title = "Body too slow"


class UrlRefused(BadRequest):
    """The server does not fetch from this URL."""

    title = "URL refused"


class UrlFailed(BadRequest):
    """The URL may be fetched, but there is no file, or it did not arrive."""

    title = "URL cannot be fetched"


class UnsupportedMedia(BadRequest):
    """The media type is not supported."""

    status = 415
    title = "Unsupported media type"


class UnsupportedEncoding(UnsupportedMedia):
    """The body is compressed in a way that the server does not decompress."""

    title = "Unsupported content encoding"


class BrokenMedia(BadRequest):
    """The image or clip does not decode."""

    status = 422
    title = "Media cannot be decoded"


class Unavailable(FoveateError):
    """The server cannot accept the request now; the same request may succeed later."""

    status = 503
    title = "Unavailable"
    outcome = "refused"
    reason = "unavailable"
    """Value of the label `reason` in the metrics."""

    def __init__(self, detail: str, retry_after_s: float = 1.0) -> None:
        """retry_after_s: seconds after which the client may retry."""
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class Overloaded(Unavailable):
    """A bounded queue or another limit on requests is reached."""

    status = 429
    title = "Overloaded"
    reason = "queue_full"


class TooLate(Overloaded):
    """The predicted finish is after the deadline, even on the cheapest allowed plan."""

    title = "No time left"
    reason = "deadline"


class Draining(Unavailable):
    """The server is shutting down and finishes only the requests that it has admitted."""

    title = "Draining"
    reason = "draining"


class DeviceHung(Unavailable):
    """The device has been busy for far longer than predicted, so that the request would wait without end."""

    title = "Device does not respond"
    reason = "hung"


class DeadlineExceeded(FoveateError):
    """The request's deadline passed after it was admitted."""

    status = 504
    title = "Deadline exceeded"
    outcome = "expired"


class ClientGone(FoveateError):
    """The client closed its connection before its answer was ready. Logged, never sent."""

    status = 499
    title = "Client closed the request"
    outcome = "cancelled"


class RunFailed(FoveateError):
    """The model failed on this one item."""

    title = "Inference failed"


class SetupError(FoveateError):
    """This installation cannot do what the settings or the command line ask for."""

    title = "Cannot start"
