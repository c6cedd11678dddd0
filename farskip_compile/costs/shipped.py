"""The profiles that come with the package, and which of them fits a device.

Contract: reads package data only. A device that no profile knows gets a stand-in and a warning, never silence.
"""

from __future__ import annotations

import json
import logging
import re
from importlib import resources
from pathlib import Path

from farskip_compile.costs.profile import HardwareProfile
from farskip_compile.errors import ConfigError
from farskip_compile.text_utils import did_you_mean

CPU = "cpu-gloo"
STAND_INS = ((r"\b(AMD|Instinct|Radeon)\b", "mi300x"), (r"\bG?B[1-3]00\b|Blackwell", "b200"), (r"", "h100"))
"""(regular expression found in a device's name, the profile that stands in for it), first match wins."""

log = logging.getLogger("farskip_compile")


def profiles() -> list[str]:
    """Names of the shipped profiles."""
    folder = resources.files("farskip_compile.costs") / "profiles"
    return sorted(entry.name.removesuffix(".json") for entry in folder.iterdir() if entry.name.endswith(".json"))


def load_profile(name_or_path: str | Path) -> HardwareProfile:
    """A shipped profile by name, or one from a JSON file.

    Raises:
        ConfigError: no such name or file, or a file that is not a profile.
    """
    name = str(name_or_path)
    if name in profiles():
        text = (resources.files("farskip_compile.costs") / "profiles" / f"{name}.json").read_text(encoding="utf-8")
        return HardwareProfile.from_json(json.loads(text), origin=f"hardware profile {name!r}")
    if name.endswith(".json") or Path(name).is_file():
        return HardwareProfile.load(name)
    raise ConfigError(
        f"no hardware profile is called {name!r}",
        way_out=did_you_mean(
            name, profiles(), always=f"shipped: {', '.join(profiles())}; or give the path of a .json file"
        ),
    )


def default_profile(device_type: str, device_name: str = "") -> HardwareProfile:
    """The shipped profile for a device; a stand-in with a warning if none fits.

    Args:
        device_type: `"cpu"`, `"cuda"` (also AMD), ...
        device_name: as `torch.cuda.get_device_name()` gives it.
    """
    if device_type == "cpu":
        return load_profile(CPU)
    for name in profiles():
        profile = load_profile(name)
        if any(re.search(pattern, device_name, re.IGNORECASE) for pattern in profile.devices):
            return profile
    name = next(name for pattern, name in STAND_INS if re.search(pattern, device_name, re.IGNORECASE))
    log.warning(
        "no hardware profile for %s device %r: costs are those of %r, so overlap may be planned badly. "
        'Choose one with options={"profile": ...}: %s, or the path of a JSON file that HardwareProfile.save() wrote.',
        device_type,
        device_name,
        name,
        ", ".join(profiles()),
    )
    return load_profile(name)
