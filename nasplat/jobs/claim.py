"""A folder of results that belongs to one set of settings."""

from __future__ import annotations

from pathlib import Path

import yaml

from nasplat.artifacts.files import write_text
from nasplat.core.errors import NasplatError
from nasplat.core.section import Section
from nasplat.jobs.yaml_file import read_yaml


def claim(directory: Path, settings: Section, filename: str, what: str) -> None:
    """Writes the settings into a folder, with all their defaults, which makes it theirs.

    Args:
        directory: made where it is not there; the same settings may claim it again, and go on there.
        what: the settings are for, such as `pruning`.

    Raises:
        NasplatError: the folder holds something else, or cannot be written to.
    """
    plain = settings.model_dump(mode="json")
    path = directory / filename
    others = [one for one in directory.iterdir() if one != path] if directory.is_dir() else []
    if path.exists() and others:  # alone it is of a session that failed before it had done anything
        if read_yaml(path).data != plain:
            raise NasplatError(f"{directory} holds another {what}", "choose another folder (--run), or remove that one")
    elif others or (directory.exists() and not directory.is_dir()):
        raise NasplatError(f"{directory} holds something else", "choose another folder: --run")
    header = f"# This {what} with all its defaults, as it was carried out.\n"
    write_text(path, header + yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))
