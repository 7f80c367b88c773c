"""Metadata is in setup.cfg; here is only what a wheel needs beyond it: the configs."""

from pathlib import Path
from shutil import copytree

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    """Carries the clone's `configs/` as `hetpure/configs`, where a wheel's programs look for it."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            copytree("configs", Path(self.build_lib, "hetpure", "configs"), dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithConfigs})
