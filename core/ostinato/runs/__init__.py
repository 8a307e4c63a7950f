"""The run folder: artefacts, metrics and checkpoints."""
