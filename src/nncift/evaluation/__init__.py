"""How good a student is: metrics, quadrants with intervals, the baselines beside it, intervals of new rows."""
