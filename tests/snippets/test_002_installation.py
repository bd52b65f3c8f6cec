"""The page of ``amb-core`` (requirement text 002): what it installs, and its development."""

from __future__ import annotations

from ._extras import brought, check

INSTALL = """
pip install amb-core

# Redis support
pip install amb-core[redis]

# RabbitMQ support
pip install amb-core[rabbitmq]

# Kafka support
pip install amb-core[kafka]

# All adapters
pip install amb-core[all]

# Development dependencies
pip install amb-core[dev]
"""

DEVELOPMENT = """
# Install dev dependencies
pip install -e ".[dev]"

# Run tests
pytest

# Run with coverage
pytest --cov=amb_core --cov-report=html
"""

BUILD = """
python -m build
"""


def test_every_extra_is_there_and_brings_what_it_is_for() -> None:
    check(INSTALL, 6)


def test_the_commands_of_development_are_those_of_the_extra() -> None:
    """What they run is in the extra ``dev``: the plugin that has these options, and the front end of the build."""
    check(DEVELOPMENT, 1)
    assert "pytest --cov=amb_core" in DEVELOPMENT and "python -m build" in BUILD
    assert {"pytest", "pytest-cov", "build"} <= brought("amb-core", "dev")
