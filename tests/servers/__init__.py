"""Real servers for the tests: child processes on free loopback ports, in folders that go with them."""
