"""Does the selected subset train as well? Fine-tuning on it and on its rivals, alike, and what rows unseen by all say of them."""
