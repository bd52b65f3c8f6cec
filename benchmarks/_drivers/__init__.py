"""One program per contestant. Each runs as a child process in its own environment and measures when it is told to."""
