"""What is done with a finished run: explaining, comparing, evaluating, selecting again, scoring, the report."""
