"""The trajectory explorer: what the policy tried, what it was worth, and what sharing changed.

It reads a run's rollout store with DuckDB and renders pages on the server; Gradio serves them (`app`), `export` writes
them to one file. It never imports the trainer, and needs no torch.
"""
