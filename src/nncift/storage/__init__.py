"""What lies on disk: atomic files, checksums, stores of rows and vectors, the run directory, the ledger."""
