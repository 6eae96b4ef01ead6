"""What people call from Python: every command as a function, and a finished run as an object."""
