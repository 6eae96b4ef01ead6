"""The commands, a module each: each parses, calls one library function and prints (docs/cli.md)."""
