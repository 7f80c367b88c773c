"""`hetpure configs`: the packaged configs, to name or to copy."""

from hetpure.commands.parsing import call, parser_of
from hetpure.errors import InputError
from hetpure.packaged_configs import CONFIGS


def configs(name: str | None = None) -> None:
    """Lists the packaged configs, or prints one: `hetpure configs evaluate/quick > my.yaml`.

    Args:
        name: folder and name of the config to print.
    """
    files = {
        file.relative_to(CONFIGS).with_suffix("").as_posix(): file
        for file in sorted(CONFIGS.rglob("*.yaml"))
    }
    if name is None:
        print(*files, sep="\n")
    elif name in files:
        print(files[name].read_text("utf-8"), end="")
    else:
        near = [file for file in files if file.endswith(f"/{name}")] or list(files)
        raise InputError(f"there is no packaged config {name!r}; these are: {', '.join(near)}")


def main(arguments: list[str]) -> None:
    """Parses the arguments and lists or prints."""
    parser = parser_of(configs, "name")
    parser.add_argument("name", nargs="?", help="folder and name of the config to print")
    call(configs, arguments, parser)
