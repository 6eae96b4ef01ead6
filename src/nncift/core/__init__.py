"""What every part uses and none owns: seeds, progress, pairs of ids, parallel work, memory, threads."""
