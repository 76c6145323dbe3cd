"""The command line: parse, call, print. A command imports its program only when it runs."""
