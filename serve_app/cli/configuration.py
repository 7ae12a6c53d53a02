"""The settings that a command line names: a file with all of them, or only a model."""

import argparse
from pathlib import Path

import yaml
from pydantic import ValidationError

from serve_app.settings import BUILTIN_TINY, AppSettings, ModelSettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--model", default=BUILTIN_TINY, help="builtin:tiny, a directory, or a hub id (%(default)s)")
    what.add_argument("--settings", type=Path, help="YAML file with all settings: what stands under `args:`")


def read(arguments: argparse.Namespace) -> AppSettings:
    """The settings of the file, or the defaults with the model. Raises ValueError where the file cannot be used."""
    if arguments.settings is None:
        return AppSettings(model=ModelSettings(source=arguments.model))
    try:
        return AppSettings.model_validate(yaml.safe_load(arguments.settings.read_text("utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValidationError) as error:
        raise ValueError(f"{arguments.settings} cannot be used: {error}") from None
