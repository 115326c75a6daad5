"""Evaluation: what is asked, how answers are counted and compared, and what is written down."""
