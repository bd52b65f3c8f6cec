"""A system of agents over a repository: ``amb demo``, or ``python -m amb_core.demo``.

The agents (reader, analyst, reviewer, governor, watcher) know topics and nothing else. Which broker carries the
messages, and whether the agents share a process, is decided in launch.py, from what the broker can do.
"""
