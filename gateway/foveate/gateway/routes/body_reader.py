"""The body of a request on the task routes: checked, bounded in bytes and time, spooled if it is a clip."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

from starlette.requests import Request as HttpRequest

from foveate.core.errors import BadRequest
from foveate.core.settings import Settings
from foveate.gateway.body import check_type, from_multipart, read_body
from foveate.gateway.limits import Permit, SpoolBudget, deadline_timeout
from foveate.gateway.spool import Medium, spool_body


class BodyReader:
    """Reads the bodies of requests, within the limits of the settings."""

    def __init__(self, settings: Settings, spool_budget: SpoolBudget) -> None:
        self.settings, self.spool_budget = settings, spool_budget

    @asynccontextmanager
    async def open(
        self,
        http: HttpRequest,
        headers: Mapping[str, str],
        kind: str,
        permit: Permit,
        deadline: float | None,
    ) -> AsyncIterator[Medium]:
        """The bytes of the media, or of the JSON that holds them; a large clip is a file while it is open.

        headers: names in lower case. kind: the media type in the content type. deadline: monotonic clock
        seconds. Raises FoveateError.
        """
        check_type(kind)
        length, video = headers.get("content-length", "0"), kind.startswith("video/")
        timeout_s = self.settings.video_body_timeout_s if video else self.settings.body_timeout_s
        async with AsyncExitStack() as stack:
            body: Medium
            async with deadline_timeout(deadline, timeout_s):
                if video:
                    body = await stack.enter_async_context(
                        spool_body(http, length, permit, self.spool_budget)
                    )
                else:
                    body = await read_body(http, length, permit)
            if kind == "multipart/form-data" and isinstance(body, bytes):
                body = await from_multipart(headers["content-type"], body)
            if not body:
                raise BadRequest("the body is empty; send an image or a clip")
            yield body
