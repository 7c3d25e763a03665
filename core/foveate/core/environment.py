"""FOVEATE_* variables as a source of settings: old names, JSON, and the variables that Kubernetes sets."""

import json
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_origin

from pydantic_settings import PydanticBaseSettingsSource

from foveate.core.errors import SetupError
from foveate.core.nearest_names import nearest

log = logging.getLogger(__name__)

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
SERVICE_ADDRESS = re.compile("(tcp|udp|sctp)://")
"""Start of the value that Kubernetes gives to NAME_PORT for a Service called NAME."""
SERVICE_VARIABLE = re.compile(
    r"(^|_)(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)$"
)
"""End of the name of a variable that Kubernetes sets for a Service."""
SERVICE_HINT = (
    "Kubernetes sets it for a Service of this name; the pod setting enableServiceLinks: false avoids it"
)


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return f"{ENV_PREFIX}{name.upper()}"


class EnvironmentSource(PydanticBaseSettingsSource):
    """Reads the FOVEATE_* variables under the current and the old names of the settings.

    Spaces around a value are removed. Settings that are tables are JSON.
    """

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        """Unused: all values come from `__call__`."""
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        """The values of the variables that are set, by current name. Raises SetupError for invalid JSON."""
        fields = self.settings_cls.model_fields
        environment = {name.upper(): value.strip() for name, value in os.environ.items()}
        values = {
            name: environment[variable(name)] for name in (*fields, *RENAMED) if variable(name) in environment
        }
        if SERVICE_ADDRESS.match(values.get("port", "")):
            log.warning("%s=%s is ignored: %s", variable("port"), values.pop("port"), SERVICE_HINT)
        return {
            name: _parsed(name, value) if get_origin(fields[name].annotation) is dict else value
            for name, value in renamed(values).items()
        }


def _parsed(name: str, value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError as error:
        raise SetupError(
            f"{variable(name)} is not valid JSON ({error}); the value is {value[:80]!r}"
        ) from None


def renamed(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values under the current names of settings. Logs a warning for each old name.

    A value under the current name wins over one under the old name.
    """
    current = {name: value for name, value in values.items() if name not in RENAMED}
    for old in sorted(values.keys() & RENAMED.keys()):
        new = RENAMED[old]
        log.warning(
            "the setting %s (%s) is now called %s (%s); the old name works for one more release",
            old, variable(old), new, variable(new),
        )  # fmt: skip
        current.setdefault(new, values[old])
    return current


def models_notice(models: Sequence[str], environment: Mapping[str, str]) -> str:
    """A sentence that says that FOVEATE_MODELS stands for several models; empty where it does not.

    Flags take a,b for one family, and the variable takes it for two models. models: those that are served.
    """
    name = variable("models")
    names = [part.strip() for part in environment.get(name, "").split(",") if part.strip()]
    if len(names) < 2 or names != list(models):  # one name, a JSON list, or flags in its place
        return ""
    return f"{name} names {len(names)} models; a family is given by --model {','.join(names)}"


def ignored_variables(fields: Iterable[str], environment: Mapping[str, str]) -> Sequence[str]:
    """One sentence for each FOVEATE_* variable that is no setting; one for all that Kubernetes sets."""
    known = [name.upper() for name in fields]
    sentences, links = [], []
    for name in sorted(name.upper() for name in environment):
        setting = name.removeprefix(ENV_PREFIX)
        if not name.startswith(ENV_PREFIX) or setting in known or setting.lower() in RENAMED:
            continue
        if SERVICE_VARIABLE.search(setting):
            links.append(name)
            continue
        near = nearest(setting, known, 1, 0.7)
        hint = f"; did you mean {variable(near[0])}?" if near else ""
        sentences.append(f"{name} is not a setting, and is ignored{hint}")
    if links:
        others = f" and {len(links) - 1} more are" if links[1:] else " is"
        sentences.append(f"{links[0]}{others} ignored: {SERVICE_HINT}")
    return sentences
