"""The server's settings. The entry point reads them once, from flags and FOVEATE_* variables."""

import logging
import os
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

log = logging.getLogger(__name__)

MIB = 2**20
"""Bytes in a mebibyte."""
ENV_PREFIX = "FOVEATE_"
"""Prefix of the environment variables."""
RENAMED = {
    "patience_s": "default_deadline_s",
    "body_s": "body_timeout_s",
    "video_body_s": "video_body_timeout_s",
    "drain_s": "drain_timeout_s",
    "scale_start_s": "scale_replica_startup_s",
    "scale_calm_s": "scale_downscale_delay_s",
    "scale_every_s": "scale_interval_s",
}
"""Old names of settings. They work for one release, with a warning."""


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

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True)

    host: str = "127.0.0.1"
    """Address to listen on. 0.0.0.0 listens on all interfaces."""
    port: int = Field(default=8000, ge=0, le=65535)
    """TCP port to listen on. 0 takes any free port."""
    models: Annotated[tuple[str, ...], NoDecode] = ("vit-t", "vit-t-seg", "vit-t-clip")
    """Names or paths of the models, separated by commas. The first model of a task answers requests that name
    none."""
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
    threads: int = Field(default=0, ge=0)
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
    feature_bytes: int = Field(default=64 * MIB, ge=0)
    """Bytes of memory for cached image features, which answer point prompts and repeated requests. An image
    takes about 400 kB. 0 disables the feature cache."""
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
    gateway_resources: dict[str, float] = Field(default_factory=dict)
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
    replica_resources: dict[str, float] = Field(default_factory=dict)
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
    """Maximum seconds for which the server finishes admitted requests after SIGTERM."""
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
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments under any name, then the environment, then the environment under old names."""
        arguments = InitSettingsSource(settings_cls, renamed(init_settings()))
        return arguments, env_settings, _RenamedVariables(settings_cls)

    @field_validator("policy", mode="before")
    @classmethod
    def _accept_old_policy(cls, value: Any) -> Any:
        """Accept the old name of the SLO policy, with a warning."""
        if value != "promise":
            return value
        log.warning("the policy 'promise' is now called 'slo'; the old name works for one more release")
        return "slo"

    @field_validator("models", mode="before")
    @classmethod
    def _split_models(cls, value: Any) -> Any:
        """An environment variable holds one text; flags are a tuple already."""
        return tuple(filter(None, value.split(","))) if isinstance(value, str) else value

    @field_validator("cache")
    @classmethod
    def _check_cache(cls, value: str) -> str:
        if value != "memory" and not value.startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("must be memory or redis://HOST:PORT/DB")
        return value

    @field_validator("models")
    @classmethod
    def _check_models(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or len(set(value)) < len(value):
            raise ValueError("must name at least one model, and each model once")
        return value

    @model_validator(mode="after")
    def _check_default_classes(self) -> Self:
        unknown = sorted(set(self.default_slo_classes.values()) - set(self.slo_classes))
        if unknown:
            raise ValueError(f"default_slo_classes names {unknown[0]!r}, which is not in slo_classes")
        return self


class _RenamedVariables(PydanticBaseSettingsSource):
    """Environment variables under the old names of settings."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        """Unused: all values come from `__call__`."""
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        """Values of the environment variables that exist, by current name."""
        environment = {name.upper(): value for name, value in os.environ.items()}  # as pydantic reads them
        names = {old: f"{ENV_PREFIX}{old.upper()}" for old in RENAMED}
        return renamed({old: environment[name] for old, name in names.items() if name in environment})


def renamed(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values under the current names of settings. Logs a warning for each old name.

    A value under the current name wins over one under the old name.
    """
    current = {name: value for name, value in values.items() if name not in RENAMED}
    for old in sorted(values.keys() & RENAMED.keys()):
        new = RENAMED[old]
        log.warning(
            "the setting %s (%s%s) is now called %s (%s%s); the old name works for one more release",
            old, ENV_PREFIX, old.upper(), new, ENV_PREFIX, new.upper(),
        )  # fmt: skip
        current.setdefault(new, values[old])
    return current
