"""`hetpure tune`: a search for a defence's settings on validation images."""

import yaml

from hetpure.commands.parsing import parser_of, settings_of
from hetpure.packaged_configs import with_paths
from lightning_modules.cli import quiet
from lightning_modules.tuning import tune


def main(arguments: list[str]) -> None:
    """Parses the arguments and searches."""
    quiet()
    parser = parser_of(tune, "config", positional=False)
    parser.add_argument("--config", action="config", help="a YAML file with what follows")
    options, settings = settings_of(parser, with_paths("tune", arguments))
    del settings["config"]  # the files, whose settings are read
    tune(yaml.safe_load(parser.dump(options)), **settings)
