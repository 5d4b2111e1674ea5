"""Names the packages of the wheel: pyproject.toml cannot add the folder `configs` to those that it finds."""

from setuptools import find_namespace_packages, setup

setup(
    packages=[*find_namespace_packages(include=["pfedst", "pfedst.*"]), "pfedst_baselines", "pfedst.configs"],
    package_dir={"pfedst_baselines": "baselines/pfedst_baselines", "pfedst.configs": "configs"},
)
