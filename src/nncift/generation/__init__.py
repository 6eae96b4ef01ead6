"""What a model answers, and how good that is: losses, greedy answers, metrics, judges, and paired comparisons of two arms."""
