"""The run file: its sections, how it is read, and what is said of its mistakes."""
