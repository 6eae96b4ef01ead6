"""Language models and encoders: loading, prompts, embeddings, probes, gradients."""
