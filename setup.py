"""Where the packages are; all else stands in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["jaxface*", "weights_convert*"]), "jaxface.configs", "jaxface.configs.encoders"],
    # they stay in sight at the top, and travel inside
    package_dir={"jaxface.configs": "configs", "jaxface.configs.encoders": "configs/encoders"},
)
