"""A search: what is proposed, where it is evaluated, and what is remembered of it."""
