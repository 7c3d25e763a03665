"""The server's settings. The entry point reads them once, from flags and FOVEATE_* variables."""

import json
import logging
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, get_args
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from foveate.core.checkpoint_options import CheckpointOptions
from foveate.core.default_models import DEFAULT_MODELS
from foveate.core.environment import ENV_PREFIX, RENAMED, EnvironmentSource, renamed, variable
from foveate.core.errors import SetupError
from foveate.core.model import INTERNAL_TASKS, Task, route_of
from foveate.core.url_hosts import HostRule

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

log = logging.getLogger(__name__)

MIB = 2**20
"""Bytes in a mebibyte."""
MAX_SHOWN = 80
"""Longest value that an error repeats, in characters."""
HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]*")
"""The characters that HTTP allows in the name of a header."""


Share = Annotated[float, Field(gt=0)]
"""A part of a resource, above 0."""


class SloClass(BaseModel):
    """A named objective, for requests that name it in x-slo-class."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    deadline_ms: float | None = Field(default=None, gt=0, le=3_600_000)
    """Milliseconds from the arrival of a request to its answer; none means no deadline."""
    min_quality: float = Field(default=0.0, ge=0, le=1)
    """Lowest acceptable share of full accuracy, 0 to 1."""
    priority: int = Field(default=0, ge=-9, le=9)
    """Priority from -9 to 9. Each step moves the virtual deadline of a request forward by one second."""


class Settings(BaseSettings):
    """Everything that an operator may set. Each field is also an environment variable, as in FOVEATE_PORT."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, frozen=True, str_strip_whitespace=True, allow_inf_nan=False
    )

    host: str = "127.0.0.1"
    """Address to listen on. 0.0.0.0 listens on all interfaces."""
    port: int = Field(default=8000, ge=0, le=65535)
    """TCP port to listen on. 0 takes any free port."""
    max_connections: int = Field(default=0, ge=0)
    """Maximum number of connections with a request in flight. Requests on further ones get 503, except for
    /livez, /readyz and /metrics. Connections that only wait are closed for room, the oldest first. 0 takes
    three quarters of the limit on open files, at most 8192."""
    head_timeout_s: float = Field(default=10.0, gt=0)
    """Seconds in which the request line and headers must arrive."""
    keep_alive_timeout_s: int = Field(default=75, ge=1)
    """Seconds for which a connection is kept without a request. A proxy in front must keep its connections
    for less time."""
    send_timeout_s: float = Field(default=30.0, gt=0)
    """Seconds in which a client must read its answer. An answer over 16 KiB adds a second for each 16 KiB."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose web pages may send requests from a browser, separated by commas, as in
    https://app.example.org. * allows every page. Empty allows none but those of the server itself."""
    models: tuple[str, ...] = DEFAULT_MODELS
    """Names or paths of the models, separated by commas, or as a JSON list whose entries may list a family,
    as in ["large,small"]. The first model of a task answers requests that name none. Where this is not set,
    models that need what is not installed are left out: efficientnet-lite its weights, vit-t-chat the
    package transformers."""
    model_options: dict[str, CheckpointOptions] = Field(default_factory=dict)
    """What the weights of models do not show, by the model's name in models, as JSON: {"mine.safetensors":
    {"mean": [0.485, 0.456, 0.406], "heads": 12}}. It comes before the JSON file beside the weights."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format of the forward. auto measures once on each machine, and takes fp32 unless a faster format
    gives the same answers."""
    plan: str = "auto"
    """Plan of requests to the first model that pin none, as in evit:0.5. auto leaves the choice to the
    policy."""
    policy: Literal["slo", "fifo"] = "slo"
    """Scheduling policy. slo serves each request at the best quality that meets the deadlines, and refuses
    requests that cannot meet theirs. fifo serves all requests at one plan and refuses none."""
    slo_classes: dict[str, SloClass] = Field(default_factory=dict)
    """Named objectives, as JSON: {"interactive": {"deadline_ms": 200, "min_quality": 0.95}}. Requests name
    one in x-slo-class."""
    default_slo_classes: dict[str, str] = Field(default_factory=dict)
    """SLO class of requests that name none, by route, as JSON: {"/classify": "interactive"}."""
    max_priority: int = Field(default=0, ge=0, le=9)
    """Highest priority that clients may ask for. Higher values are reduced to it."""
    tenant_header: str = ""
    """Name of the header with the tenant of a request, set by a trusted proxy. Empty treats all requests as
    one tenant."""
    default_deadline_s: float = Field(default=1.0, gt=0)
    """Seconds after arrival at which a request without a deadline is scheduled, as if that were its
    deadline."""
    device: str = "auto"
    """Device for the models: cpu, cuda, or auto, which takes a GPU if torch has one."""
    threads: int = Field(default=0, ge=0, le=1024)
    """CPU threads of one forward. 0 takes one for each core."""
    decode_threads: int = Field(default=2, ge=1)
    """Threads that decode images. Large images use one more thread."""
    max_batch: int = Field(default=0, ge=0)
    """Maximum number of requests in a batch. 0 chooses by the device."""
    queue_items: int = Field(default=1024, ge=1)
    """Maximum number of requests that wait for a batch, for each model."""
    queue_bytes: int = Field(default=256 * MIB, ge=1)
    """Maximum bytes of decoded media of waiting requests, for each model."""
    in_flight_items: int = Field(default=2048, ge=1)
    """Maximum number of requests that are read, decoded, waiting or running, for all models together."""
    in_flight_bytes: int = Field(default=512 * MIB, ge=1)
    """Maximum bytes of all request bodies in memory together."""
    max_body_bytes: int = Field(default=20 * MIB, ge=1)
    """Maximum bytes of one request body that is not a clip."""
    body_timeout_s: float = Field(default=30.0, gt=0)
    """Seconds in which a request body must arrive. A shorter deadline of the request applies first."""
    url_hosts: tuple[str, ...] = ()
    """Hosts from which http and https URLs in requests are fetched, separated by commas: a name, as in
    images.example.org, *.example.org for all names below it, * for all names, or an address. Their addresses
    must be public. HOST:PORT allows that port instead of 80 and 443. Empty fetches none; data: URLs need no
    setting."""
    url_private_hosts: tuple[str, ...] = ()
    """Hosts with private or loopback addresses, such as an internal object store, from which URLs are fetched
    too: exact names or addresses with their ports, separated by commas, as in minio.storage:9000. Every
    client of the server may then read from them."""
    url_timeout_s: float = Field(default=20.0, gt=0)
    """Seconds in which the file at a URL must arrive, redirects included. A shorter deadline of the request
    applies first."""
    url_fetches: int = Field(default=32, ge=1, le=1024)
    """Maximum number of URLs that are fetched at one time; further ones wait."""
    decode_bytes: int = Field(default=512 * MIB, ge=1)
    """Maximum bytes of memory for decoding large images, and for drawing masks on them, at one time; further
    large images wait. An image of over 4 million pixels counts 10 bytes a pixel."""
    max_pixels: int = Field(default=50_000_000, ge=1)
    """Maximum pixels of an image, width times height. Decoding takes up to 12 bytes a pixel, and far less for
    a JPEG."""
    max_video_bytes: int = Field(default=512 * MIB, ge=1)
    """Maximum bytes of one clip. Clips over 4 MiB are stored on disk while they are decoded."""
    video_body_timeout_s: float = Field(default=300.0, gt=0)
    """Seconds in which a clip must arrive. A shorter deadline of the request applies first."""
    spool_bytes: int = Field(default=2048 * MIB, ge=1)
    """Maximum bytes of all clips on disk together."""
    max_clip_s: float = Field(default=3600.0, gt=0)
    """Maximum duration of a clip in seconds."""
    max_video_pixels: int = Field(default=4096 * 2304, ge=1)
    """Maximum pixels of a clip's frame, width times height. A decoder may keep 16 frames, at 2 to 6 bytes a
    pixel."""
    clip_decode_s: float = Field(default=20.0, gt=0)
    """Maximum seconds for decoding one clip."""
    chat_answer_tokens: int = Field(default=256, ge=1)
    """Maximum tokens of an answer to a chat whose request names no max_tokens."""
    chat_pictures: int = Field(default=16, ge=0)
    """Maximum number of pictures in a chat, those of earlier messages included."""
    chat_text_bytes: int = Field(default=64 * 1024, ge=1)
    """Maximum bytes of all texts of a chat together, in UTF-8. The context of the model may be shorter."""
    feature_bytes: int = Field(default=64 * MIB, ge=0)
    """Bytes of memory for cached image features, which answer point prompts and repeated requests. An image
    takes about 400 kB. 0 disables the feature cache."""
    chat_slots: int = Field(default=16, ge=1, le=1024)
    """Answers of a vision-language model that are generated at once. Further chats wait."""
    chat_slot_tokens: int = Field(default=1024, ge=16)
    """Tokens of a chat at most, the visual ones and the answer included. A model may take fewer. The keys and
    values of vit-t-chat take 10 kB a token, so that 16 slots of 512 tokens take 84 MB."""
    chat_feature_bytes: int = Field(default=64 * MIB, ge=0)
    """Bytes of memory for the features of pictures of chats. A picture takes about 300 kB. 0 encodes the
    picture of every chat."""
    chat_prefix_bytes: int = Field(default=128 * MIB, ge=0)
    """Bytes of memory for keys and values of prompts up to a picture, so that a second question about it
    starts at once. A picture takes up to 2 MB. 0 computes the whole prompt of every chat."""
    text_bytes: int = Field(default=32 * MIB, ge=0)
    """Bytes of memory for cached embeddings of labels, for zero-shot classification. A label takes 2 to 5 kB.
    0 computes them for every request."""
    cache: str = "memory"
    """Where answers and image features are cached: memory, in this process, or redis://HOST:PORT/DB, shared
    by all processes."""
    cache_bytes: int = Field(default=64 * MIB, ge=0)
    """Bytes of memory for cached answers. One answer may take at most a sixteenth of it, in any cache. 0
    disables the response cache."""
    cache_ttl_s: float = Field(default=300.0, gt=0)
    """Seconds for which an answer is cached."""
    cache_timeout_s: float = Field(default=0.05, gt=0)
    """Maximum seconds for which a request waits for a shared cache."""
    cluster: Literal["local", "ray"] = "local"
    """Where models run: local, in this process, or ray, in workers on Ray Serve."""
    ray_address: str = ""
    """Address of a running Ray cluster, as in auto or 10.0.0.1:6379. Empty starts a Ray cluster with the
    server and stops it with the server."""
    gateways: int = Field(default=1, ge=1)
    """On Ray: number of gateway processes, which receive requests, decode media and render answers."""
    gateway_cpus: float = Field(default=1.0, ge=0)
    """On Ray: CPUs that each gateway reserves on its node."""
    gateway_resources: dict[str, Share] = Field(default_factory=dict)
    """On Ray: custom resources that a gateway reserves on its node, as JSON: {"gateway": 0.001}."""
    replicas: int = Field(default=1, ge=1)
    """On Ray: number of workers for each model; the minimum if max_replicas is higher."""
    max_replicas: int = Field(default=1, ge=1)
    """On Ray: maximum number of workers for each model. Above replicas, the number follows the full-quality
    demand."""
    replica_cpus: float = Field(default=1.0, ge=0)
    """On Ray: CPUs that each worker reserves on its node."""
    replica_gpus: float = Field(default=0.0, ge=0)
    """On Ray: GPUs that each worker reserves on its node. A fraction shares a GPU between workers."""
    replica_resources: dict[str, Share] = Field(default_factory=dict)
    """On Ray: custom resources that a worker reserves on its node, as JSON: {"accelerator_type:L4":
    0.001}."""
    scale_utilisation: float = Field(default=0.75, gt=0, le=1)
    """On Ray: share of a worker's time, 0 to 1, that the full-quality demand may use before another worker is
    added."""
    scale_replica_startup_s: float = Field(default=30.0, gt=0)
    """On Ray: seconds from the request for a new worker until it serves."""
    scale_downscale_delay_s: float = Field(default=300.0, gt=0)
    """On Ray: seconds for which the demand must stay lower before workers are removed."""
    scale_interval_s: float = Field(default=5.0, gt=0)
    """On Ray: seconds between two scaling decisions."""
    drain_timeout_s: float = Field(default=30.0, ge=0)
    """Maximum seconds for which the server finishes accepted requests after SIGTERM."""
    hang_timeout_s: float = Field(default=30.0, gt=0)
    """Seconds after which a forward counts as hanging: /readyz fails, and other requests get 503 until the
    forward ends. Ten times the predicted time applies if that is longer."""
    hang_restart_s: float = Field(default=120.0, gt=0)
    """Seconds after which a forward is given up: its requests fail, and /livez fails so that the server is
    restarted. Forty times the predicted time applies if that is longer."""
    traces: str = ""
    """URL of an OTLP/HTTP collector for traces, as in http://127.0.0.1:4318/v1/traces. Empty disables
    tracing."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Lowest severity of log messages."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments under any name, then the environment."""
        arguments = InitSettingsSource(settings_cls, renamed(init_settings()))
        return arguments, EnvironmentSource(settings_cls)

    @property
    def class_deadlines_s(self) -> tuple[float, ...]:
        """The deadlines of the SLO classes, in seconds."""
        return tuple(each.deadline_ms / 1e3 for each in self.slo_classes.values() if each.deadline_ms)

    @field_validator("precision", "policy", "device", "cluster", "log_level", mode="before")
    @classmethod
    def _accept_any_case(cls, value: Any) -> Any:
        """Accept FOVEATE_LOG_LEVEL=INFO, and the old name of the SLO policy with a warning."""
        if not isinstance(value, str):
            return value
        value = value.strip().lower()
        if value != "promise":
            return value
        log.warning("the policy 'promise' is now called 'slo'; the old name works for one more release")
        return "slo"

    @field_validator("models", "cors_origins", "url_hosts", "url_private_hosts", mode="before")
    @classmethod
    def _split_list(cls, value: Any) -> Any:
        """An environment variable holds one text: names with commas, or a JSON list. Flags are a tuple."""
        names = value
        if isinstance(value, str):
            try:
                names = json.loads(value) if value.lstrip().startswith("[") else value.split(",")
            except ValueError as error:
                raise ValueError(f"is not a JSON list: {error}") from None
        if not all(isinstance(name, str) for name in names):
            raise ValueError("takes names alone")
        return tuple(name.strip() for name in names if name.strip())

    @field_validator("cors_origins")
    @classmethod
    def _check_cors_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/?#,\s]+", origin):
                raise ValueError(
                    f"holds {origin!r}; an origin is a scheme and a host without a path, as in "
                    "https://app.example.org, or *"
                )
        return value

    @field_validator("url_hosts", "url_private_hosts")
    @classmethod
    def _check_hosts(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        for entry in value:
            try:
                rule = HostRule.read(entry)
            except ValueError as error:
                raise ValueError(
                    f"holds {entry[:MAX_SHOWN]!r}, but {error}; write hosts as in images.example.org or "
                    "*.example.org, without a scheme and a path"
                ) from None
            if info.field_name == "url_private_hosts" and not rule.exact:
                raise ValueError(
                    f"holds {entry[:MAX_SHOWN]!r}; a private host is an exact name or address with its port, "
                    "as in minio.storage:9000"
                )
        return value

    @field_validator("models")
    @classmethod
    def _check_models(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or len(set(value)) < len(value):
            raise ValueError("must name at least one model, and each model once")
        return value

    @field_validator("cache")
    @classmethod
    def _check_cache(cls, value: str) -> str:
        if value == "memory" or re.fullmatch("unix://.+", value):
            return value
        problem = ValueError("must be memory or redis://HOST:PORT/DB")
        try:
            url = urlsplit(value)
            valid = bool(url.hostname) and url.port != 0
        except ValueError:
            raise problem from None
        # The Redis client takes database 0 where the path is not a number.
        if url.scheme not in ("redis", "rediss") or not valid or not re.fullmatch(r"(/\d*)?", url.path):
            raise problem
        return value

    @field_validator("traces")
    @classmethod
    def _check_traces(cls, value: str) -> str:
        url = urlsplit(value)
        if value and (url.scheme not in ("http", "https") or not url.hostname):
            raise ValueError("must be a URL, as in http://127.0.0.1:4318/v1/traces")
        return value

    @field_validator("tenant_header")
    @classmethod
    def _check_tenant_header(cls, value: str) -> str:
        if not HEADER_NAME.fullmatch(value):
            raise ValueError("must be the name of an HTTP header, as in x-tenant")
        return value

    @field_validator("default_slo_classes")
    @classmethod
    def _check_routes(cls, value: dict[str, str]) -> dict[str, str]:
        routes = [route_of(task) for task in get_args(Task) if task not in INTERNAL_TASKS]
        unknown = next((route for route in value if route not in routes), None)
        if unknown is not None:
            raise ValueError(f"there is no route {unknown!r}; the routes are {', '.join(routes)}")
        return value

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        unknown = sorted(set(self.default_slo_classes.values()) - set(self.slo_classes))
        if unknown:
            raise ValueError(f"default_slo_classes names {unknown[0]!r}, which is not in slo_classes")
        for part, whole in (("max_body_bytes", "in_flight_bytes"), ("max_video_bytes", "spool_bytes")):
            if getattr(self, part) > getattr(self, whole):
                raise ValueError(
                    f"{part} ({getattr(self, part)}) is over {whole} ({getattr(self, whole)}), so that no "
                    f"request of this size could be read: raise {whole} or lower {part}"
                )
        return self


DEFAULTS: Mapping[str, Any] = {
    name: field.get_default(call_default_factory=True) for name, field in Settings.model_fields.items()
}
"""The default of each setting by its name, for parts of the server that are used without settings."""


def read_settings(arguments: Mapping[str, Any]) -> Settings:
    """Settings from arguments, then FOVEATE_* variables, then defaults.

    Raises SetupError with one sentence for a bad value. It names the argument or the variable.
    """
    try:
        return Settings(**arguments)
    except ValidationError as error:
        raise SetupError(_sentence(error.errors()[0], arguments)) from None


def _sentence(error: "ErrorDetails", arguments: Mapping[str, Any]) -> str:
    message = error["msg"].removeprefix("Value error, ")
    if not error["loc"]:  # it concerns several settings, and names them
        return message
    name, *parts = map(str, error["loc"])
    given = name in arguments or any(RENAMED.get(old) == name for old in arguments)
    where = ".".join([name if given else variable(name), *parts])
    value = repr(error["input"])
    secret = "@" in value  # a URL with a password
    return f"{where}: {message}" + ("" if secret or len(value) > MAX_SHOWN else f"; the value is {value}")
