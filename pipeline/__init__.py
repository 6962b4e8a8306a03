"""Builds and wires: the Serve application, server process, command line. Imports actors and streamkv."""
