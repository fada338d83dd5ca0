"""The command line: one file a command. Starts without torch."""
